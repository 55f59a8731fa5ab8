"""Tests that need a GPU: where there is none, skipped with the reason and counted at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dynaspec_cli.ops.extension import EXTENSION

HERE = Path(__file__).resolve().parent


def missing() -> str:
    """Why the CUDA kernels cannot run here; empty if they can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    if not EXTENSION.has_cuda:
        return f"no CUDA kernels: {EXTENSION.reason}"
    return ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    own = [item for item in items if HERE in item.path.parents]
    reason = missing()
    for item in own:
        item.add_marker(pytest.mark.cuda)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
    config.stash[_SKIPPED] = (len(own) if reason else 0, reason)


_SKIPPED = pytest.StashKey[tuple[int, str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    count, reason = terminalreporter.config.stash.get(_SKIPPED, (0, ""))
    if count:
        terminalreporter.write_line(f"skipped {count} CUDA tests: {reason}")


@pytest.fixture
def cuda() -> torch.device:
    return torch.device("cuda")

"""``--draft-head``: drafts change, the output does not, and what cannot be had is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from dynaspec_cli.main import cli
from dynaspec_cli.weights.registry import STORED, WEIGHT_FORMATS


def generate(model: Path, drafter: Path, *more: str):
    return CliRunner().invoke(
        cli,
        [
            "generate", "The quick brown", "--model", str(model), "--drafter", str(drafter),
            "--dtype", "float32", "--device", "cpu", "--shortlist", "nanospec", "--max-new-tokens",
            "16", "--tree-size", "8", "--json", *more,
        ],
    )  # fmt: skip


@pytest.mark.parametrize("form", [STORED, "bfloat16", "int8"])
def test_the_output_stays(form: str, tiny_model_dir: Path, tiny_drafter_dir: Path) -> None:
    done = generate(tiny_model_dir, tiny_drafter_dir, "--draft-head", form, "--compare")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["identical"]
    assert result["num_draft_tokens"] > 0
    assert result["settings"]["draft_head"] == form


def test_unknown_formats_are_refused_by_name() -> None:
    done = CliRunner().invoke(cli, ["generate", "x", "--draft-head", "in8"])
    assert done.exit_code == 2 or done.exception is not None
    message = done.output + str(done.exception)
    assert "--draft-head" in message
    assert "did you mean int8?" in message


def test_help_lists_every_format() -> None:
    shown = "".join(CliRunner().invoke(cli, ["generate", "--help"]).output.split())
    assert "|".join((STORED, *WEIGHT_FORMATS)) in shown

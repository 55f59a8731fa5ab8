"""Draws a report again from what a run left in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynaspec_cli.bench import provenance
from dynaspec_cli.bench.metrics import summarize
from dynaspec_cli.bench.report.write import write_reports
from dynaspec_cli.bench.spec import parse_specs
from dynaspec_cli.bench.store import FILE as SAMPLES
from dynaspec_cli.bench.store import read_samples, write_atomic
from dynaspec_cli.errors import DynaSpecError, UsageError

SUMMARY = "summary.json"


def redraw(folder: Path) -> tuple[dict[str, Any], str]:
    """The summary of ``folder``, written again with its reports, and a notice ("" if none).

    From samples.jsonl, with the settings in provenance.json; where the samples are gone, the tables
    and pictures come from summary.json as it is. Raises ``UsageError`` where there is neither.
    """
    samples = folder / SAMPLES
    notice = ""
    if samples.exists():
        summary = _summary_of_samples(samples, _read(folder / provenance.FILE)["settings"])
        write_atomic(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
    elif (folder / SUMMARY).exists():
        summary = _read(folder / SUMMARY)
        notice = f"no {SAMPLES} in {folder}: drawn from the numbers in {SUMMARY}"
    else:
        raise UsageError(
            f"--report-only: expected a folder that bench --out has written, with {SAMPLES} or "
            f"{SUMMARY}; got {folder}"
        )
    if summary["rows"]:
        write_reports(folder, summary)
    return summary, notice


def _summary_of_samples(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    samples = read_samples(path, "--report-only")
    kept = settings if "state" in settings else {**settings, "state": "interrupted"}
    return summarize(
        samples,
        parse_specs(list(settings["methods"])),
        kept,
        default_nodes=settings["tree_size"],
        seed=settings["seed"],
        checked=settings["check_exact"],
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DynaSpecError(f"--report-only: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise DynaSpecError(f"--report-only: {path} is no JSON file: {error}") from error
    return found

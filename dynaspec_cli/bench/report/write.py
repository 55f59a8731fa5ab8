"""Writes the report's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynaspec_cli.bench.report import svg
from dynaspec_cli.bench.report.markdown import markdown
from dynaspec_cli.bench.report.page import page
from dynaspec_cli.bench.report.plots import all_plots
from dynaspec_cli.bench.store import write_atomic


def write_reports(folder: Path, summary: Mapping[str, Any]) -> Sequence[Path]:
    """Write report.md, report.html and plots/*.svg below ``folder``; returns the paths."""
    pictures = folder / "plots"
    pictures.mkdir(parents=True, exist_ok=True)
    written = [folder / "report.md", folder / "report.html"]
    write_atomic(written[0], markdown(summary))
    write_atomic(written[1], page(summary))
    for plot in all_plots(summary):
        path = pictures / f"{plot.name}.svg"
        write_atomic(path, svg.standalone(plot.svg))
        written.append(path)
    return written

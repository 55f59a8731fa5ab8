"""The report's pictures, drawn from ``summary.json`` alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynaspec_cli.bench.report import plots_ratio, plots_step
from dynaspec_cli.bench.report.plot_frame import Plot


def all_plots(summary: Mapping[str, Any]) -> list[Plot]:
    """Every picture that the summary has data for."""
    overall = summary["overall"]
    index = {method: i for i, method in enumerate(dict.fromkeys(r["method"] for r in overall))}
    plots = [
        plots_ratio.speedup(summary, index),
        plots_ratio.recovery(overall),
        plots_step.acceptance(overall, index),
        plots_step.phases(overall),
        plots_step.scripts(overall, index),
        plots_ratio.frontier(overall),
    ]
    return [plot for plot in plots if plot is not None]

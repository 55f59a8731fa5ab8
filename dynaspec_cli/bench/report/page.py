"""``report.html`` from page.html.jinja and page.css; escaping is the template's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from dynaspec_cli.bench.report import svg, verdicts
from dynaspec_cli.bench.report.plots import all_plots
from dynaspec_cli.bench.report.tables import Cell, detail_tables, headline_table, task_tables
from dynaspec_cli.bench.report.words import DEFINITIONS, caution, describe_run

WORD_COLUMNS = ("exact",)


def page(summary: Mapping[str, Any]) -> str:
    """The whole document. Everything shown comes from ``summary``, escaped."""
    loader = PackageLoader("dynaspec_cli.bench.report", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.globals.update(cell_classes=_classes, breakable=_breakable)
    styles, _, _ = loader.get_source(environment, "page.css")
    return environment.get_template("page.html.jinja").render(
        style=_scheme() + svg.style() + styles,
        headline=verdicts.headline(summary),
        caution=caution(summary),
        facts=describe_run(summary),
        headline_table=headline_table(summary),
        plots=all_plots(summary),
        tables=task_tables(summary) + detail_tables(summary),
        losses=verdicts.losses(summary),
        definitions=DEFINITIONS,
    )


def _scheme() -> str:
    """The colours of light and dark pages."""
    return (
        f":root{{color-scheme:light dark;{svg.theme(False)}}}"
        f"@media(prefers-color-scheme:dark){{:root{{{svg.theme(True)}}}}}\n"
    )


def _classes(cell: Cell, column: str) -> str:
    names = [cell.tone] if cell.tone != verdicts.EVEN else []
    if column in WORD_COLUMNS:
        names.append("words")
    return " ".join(names)


def _breakable(text: str) -> Markup:
    """A method's name may break after its parts, not inside a word."""
    return Markup(re.sub(r"([+:_])", r"\1<wbr>", str(escape(text))))

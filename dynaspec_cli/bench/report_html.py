"""``report.html``: one file, no network, light and dark, readable on a phone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import Any

from dynaspec_cli.bench import svg, verdicts
from dynaspec_cli.bench.plots import Plot, all_plots
from dynaspec_cli.bench.report import DEFINITIONS, describe_run
from dynaspec_cli.bench.tables import Cell, Table, detail_tables, headline_table, task_tables

_CSS = """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:24px 20px 60px}
h1{font-size:1.5rem;margin:0 0 4px}
h2{font-size:1.15rem;margin:40px 0 6px}
p.definition,figcaption,.note{color:var(--soft);font-size:.875rem;margin:4px 0 10px}
ul.verdicts{padding:0;margin:18px 0;list-style:none}
ul.verdicts li{
  padding:7px 12px;margin:0 0 6px;background:var(--panel);
  border-left:4px solid var(--line);overflow-wrap:anywhere
}
ul.verdicts li.win{border-color:var(--win);color:var(--ink)}
ul.verdicts li.loss{border-color:var(--loss);color:var(--loss)}
.loss{color:var(--loss)}
.win{color:var(--win)}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:6px}
table{
  border-collapse:collapse;width:100%;font-size:.875rem;font-variant-numeric:tabular-nums
}
th,td{padding:6px 10px;text-align:right;white-space:nowrap;border-top:1px solid var(--line)}
thead th{border-top:0;vertical-align:bottom;background:var(--panel)}
th small{
  display:block;font-weight:400;color:var(--soft);
  white-space:normal;min-width:7.5em;line-height:1.3
}
th:first-child,td:first-child{
  text-align:left;position:sticky;left:0;background:var(--paper)
}
thead th:first-child{background:var(--panel)}
td.words{white-space:normal;min-width:9em}
.figures{columns:2 420px;column-gap:36px;margin-top:24px}
figure{margin:0 0 24px;max-width:600px;break-inside:avoid}
figure h2{margin-top:0}
svg.plot{width:100%;height:auto;display:block}
dl.facts{
  display:grid;grid-template-columns:minmax(9em,auto) 1fr;gap:3px 16px;
  font-size:.9rem;margin:14px 0
}
dl.facts dt{color:var(--soft)}
dl.facts dd{margin:0;overflow-wrap:anywhere}
dl.definitions dt{font-weight:600}
dl.definitions dd{margin:0 0 8px}
@media(max-width:600px){
  main{padding:16px 12px 40px}
  dl.facts{grid-template-columns:1fr;gap:0}
  dl.facts dd{margin:0 0 8px}
  th,td{padding:5px 7px}
  th:first-child,td:first-child{white-space:normal;min-width:8.5em;max-width:10em}
}
"""

WORD_COLUMNS = ("exact",)


def page(summary: Mapping[str, Any]) -> str:
    """The whole document. Everything shown comes from ``summary``, escaped."""
    plots = all_plots(summary)
    body = ["<h1>dynaspec bench</h1>", '<ul class="verdicts">']
    body += [
        f'<li class="{tone}">{escape(words)}</li>' for tone, words in verdicts.headline(summary)
    ]
    body += ["</ul>", '<dl class="facts">']
    body += [
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in describe_run(summary)
    ]
    body += ["</dl>", _table(headline_table(summary)), '<div class="figures">']
    body += [_figure(plot) for plot in plots]
    body.append("</div>")
    body += [_table(table) for table in task_tables(summary) + detail_tables(summary)]
    body += ["<h2>Losses</h2>", _losses(summary), "<h2>Definitions</h2>"]
    body.append('<dl class="definitions">')
    body += [f"<dt>{escape(name)}</dt><dd>{escape(words)}</dd>" for name, words in DEFINITIONS]
    body.append("</dl>")
    scheme = f":root{{color-scheme:light dark;{svg.theme(False)}}}" + (
        f"@media(prefers-color-scheme:dark){{:root{{{svg.theme(True)}}}}}"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>dynaspec bench</title><style>{scheme}{svg.style()}{_CSS}</style></head>"
        f"<body><main>{chr(10).join(body)}</main></body></html>\n"
    )


def _losses(summary: Mapping[str, Any]) -> str:
    found = verdicts.losses(summary)
    if not found:
        return '<p class="note">None.</p>'
    items = "".join(f'<li class="loss">{escape(words)}</li>' for words in found)
    return f'<ul class="verdicts">{items}</ul>'


def _figure(plot: Plot) -> str:
    caption = f"<figcaption>{escape(plot.definition)}</figcaption>"
    return f"<figure><h2>{escape(plot.title)}</h2>{plot.svg}{caption}</figure>"


def _table(table: Table) -> str:
    heads = "".join(
        f"<th>{escape(name)}{f'<small>{escape(words)}</small>' if words else ''}</th>"
        for name, words in table.columns
    )
    names = [name for name, _ in table.columns]
    rows = "".join(
        "<tr>" + "".join(_cell(cell, name) for cell, name in zip(row, names, strict=True)) + "</tr>"
        for row in table.rows
    )
    note = f'<p class="definition">{escape(table.definition)}.</p>' if table.definition else ""
    return (
        f'<h2>{escape(table.title)}</h2>{note}<div class="scroll"><table><thead><tr>{heads}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _cell(cell: Cell, column: str) -> str:
    classes = [cell.tone] if cell.tone != verdicts.EVEN else []
    if column in WORD_COLUMNS:
        classes.append("words")
    css = f' class="{" ".join(classes)}"' if classes else ""
    # A method's name may break after its parts, not inside a word.
    words = re.sub(r"([+:_])", r"\1<wbr>", escape(cell.text))
    return f"<td{css}>{words}</td>"

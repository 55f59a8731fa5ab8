"""``bench --report-only``, and what the page does with text that looks like markup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_fakes import FACTS, FULL, ChatCodec, FakeAr, FakeReference, FakeSpeculative
from click.testing import CliRunner, Result

from dynaspec_cli.bench.execute import BenchOptions, Lab, execute
from dynaspec_cli.bench.report.page import page
from dynaspec_cli.bench.report.words import caution
from dynaspec_cli.bench.spec import parse_specs
from dynaspec_cli.bench.suites import Prompt, Suite
from dynaspec_cli.main import cli

EVIL = '<script>alert("x")</script>&'


def run_in(folder: Path, task: str = "qa", prompts: int = 3) -> dict[str, Any]:
    made = tuple(Prompt("s", f"p{i}", task, ("a" * (i + 2),)) for i in range(prompts))
    lab = Lab([FakeAr(), FakeSpeculative(FULL)], ChatCodec(), FakeReference(), FACTS)
    options = BenchOptions(
        tuple(parse_specs(["ar", FULL])),
        (Suite("s", made, "h", "s"),),
        {"s": 7},
        check_exact=True,
        out=folder,
    )
    return dict(execute(options, lab).summary)


def report_only(*args: str) -> Result:
    return CliRunner().invoke(cli, ["bench", "--report-only", *args])


def test_the_report_of_a_run_is_drawn_again_from_its_samples(tmp_path: Path) -> None:
    summary = run_in(tmp_path)
    files = ("summary.json", "report.md", "report.html", "plots/speedup.svg")
    before = {name: (tmp_path / name).read_bytes() for name in files}
    for name in files:
        (tmp_path / name).unlink()
    result = report_only(str(tmp_path), "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["rows"] == summary["rows"]
    assert {name: (tmp_path / name).read_bytes() for name in files} == before


def test_a_killed_run_gets_a_report(tmp_path: Path) -> None:
    run_in(tmp_path)
    lines = (tmp_path / "samples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "samples.jsonl").write_text("".join(lines[:4]) + lines[4][:20])
    settings = json.loads((tmp_path / "provenance.json").read_text())
    del settings["settings"]["state"]
    (tmp_path / "provenance.json").write_text(json.dumps(settings))
    result = report_only(str(tmp_path), "--json")
    summary = json.loads(result.stdout)
    assert summary["settings"]["state"] == "interrupted"
    assert summary["rows"][0]["prompts"] == 2


def test_without_samples_the_summary_is_drawn(tmp_path: Path) -> None:
    run_in(tmp_path)
    (tmp_path / "samples.jsonl").unlink()
    before = (tmp_path / "report.html").read_bytes()
    (tmp_path / "report.html").unlink()
    result = report_only(str(tmp_path))
    assert result.exit_code == 0, result.stderr
    assert "no samples.jsonl" in result.stderr
    assert (tmp_path / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "expected a folder that bench --out has written"),
        ({"samples.jsonl": ""}, "cannot read"),
        ({"summary.json": "{"}, "is no JSON file"),
        ({"samples.jsonl": "[\n", "provenance.json": '{"settings": {}}'}, "is no JSON object"),
    ],
)
def test_folders_without_a_run(tmp_path: Path, content: dict[str, str], words: str) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    result = report_only(str(tmp_path))
    assert result.exit_code in (1, 2)
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_flags_that_ask_for_a_measurement_are_refused(tmp_path: Path) -> None:
    result = report_only(str(tmp_path), "--method", "ar", "--limit", "3")
    assert result.exit_code == 2
    assert "measures nothing; leave out --method, --limit" in result.stderr


def test_the_page_escapes_what_it_did_not_write(tmp_path: Path) -> None:
    summary = run_in(tmp_path, task=EVIL)
    summary["settings"]["model"] = EVIL
    html = page(summary)
    assert EVIL not in html
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert html.startswith("<!doctype html>\n<html")
    assert html.count("<svg") >= 2
    assert html.count("<table>") == html.count("</table>") >= 3


def test_few_prompts_are_told_beside_their_intervals(tmp_path: Path) -> None:
    summary = run_in(tmp_path)
    assert "come from 3 prompts" in caution(summary)
    assert caution(summary) in (tmp_path / "report.md").read_text()
    assert "come from 3 prompts" in page(summary)
    for row in summary["rows"]:
        row["prompts"] = 20
    assert caution(summary) == ""

"""What the report says about a run's settings, and about ratios that there are none of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench_fakes import DYNA, FACTS, FULL, ChatCodec, FakeAr, FakeReference, FakeSpeculative

from dynaspec_cli.bench.execute import BenchOptions, Lab, execute
from dynaspec_cli.bench.report import verdicts
from dynaspec_cli.bench.report.words import describe_run
from dynaspec_cli.bench.spec import parse_specs
from dynaspec_cli.bench.suites import Prompt, Suite
from dynaspec_cli.config import TreeConfig

SUITE = Suite("s", tuple(Prompt("s", f"p{i}", "qa", ("a" * (i + 2),)) for i in range(3)), "h", "s")


def summary_of(*specs: str, new_tokens: int = 7, **changes: Any) -> dict[str, Any]:
    arms = [FakeAr() if spec == "ar" else FakeSpeculative(spec) for spec in specs]
    lab = Lab(arms, ChatCodec(), FakeReference(), FACTS)
    chosen = BenchOptions(tuple(parse_specs(list(specs))), (SUITE,), {"s": new_tokens}, **changes)
    return dict(execute(chosen, lab).summary)


def test_settings_that_were_given_are_in_the_report(tmp_path: Path) -> None:
    summary = summary_of(
        "ar", FULL,
        system="be brief", max_prompt_tokens=9, tree=TreeConfig(threshold=0.25), check_exact=True,
        drafter="/some/where/mine", out=tmp_path,
    )  # fmt: skip
    rows, settings = dict(describe_run(summary)), summary["settings"]
    assert rows["chat template, SHA-256"] == settings["chat_template_sha256"]
    assert rows["system prompt, SHA-256"] == settings["system_prompt_sha256"]
    assert len(rows["system prompt, SHA-256"]) == 64
    assert rows["tokens kept of a turn's text"] == "9"
    assert rows["tree threshold"] == "0.25"
    assert rows["exactness"] == "checked (--check-exact)"
    assert rows["drafter"] == "mine"
    for name in ("report.md", "report.html"):
        assert settings["system_prompt_sha256"] in (tmp_path / name).read_text()


def test_settings_that_were_not_given_have_no_row() -> None:
    rows = dict(describe_run(summary_of("ar", FULL)))
    assert not {
        "system prompt, SHA-256", "tokens kept of a turn's text", "tree threshold", "exactness",
        "tie bound", "assistant",
    } & set(rows)  # fmt: skip


@pytest.mark.parametrize(
    ("specs", "new_tokens", "words"),
    [
        (("ar", FULL), 1, "no token after the first"),
        ((FULL, DYNA), 7, "no ratio: ar was not run"),
    ],
)
def test_why_there_is_no_ratio(specs: tuple[str, ...], new_tokens: int, words: str) -> None:
    row = summary_of(*specs, new_tokens=new_tokens)["overall"][-1]
    assert row["speedup"] is None
    assert words in verdicts.speed_words(row)

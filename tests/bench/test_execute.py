"""The whole benchmark with scripted arms: files, exit codes, resuming, reports."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from bench_fakes import DYNA, FULL, Cheat, FakeAr, FakeSpeculative, KilledAt, lab

import dynaspec_cli
from dynaspec_cli.bench.execute import BenchOptions, Lab, Outcome, execute
from dynaspec_cli.bench.spec import parse_specs
from dynaspec_cli.bench.suites import Prompt, Suite
from dynaspec_cli.config import SamplingConfig
from dynaspec_cli.errors import DynaSpecError, ExactnessError, UsageError

SUITE = Suite(
    "s",
    tuple(Prompt("s", f"p{i}", "qa" if i % 2 else "code", ("a" * (i + 2),)) for i in range(4)),
    "hash",
    "s.jsonl",
)


class Peer(Cheat):
    """A peer with another numerics; it reports no steps."""

    def run(self, *args: Any) -> Any:
        from dataclasses import replace

        return replace(super().run(*args), steps=())


def honest() -> Lab:
    return lab(FakeAr(), FakeSpeculative(FULL), FakeSpeculative(DYNA, covered=False))


def options(*specs: str, **changes: Any) -> BenchOptions:
    given: dict[str, Any] = {
        "specs": tuple(parse_specs(list(specs or ("ar", FULL, DYNA)))),
        "suites": (SUITE,),
        "max_new_tokens": {"s": 7},
        "check_exact": True,
        "asked": {"model": "/some/where/model.gguf", "out": Path("/some/where/out")},
    }
    return BenchOptions(**(given | changes))


def test_all_files_are_written_and_agree(tmp_path: Path) -> None:
    outcome = execute(options(out=tmp_path), honest())
    outcome.check()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == json.loads(json.dumps(outcome.summary))
    assert summary["schema"] == 1
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 4 * 3
    assert {p.name for p in tmp_path.iterdir()} == {
        "samples.jsonl", "summary.json", "report.md", "report.html", "plots", "provenance.json",
    }  # fmt: skip
    contract = {
        "method", "suite", "task", "prompts", "new_tokens", "tokens_per_second", "speedup",
        "speedup_ci95", "mean_acceptance_length", "recovery", "coverage", "mean_shortlist_size",
        "acceptance_by_position", "num_spec_steps", "phase_ms",
    }  # fmt: skip
    for row in summary["rows"]:
        assert contract <= set(row)
    row = next(r for r in summary["rows"] if (r["task"], r["method"]) == ("all", DYNA))
    assert (row["identical"], row["ties"], row["mismatches"]) == (4, 0, 0)
    # Six decode tokens a prompt in three steps of 0.1 s, one draft token accepted in each.
    assert row["tokens_per_second"] == pytest.approx(20.0)
    assert row["speedup"] == pytest.approx(2.0)
    assert (row["mean_acceptance_length"], row["recovery"], row["coverage"]) == (2.0, 1.0, 0.5)


def test_provenance_says_what_and_where_without_folders(tmp_path: Path) -> None:
    execute(options(out=tmp_path), honest())
    text = (tmp_path / "provenance.json").read_text()
    record = json.loads(text)
    assert record["options"] == {"model": "model.gguf", "out": "out"}
    assert record["settings"]["versions"]["python"]
    assert record["machine"]["cores"] >= 1
    assert record["machine"]["cpu_flags"] is not None
    assert record["artifacts"] == {"drafter": {"bytes": 1}}
    assert record["settings"]["state"] == "complete"
    assert "/some/where" not in text


def test_a_cheat_ends_in_exit_code_3_with_method_and_prompt(tmp_path: Path) -> None:
    cheat = Cheat(DYNA, position=2, prompt_length=4)
    outcome = execute(options(out=tmp_path), lab(FakeAr(), FakeSpeculative(FULL), cheat))
    with pytest.raises(ExactnessError) as error:
        outcome.check()
    assert error.value.exit_code == 3
    assert f"{DYNA}: p1" in str(error.value)
    assert FULL not in str(error.value)
    report = (tmp_path / "report.md").read_text()
    assert "**1 wrong (p1), 0 ties, 3 identical**" in report
    assert "1 wrong (p1)" in (tmp_path / "report.html").read_text()


def test_a_peer_may_differ_without_failing_the_check() -> None:
    peer = Peer("llama.cpp", position=2)
    outcome = execute(options("ar", "llama.cpp"), lab(FakeAr(), peer))
    outcome.check()
    row = outcome.summary["overall"][1]
    assert (row["mismatches"], row["mean_acceptance_length"]) == (4, None)


def test_interrupted_run_keeps_and_reports_what_was_done_and_resumes(tmp_path: Path) -> None:
    broken = lab(KilledAt(3), FakeSpeculative(FULL), FakeSpeculative(DYNA))
    outcome = execute(options(out=tmp_path, warmup=0), broken)
    assert outcome.interrupted
    assert outcome.summary["settings"]["state"] == "interrupted"
    assert outcome.summary["overall"][0]["prompts"] == 3
    assert "interrupted" in (tmp_path / "report.md").read_text()
    again = honest()
    finished = execute(options(out=tmp_path, resume=True, warmup=0), again)
    assert finished.summary["overall"][0]["prompts"] == 4
    assert len(again.methods[0].calls) == 1  # type: ignore[attr-defined]
    whole = execute(options(warmup=0), honest())
    assert [r["tokens_per_second"] for r in finished.summary["rows"]] == [
        r["tokens_per_second"] for r in whole.summary["rows"]
    ]


def test_a_record_without_samples_is_not_gone_on_with(tmp_path: Path) -> None:
    """A published folder keeps its record and no samples: a new run there is a run of its own."""
    execute(options(out=tmp_path, warmup=0), honest())
    (tmp_path / "samples.jsonl").unlink()
    record = json.loads((tmp_path / "provenance.json").read_text())
    record["settings"] |= {"wall_s": 1e6, "started": "2000-01-01T00:00:00Z"}
    record["identity"]["seed"] = 77
    (tmp_path / "provenance.json").write_text(json.dumps(record))
    settings = execute(options(out=tmp_path, resume=True, warmup=0), honest()).summary["settings"]
    assert settings["wall_s"] < 1e6
    assert settings["started"] > "2001"
    execute(options(out=tmp_path, resume=True, warmup=0), honest())


def test_a_prompt_that_fails_leaves_a_summary_of_the_others(tmp_path: Path) -> None:
    def broken(error: Exception, call: int = 3) -> Lab:
        return lab(KilledAt(call, error), FakeSpeculative(FULL))

    outcome = execute(options(out=tmp_path, warmup=0), broken(DynaSpecError("too long")))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["settings"]["state"] == "interrupted"
    assert summary["overall"][0]["prompts"] == 3
    assert (tmp_path / "report.md").is_file()
    with pytest.raises(DynaSpecError, match="too long"):
        outcome.check()
    unsaved = execute(options(warmup=0), broken(RuntimeError("DefaultCPUAllocator")))
    assert unsaved.summary["overall"][0]["prompts"] == 3
    assert not unsaved.interrupted
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        unsaved.check()
    with pytest.raises(DynaSpecError, match="at once"):
        execute(options(warmup=0), broken(DynaSpecError("at once"), 0))


def test_a_wrong_answer_weighs_more_than_a_prompt_that_fails() -> None:
    broken = lab(KilledAt(3, DynaSpecError("too long")), Cheat(FULL, position=2))
    with pytest.raises(ExactnessError, match=r"p0, p1, p2.*too long"):
        execute(options("ar", FULL, warmup=0), broken).check()


def test_resume_refuses_another_run_and_says_what_differs(tmp_path: Path) -> None:
    execute(options(out=tmp_path), honest())
    before = (tmp_path / "samples.jsonl").read_bytes()
    with pytest.raises(DynaSpecError, match="another max_new_tokens;"):
        execute(options(out=tmp_path, resume=True, max_new_tokens={"s": 9}), honest())
    altered = options(
        out=tmp_path, resume=True, seed=1, check_exact=False, sampling=SamplingConfig(0.7)
    )
    with pytest.raises(DynaSpecError, match="another check_exact, seed, temperature;"):
        execute(altered, honest())
    for changed in ({"drafter": "org/other"}, {"assistant": "org/small"}):
        with pytest.raises(DynaSpecError, match=f"another {next(iter(changed))};"):
            execute(options(out=tmp_path, resume=True, **changed), honest())
    other = honest()
    other.artifacts = {"drafter": {"bytes": 2}}
    with pytest.raises(DynaSpecError, match=r"another artifacts \(drafter\);"):
        execute(options(out=tmp_path, resume=True), other)
    other.artifacts = {name: {"bytes": 2} for name in "abcd"}
    with pytest.raises(DynaSpecError, match=r"another artifacts \(a, b, c, 2 more\);"):
        execute(options(out=tmp_path, resume=True), other)
    assert (tmp_path / "samples.jsonl").read_bytes() == before


def test_samples_are_never_overwritten_or_mixed(tmp_path: Path) -> None:
    execute(options(out=tmp_path), honest())
    with pytest.raises(UsageError, match="--resume"):
        execute(options(out=tmp_path), honest())
    (tmp_path / "provenance.json").unlink()
    with pytest.raises(DynaSpecError, match="provenance"):
        execute(options(out=tmp_path, resume=True), honest())


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"repeats": 0}, "--repeats"),
        ({"warmup": -1}, "--warmup"),
        ({"max_new_tokens": {"s": 0}}, "--max-new-tokens"),
        ({"sampling": SamplingConfig(0.5)}, "--check-exact: expected greedy"),
        ({"specs": tuple(parse_specs([FULL]))}, "--check-exact: expected ar"),
        ({"resume": True}, "--resume: expected --out"),
        ({"suites": (SUITE, SUITE)}, "each suite once"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(UsageError, match=re.escape(part)):
        options(**changes)


def test_report_shows_losses_in_red_and_in_words(tmp_path: Path) -> None:
    class Slow(FakeSpeculative):
        def run(self, *args: Any) -> Any:
            from dataclasses import replace

            trace = super().run(*args)
            return replace(trace, decode_s=trace.decode_s * 4)

    execute(options(out=tmp_path), lab(FakeAr(), FakeSpeculative(FULL), Slow(DYNA)))
    page = (tmp_path / "report.html").read_text()
    words = f"{DYNA}: 0.50x, slower than ar (95 % interval 0.50 to 0.50)"
    assert re.search(rf'<li class="loss">{re.escape(words)}', page)
    assert '<td class="loss">0.50</td>' in page
    slower = f"{DYNA} is slower than ar on 2 of 2 tasks: code 0.50x, qa 0.50x."
    assert f'<li class="loss">{slower}</li>' in page
    assert f"- **{slower}**" in (tmp_path / "report.md").read_text()
    assert re.search(r'class="floss"><title>qa, dynaspec@8\+eagle2@4: 0.50x', page)
    assert f"- **{words}" in (tmp_path / "report.md").read_text()


def test_html_is_one_file_without_network_and_well_formed(tmp_path: Path) -> None:
    evil = Suite("s", (Prompt("s", "<script>x", "<b>task", ("a",)),), "h", "s.jsonl")
    execute(options(out=tmp_path, suites=(evil,)), honest())
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"(src|href)=|@import|url\(", page)
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "<script" not in page
    assert "<b>task" not in page
    assert 'name="viewport"' in page
    assert "prefers-color-scheme:dark" in page
    for definition in ("1 + accepted draft tokens", "paired bootstrap"):
        assert definition in page
    for picture in re.findall(r"<svg.*?</svg>", page, flags=re.S):
        ElementTree.fromstring(picture)
    names = {p.name for p in (tmp_path / "plots").iterdir()}
    assert names >= {"speedup.svg", "acceptance.svg", "phases.svg", "scripts.svg", "recovery.svg"}
    for path in (tmp_path / "plots").iterdir():
        assert "prefers-color-scheme" in path.read_text()
        ElementTree.fromstring(path.read_text())


def test_outcome_without_check_has_nothing_to_say() -> None:
    outcome = execute(options(check_exact=False), honest())
    assert isinstance(outcome, Outcome)
    outcome.check()
    assert "mismatches" not in outcome.summary["overall"][1]


KILLED = """
import sys, time
from pathlib import Path
from bench_fakes import FakeAr, FakeSpeculative
from test_execute import DYNA, FULL, execute, lab, options

class Slow(FakeAr):
    def run(self, *args):
        time.sleep(0.2)
        return super().run(*args)

execute(options(out=Path(sys.argv[1]), warmup=0), lab(Slow(), FakeSpeculative(FULL),
        FakeSpeculative(DYNA, covered=False)))
"""


def test_a_process_killed_by_signal_9_loses_at_most_the_prompt_in_flight(tmp_path: Path) -> None:
    here = Path(__file__).parent
    # A run goes on with its own code only, so the child needs this very package. Python looks in
    # the current folder before PYTHONPATH, and a checkout there holds another copy of it.
    package = Path(dynaspec_cli.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{package}"}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], env=environment, cwd=tmp_path
    )
    file = tmp_path / "samples.jsonl"
    deadline = time.monotonic() + 120
    while not (file.exists() and file.read_bytes().count(b"\n") >= 6):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept = len({json.loads(line)["id"] for line in file.read_text().splitlines()})
    again = honest()
    finished = execute(options(out=tmp_path, resume=True, warmup=0), again)
    assert 2 <= kept < 4
    assert len(again.methods[0].calls) == 4 - kept  # type: ignore[attr-defined]
    assert finished.summary["overall"][0]["prompts"] == 4
    assert not finished.interrupted


def test_a_resumed_run_takes_in_more_prompts_but_not_fewer(tmp_path: Path) -> None:
    few = dataclasses.replace(SUITE, prompts=SUITE.prompts[:3])
    first = execute(options(out=tmp_path, suites=(few,), warmup=0), honest())
    assert first.summary["overall"][0]["prompts"] == 3
    again = honest()
    second = execute(options(out=tmp_path, resume=True, warmup=0), again)
    assert len(again.methods[0].calls) == 1  # type: ignore[attr-defined]
    assert second.summary["overall"][0]["prompts"] == 4
    assert second.summary["settings"]["suites"][0]["prompts"] == 4
    kept = (tmp_path / "samples.jsonl").read_bytes()
    with pytest.raises(DynaSpecError, match="has 1 prompts that this one leaves out; give its"):
        execute(options(out=tmp_path, suites=(few,), resume=True, warmup=0), honest())
    assert (tmp_path / "samples.jsonl").read_bytes() == kept


def test_resuming_a_finished_run_only_writes_the_reports_anew(tmp_path: Path) -> None:
    first = execute(options(out=tmp_path), honest())
    (tmp_path / "report.md").unlink()
    record = (tmp_path / "provenance.json").read_bytes()
    again = honest()
    second = execute(options(out=tmp_path, resume=True), again)
    assert not again.methods[0].calls  # type: ignore[attr-defined]
    assert second.summary["rows"] == first.summary["rows"]
    for key in ("started", "wall_s", "commit", "versions"):
        assert second.summary["settings"][key] == first.summary["settings"][key]
    assert (tmp_path / "provenance.json").read_bytes() == record
    assert (tmp_path / "report.md").exists()

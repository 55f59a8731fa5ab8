"""``dynaspec bench`` as a command, with the engine replaced by scripted arms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_fakes import FULL, Cheat, FakeAr, FakeSpeculative, KilledAt, lab
from click.testing import CliRunner, Result

from dynaspec_cli.bench.execute import BenchOptions, Lab
from dynaspec_cli.commands import bench as command
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.main import cli


class NoEngine:
    pass


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    suite = tmp_path / "mini.jsonl"
    suite.write_text(
        '{"id": "m0", "task": "qa", "turns": ["abc"]}\n'
        '{"id": "m1", "task": "qa", "turns": ["abcd"]}\n'
    )
    arms: dict[str, Any] = {}

    def make(*args: str, methods: Any = None, default: Any = (["ar", FULL], None)) -> Result:
        def fake_lab(engine: Any, chosen: BenchOptions, *rest: Any) -> Lab:
            arms["options"] = chosen
            kinds = {"ar": FakeAr()}
            return lab(
                *(methods or [kinds.get(str(s), FakeSpeculative(str(s))) for s in chosen.specs])
            )

        monkeypatch.setattr(command, "load_engine", lambda *a, **k: NoEngine())
        monkeypatch.setattr(command, "_lab", fake_lab)
        monkeypatch.setattr("dynaspec_cli.bench.lab.default_methods", lambda engine: default)
        return CliRunner().invoke(cli, ["bench", *args], catch_exceptions=False)

    make.suite = str(suite)  # type: ignore[attr-defined]
    make.arms = arms  # type: ignore[attr-defined]
    return make


def test_json_is_the_summary_and_nothing_else(run: Any) -> None:
    result = run("--suite", run.suite, "--method", "ar", "--method", FULL, "--json")
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["schema"] == 1
    assert {r["suite"] for r in summary["rows"]} == {"mini"}


def test_table_names_every_method_and_says_the_verdict(run: Any) -> None:
    result = run("--suite", run.suite, "--method", "ar", "--method", FULL)
    assert "1.98x, faster than ar" in result.stdout  # 127 tokens in 64 steps of 0.1 s
    assert "tokens/s" in result.stdout


def test_cli_exit_code_3_names_the_prompt(run: Any) -> None:
    methods = [FakeAr(), Cheat(FULL, position=1)]
    result = run(
        "--suite", run.suite, "--method", "ar", "--method", FULL, "--check-exact", methods=methods
    )
    assert result.exit_code == 3
    assert result.stderr.count("\n") == 1
    assert "m0, m1" in result.stderr


def test_interrupt_is_130_and_names_a_report_only_where_there_is_one(
    run: Any, tmp_path: Path
) -> None:
    for call, finished in ((0, False), (2, True)):  # the first call is the warm-up's
        out = tmp_path / f"out{call}"
        args = ("--suite", run.suite, "--method", "ar", "--method", FULL, "--out", str(out))
        result = run(*args, methods=[KilledAt(call), FakeSpeculative(FULL)])
        assert result.exit_code == 130
        assert (out / "report.html").exists() is finished
        assert ("Report: " in result.stderr) is finished


def test_a_prompt_that_fails_is_told_after_the_others_were_printed(run: Any) -> None:
    args = ("--suite", run.suite, "--method", "ar", "--method", FULL)

    def broken() -> list[Any]:
        return [KilledAt(2, DynaSpecError("too long")), FakeSpeculative(FULL)]

    result = run(*args, methods=broken())
    assert result.exit_code == 1
    assert "tokens/s" in result.stdout
    assert result.stderr == "Error: prompt m1, method ar: too long\n"
    result = run(*args, "--json", methods=broken())
    assert result.exit_code == 1
    assert json.loads(result.stdout)["overall"][0]["prompts"] == 1


def test_a_file_with_a_suites_name_is_no_built_in_suite(run: Any, tmp_path: Path) -> None:
    own = tmp_path / "smoke.jsonl"
    own.write_text('{"id": "m0", "task": "qa", "turns": ["abc"]}\n')
    assert run("--suite", str(own), "--method", "ar").exit_code == 0
    assert run.arms["options"].max_new_tokens == {"smoke": 128}


def test_default_run_is_smoke_with_verdicts(run: Any) -> None:
    result = run("--limit", "1", default=(["ar", FULL], "left out"))
    chosen = run.arms["options"]
    assert result.exit_code == 0, result.stderr
    assert [s.name for s in chosen.suites] == ["smoke"]
    assert chosen.check_exact
    assert chosen.max_new_tokens == {"smoke": 24}
    assert "left out" in result.stderr
    assert "all 8 identical" in result.stdout
    assert not run("--suite", run.suite, "--method", "ar").stderr
    assert not run.arms["options"].check_exact
    assert run.arms["options"].max_new_tokens == {"mini": 128}


def test_preset_gives_settings_and_flags_go_before_it(run: Any, tmp_path: Path) -> None:
    for name in ("spec_bench", "human_eval"):
        (tmp_path / f"{name}.jsonl").write_text('{"id": "x", "task": "code", "turns": ["abc"]}\n')
    where = ("--preset", "dynaspec-paper", "--data-dir", str(tmp_path))
    assert run(*where).exit_code == 0
    chosen = run.arms["options"]
    assert chosen.max_new_tokens == {"spec-bench": 1024, "human-eval": 512}
    assert (chosen.tree.depth, chosen.tree.width) == (6, 10)
    assert "dynaspec@27000+eagle2@59" in {str(s) for s in chosen.specs}
    assert (
        run(*where, "--max-new-tokens", "5", "--tree-width", "3", "--method", "ar").exit_code == 0
    )
    chosen = run.arms["options"]
    assert (chosen.max_new_tokens["human-eval"], chosen.tree.width) == (5, 3)
    assert [str(s) for s in chosen.specs] == ["ar"]
    facts = json.loads(CliRunner().invoke(cli, ["bench", "--list-presets", "--json"]).stdout)
    assert "temperature" not in facts["presets"]["dynaspec-paper"]  # presets leave it alone
    listed = CliRunner().invoke(cli, ["bench", "--list-presets"])
    for preset in ("dynaspec-paper", "dyspec-paper", "eagle2-paper", "fr-spec-paper", "spec-bench"):
        assert f"{preset}: " in listed.stdout
    assert listed.stdout.count("source") >= 5


def test_the_preset_that_samples_as_the_model_recommends(run: Any, tmp_path: Path) -> None:
    """The default model's file: 1, 64, 0.95; a flag goes before it."""
    for name in ("spec_bench", "human_eval"):
        (tmp_path / f"{name}.jsonl").write_text('{"id": "x", "task": "code", "turns": ["abc"]}\n')
    where = ("--preset", "recommended-sampling", "--data-dir", str(tmp_path))

    def sampled(*more: str) -> tuple[float, ...]:
        assert run(*where, *more).exit_code == 0
        chosen = run.arms["options"].sampling
        return chosen.temperature, chosen.top_k, chosen.top_p, chosen.min_p

    assert sampled() == (1.0, 64, 0.95, 0.0)
    assert sampled("--top-k", "5", "--min-p", "0.1") == (1.0, 5, 0.95, 0.1)
    assert sampled("--sampling", "options", "--temperature", "0.5") == (0.5, 0, 1.0, 0.0)


def test_sweep_runs_the_grid_and_draws_the_frontier(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(
        "--suite", run.suite, "--method", "ar", "--method", "full+eagle2",
        "--method", "dynaspec+eagle2", "--sweep", "shortlist-size=512,1024",
        "--sweep", "tree-size=4,8", "--out", str(out),
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert [str(s) for s in run.arms["options"].specs] == [
        "ar", "full+eagle2@4", "full+eagle2@8", "dynaspec@512+eagle2@4", "dynaspec@512+eagle2@8",
        "dynaspec@1024+eagle2@4", "dynaspec@1024+eagle2@8",
    ]  # fmt: skip
    assert (out / "plots" / "frontier.svg").exists()


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--sweep", "tree-depth=1"], "--sweep tree-depth=1"),
        (["--sweep", "tree-size=1,x"], "'x'"),
        (["--sweep", "tree-size=1,1"], "each value once"),
        (["--method", "ar", "--sweep", "tree-size=2"], "with a tree"),
        (["--preset", "none"], "--preset"),
        (["--method", "oak"], "--method oak"),
        (["--suite", "spec-bench"], "--data-dir"),
        (["--tree-size", "0"], "--tree-size"),
        (["--temperature", "nan"], "--temperature"),
        (["--method", "ar", "--repeats", "0"], "--repeats"),
        (["--method", "ar", "--resume"], "--out"),
        (["--method", "ar", "--assistant", "x"], "--assistant: expected --method transformers-a"),
        (["--assistant", "x"], "got the default methods"),
    ],
)
def test_cli_refuses_impossible_options_with_one_line_and_code_2(
    run: Any, args: list[str], part: str
) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert part in result.stderr

"""What ``dynaspec generate`` hands to the engine and what it prints, with a fake engine."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dynaspec_cli.engine.events import Comparison, Divergence, StepStats
from dynaspec_cli.errors import DynaSpecError

from .conftest import FakeEngine

TEXT = " Paris, the city"
STEP = StepStats(1, 0, 1)


def test_text_on_stdout_everything_else_on_stderr(run: Callable[..., Any]) -> None:
    result = run("generate", "The capital of France is")
    assert result.exit_code == 0
    assert result.stdout == TEXT + "\n"
    assert "Note: a notice" in result.stderr
    for part in ("6.0 tokens/s", "2.00 tokens per verification", "by position", "cpu-avx2", "75"):
        assert part in result.stderr
    assert "\x1b" not in result.stderr  # no terminal, no colours, no cursor movements


def test_no_stream_prints_the_same(run: Callable[..., Any]) -> None:
    assert run("generate", "x", "--no-stream").stdout == TEXT + "\n"


def test_quiet(run: Callable[..., Any]) -> None:
    result = run("generate", "x", "--quiet")
    assert (result.stdout, result.stderr) == (TEXT + "\n", "")


def test_json_is_one_object_and_nothing_else(run: Callable[..., Any]) -> None:
    result = run("generate", "x", "--json")
    data = json.loads(result.stdout)
    assert data["schema"] == 1
    assert data["text"] == TEXT
    assert data["finish_reason"] == "length"
    assert result.stdout.count("\n") == 1
    for key in (
        "token_ids", "prompt_tokens", "new_tokens", "tokens_per_second", "time_to_first_token_s",
        "load_s", "mean_acceptance_length", "num_spec_steps", "num_draft_tokens",
        "num_accepted_draft_tokens", "mean_shortlist_size", "phase_ms", "settings",
    ):  # fmt: skip
        assert key in data


def test_options_reach_the_engine(
    run: Callable[..., Any], engine: FakeEngine, tmp_path: Path
) -> None:
    result = run(
        "generate", "hello", "--model", "m", "--dtype", "float32", "--device", "cpu",
        "--threads", "2", "--seed", "5", "--max-new-tokens", "7", "--temperature", "0.5",
        "--top-k", "9", "--top-p", "0.9", "--min-p", "0.1", "--stop", "a b", "--stop", "c",
        "--drafter", str(tmp_path), "--drafter-option", "taps=2, 5", "--drafter-option",
        "norm-output=true", "--shortlist", "nanospec", "--shortlist-size", "100",
        "--tree", "chain", "--tree-size", "8", "--tree-depth", "3", "--tree-width", "2",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    loaded = {k: v for k, v in engine.loaded.items() if k != "progress"}
    assert loaded == {
        "model": "m", "dtype": "float32", "device": "cpu", "threads": 2, "drafter": str(tmp_path),
        "drafter_options": {"taps": "2, 5", "norm_output": "true"},
    }  # fmt: skip
    config = engine.config
    sampling = config.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.5, 9, 0.9)
    assert (sampling.min_p, sampling.seed) == (0.1, 5)
    assert (config.max_new_tokens, config.stop) == (7, ("a b", "c"))
    assert (config.shortlist.method, config.shortlist.size) == ("nanospec", 100)
    tree = config.tree
    assert (tree.policy, tree.size, tree.depth, tree.width) == ("chain", 8, 3, 2)
    assert engine.text == "hello"


@pytest.mark.parametrize(
    ("args", "stdin"),
    [
        ((), "from stdin\n"),
        (("-",), "from stdin\r\n"),
        (("--prompt-file", "-"), "from stdin"),
        (("--prompt-file", "FILE"), None),
    ],
)
def test_prompt_sources(
    run: Callable[..., Any],
    engine: FakeEngine,
    tmp_path: Path,
    args: tuple[str, ...],
    stdin: str | None,
) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"from stdin\n")
    args = tuple(str(path) if arg == "FILE" else arg for arg in args)
    assert run("generate", *args, stdin=stdin).exit_code == 0
    assert engine.text == "from stdin"


def test_only_one_line_break_is_dropped(run: Callable[..., Any], engine: FakeEngine) -> None:
    run("generate", stdin=" two\n\n")
    assert engine.text == " two\n"
    run("generate", "argument\n")
    assert engine.text == "argument\n"


@pytest.mark.parametrize(
    ("args", "stdin", "message"),
    [
        (("",), None, "the prompt is empty"),
        (("  \n ",), None, "the prompt is empty"),
        ((), "", "the prompt is empty"),
        ((), b"\xff\xfe", "expected UTF-8"),
        (("--prompt-file", "/none/prompt"), None, "cannot be read"),
        (("x", "--prompt-file", "-"), "y", "got both"),
        (("x", "--system", "s"), None, "--system: needs --chat"),
        (("x", "--tree-size", "0"), None, "--tree-size: expected 1 to 1024"),
        (("x", "--tree-size", "many"), None, "not a valid int"),
        (("x", "--tree-depth", "0"), None, "--tree-depth"),
        (("x", "--tree-width", "-1"), None, "--tree-width"),
        (("x", "--tree", "oak"), None, "expected a tree of"),
        (("x", "--temperature", "-1"), None, "--temperature: expected a finite number"),
        (("x", "--temperature", "nan"), None, "--temperature: expected a finite number"),
        (("x", "--temperature", "inf"), None, "--temperature: expected a finite number"),
        (("x", "--top-p", "0"), None, "--top-p"),
        (("x", "--top-p", "nan"), None, "--top-p"),
        (("x", "--min-p", "2"), None, "--min-p"),
        (("x", "--top-k", "-1"), None, "--top-k"),
        (("x", "--max-new-tokens", "0"), None, "--max-new-tokens: expected at least 1"),
        (("x", "--stop", ""), None, "--stop: expected a non-empty text"),
        (("x", "--threads", "0"), None, "--threads: expected at least 1"),
        (("x", "--shortlist", "no-such"), None, "--shortlist: expected full"),
        (("x", "--shortlist-size", "0"), None, "--shortlist-size"),
        (("x", "--dtype", "int4"), None, "is not one of"),
        (("x", "--compare", "--drafter", "none"), None, "--compare: needs a drafter"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(
    run: Callable[..., Any],
    engine: FakeEngine,
    args: tuple[str, ...],
    stdin: Any,
    message: str,
) -> None:
    result = run("generate", *args, stdin=stdin)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert engine.loaded == {}


def test_no_drafter_asks_for_no_speculation(run: Callable[..., Any], engine: FakeEngine) -> None:
    run("generate", "x")
    assert engine.speculative is True
    run("generate", "x", "--drafter", "none")
    assert engine.speculative is False


def test_chat(run: Callable[..., Any], engine: FakeEngine) -> None:
    assert run("generate", "hello", "--chat", "--system", "you").exit_code == 0
    assert engine.prompt == [3, 5]
    result = run("generate", "hello", "--chat", "--json")
    assert engine.prompt == [5]
    settings = json.loads(result.stdout)["settings"]
    assert (settings["chat"], settings["system"]) == (True, None)


def test_an_error_after_some_text_starts_on_its_own_line(
    run: Callable[..., Any], engine: FakeEngine
) -> None:
    engine.error, engine.fail_after = DynaSpecError("broken"), 2
    result = run("generate", "x")
    assert (result.exit_code, result.stdout) == (1, " Paris,\n")
    assert result.stderr == "Error: broken\n"
    assert run("generate", "x", "--json").stdout == ""


@pytest.mark.parametrize("json_flag", [False, True])
def test_interrupt_keeps_what_was_generated(
    run: Callable[..., Any], engine: FakeEngine, json_flag: bool
) -> None:
    before = signal.getsignal(signal.SIGINT)
    engine.on_word = lambda i: os.kill(os.getpid(), signal.SIGINT) if i == 1 else None
    result = run("generate", "x", *(["--json"] if json_flag else []))
    assert result.exit_code == 130
    if json_flag:
        data = json.loads(result.stdout)
        assert (data["text"], data["finish_reason"]) == (" Paris,", "interrupted")
    else:
        assert result.stdout == " Paris,\n"
        assert "interrupted" in result.stderr
    assert signal.getsignal(signal.SIGINT) == before


def test_second_interrupt_does_not_wait(run: Callable[..., Any], engine: FakeEngine) -> None:
    def twice(word: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    engine.on_word = twice
    assert run("generate", "x").exit_code == 130


def compared(engine: FakeEngine, divergence: Divergence | None) -> Comparison:
    plain = engine.result("", [STEP], "length")
    return Comparison(0.5, divergence is None, divergence, plain)


def test_compare_without_a_drafter_fails_before_anything_is_decoded(
    run: Callable[..., Any], engine: FakeEngine
) -> None:
    engine.drafter = None
    result = run("generate", "x", "--compare")
    assert result.exit_code == 1
    assert "--compare: there is no drafter" in result.stderr
    assert engine.prompt is None


def test_compare_identical(run: Callable[..., Any], engine: FakeEngine) -> None:
    engine.comparison = compared(engine, None)
    result = run("generate", "x", "--compare")
    assert result.exit_code == 0
    assert "0.50 x, SLOWER" in result.stderr
    assert "identical" in result.stderr
    data = json.loads(run("generate", "x", "--compare", "--json").stdout)
    assert (data["speedup"], data["identical"], data["first_divergence"]) == (0.5, True, None)


@pytest.mark.parametrize(
    ("tie", "temperature", "code"), [(True, "0", 0), (False, "0", 3), (False, "1", 0)]
)
def test_compare_different(
    run: Callable[..., Any], engine: FakeEngine, tie: bool, temperature: str, code: int
) -> None:
    engine.comparison = compared(engine, Divergence(2, 5, 6, 0.25, tie))
    result = run("generate", "x", "--compare", "--json", "--temperature", temperature)
    assert result.exit_code == code
    data = json.loads(result.stdout)
    assert data["identical"] is False
    assert data["first_divergence"]["position"] == 2
    assert ("Error: the outputs differ at token 2" in result.stderr) == (code == 3)


@pytest.mark.parametrize("kind", ["raised", "kept"])
def test_interrupted_comparison_is_no_difference(
    run: Callable[..., Any], engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    short = Comparison(
        1.0, False, Divergence(0, 1, -1, 9.0, False), engine.result("", [], "interrupted")
    )

    def compare(prompt: Any, result: Any, config: Any) -> Any:
        if kind == "raised":
            raise KeyboardInterrupt
        return replace(result, comparison=short)

    monkeypatch.setattr(engine, "compare", compare)
    result = run("generate", "x", "--compare", "--json")
    assert result.exit_code == 130
    data = json.loads(result.stdout)
    assert data["text"] == TEXT
    assert "identical" not in data


def test_compare_without_a_drafter_says_so(run: Callable[..., Any], engine: FakeEngine) -> None:
    engine.drafter, engine.words = None, (" Paris",)
    engine_result = engine.result
    engine.result = lambda text, steps, reason: engine_result(text, [], reason)  # type: ignore[method-assign]
    result = run("generate", "x", "--compare")
    assert result.exit_code == 1
    assert "there is no drafter" in result.stderr


def test_the_fallback_is_shown(run: Callable[..., Any], engine: FakeEngine) -> None:
    engine_result = engine.result

    def with_fallback(text: str, steps: list[StepStats], reason: Any) -> Any:
        result = engine_result(text, steps, reason)
        return replace(result, settings={**result.settings, "kernels": "torch"})

    engine.result = with_fallback  # type: ignore[method-assign]
    assert "pure-PyTorch fallback" in run("generate", "x").stderr


@pytest.mark.parametrize(("device", "place"), [("cpu", "cpu"), ("cuda:1", "cuda")])
def test_the_fallback_names_the_device_that_lacks_kernels(device: str, place: str) -> None:
    from dynaspec_cli.ui.panel import rows

    result = FakeEngine().result(" x", [STEP], "length")
    settings = {**result.settings, "kernels": "torch", "device": device}
    words = dict(rows(replace(result, settings=settings)))["backend"]
    assert f"no compiled kernels for {place};" in words

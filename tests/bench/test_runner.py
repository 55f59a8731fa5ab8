"""Turns, order, pairing, resuming, and catching a method that cheats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_fakes import (
    EOS,
    Cheat,
    FakeAr,
    FakeCodec,
    FakeReference,
    FakeSpeculative,
    KilledAt,
    greedy,
    next_token,
)

from dynaspec_cli.bench.exactness import compare_turn
from dynaspec_cli.bench.method import TurnTrace
from dynaspec_cli.bench.prompts import PromptFormat
from dynaspec_cli.bench.runner import Plan, Runner
from dynaspec_cli.bench.store import SampleStore
from dynaspec_cli.bench.suites import Prompt, Suite
from dynaspec_cli.errors import DynaSpecError

PROMPTS = tuple(
    Prompt(
        "s", f"p{i}", "qa" if i % 2 else "code", ("a" * (i + 2),) + (("more",) if i == 1 else ())
    )
    for i in range(6)
)
SUITE = Suite("s", PROMPTS, "0", "s.jsonl")


def runner(methods: list[Any], store: SampleStore | None = None, **plan: Any) -> Runner:
    settings = {"suites": (SUITE,), "max_new_tokens": {"s": 6}} | plan
    codec = FakeCodec()
    return Runner(
        Plan(**settings),
        methods,
        PromptFormat(codec),
        codec,
        store or SampleStore(None),
        FakeReference(),
    )


def run(methods: list[Any], store: SampleStore | None = None, **plan: Any) -> list[Any]:
    store = store or SampleStore(None)
    runner(methods, store, **plan).run()
    return store.samples


def test_every_prompt_runs_once_a_method_and_repeat() -> None:
    samples = run([FakeAr(), FakeSpeculative()], repeats=2)
    keys = {(s.id, s.method, s.repeat) for s in samples}
    assert len(samples) == len(keys) == 6 * 2 * 2


def test_all_methods_get_the_same_ids_tokens_and_seed() -> None:
    ar, full, other = FakeAr(), FakeSpeculative(), Cheat(position=2)
    run([ar, full, other], warmup=0)
    assert sorted(ar.calls) == sorted(full.calls) == sorted(other.calls)
    # The second turn of p1 holds the answer of ar, also for the arm that answered differently.
    first = FakeCodec().encode("aaa", start=True)
    second = [*first, *greedy(first, 6), *FakeCodec().encode("\n\nmore", start=False)]
    assert tuple(second) in {call[0] for call in other.calls}


def test_the_order_of_methods_is_random_but_decided_by_the_seed() -> None:
    def order(seed: int) -> list[str]:
        log: list[str] = []
        methods = [FakeAr(), FakeSpeculative(), FakeSpeculative("dynaspec+eagle2@4")]
        for method in methods:

            def logged(*args: Any, method: Any = method, run: Any = method.run) -> Any:
                log.append(method.name)
                return run(*args)

            method.run = logged  # type: ignore[method-assign]
        run(methods, warmup=0, seed=seed)
        return log

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert len({tuple(order(1)[i : i + 3]) for i in range(0, 18, 3)}) > 1


def test_warm_up_runs_are_thrown_away() -> None:
    ar = FakeAr()
    samples = run([ar], warmup=3)
    assert len(ar.calls) == 3 + 7
    assert len(samples) == 6
    assert ar.prepared == 1


def test_honest_methods_are_identical() -> None:
    samples = run([FakeAr(), FakeSpeculative()], check_exact=True)
    assert [s.exact["verdict"] for s in samples if s.method != "ar"] == ["identical"] * 6
    assert {s.exact for s in samples if s.method == "ar"} == {None}


def test_a_cheat_is_caught_at_its_first_wrong_token() -> None:
    prompt = PROMPTS[4]
    length = len(FakeCodec().encode(prompt.turns[0], start=True))
    cheat = Cheat(position=3, prompt_length=length)
    samples = run([FakeAr(), cheat], check_exact=True)
    verdicts = {s.id: s.exact for s in samples if s.method == cheat.name}
    assert {i for i, e in verdicts.items() if e["verdict"] == "mismatch"} == {"p4"}
    (turn,) = verdicts["p4"]["turns"]
    context = FakeCodec().encode(prompt.turns[0], start=True)
    right = next_token([*context, *greedy(context, 3)])
    assert (turn["position"], turn["token_id"], turn["ar_token_id"]) == (3, right + 1, right)
    assert turn["logit_gap"] == 5.0


def trace(ids: tuple[int, ...], reason: str = "length") -> TurnTrace:
    return TurnTrace(3, ids, 0.1, 0.1, reason)


CONTEXT = (5, 6, 7)


def test_a_near_tie_of_both_ids_is_a_tie_and_only_below_the_bound() -> None:
    own = greedy(CONTEXT, 4)
    other = (*own[:2], own[2] + 1, 9)
    for gap, dtype, verdict in [
        (0.0009, "float32", "tie"),
        (0.0011, "float32", "mismatch"),
        (0.49, "bfloat16", "tie"),
        (0.51, "bfloat16", "mismatch"),
    ]:
        reference = FakeReference(gap, dtype)
        found = compare_turn(CONTEXT, trace(other), trace(own), reference)
        assert (found.verdict, found.position, found.top2_gap) == (verdict, 2, gap)
        assert reference.asked == [(*CONTEXT, *own[:2])]


def test_where_rows_keep_their_bits_only_a_peer_can_tie() -> None:
    own = greedy(CONTEXT, 4)
    other = (*own[:2], own[2] + 1, 9)
    reference = FakeReference(0.0009, "float32", bit_exact=True)
    assert compare_turn(CONTEXT, trace(other), trace(own), reference).verdict == "mismatch"
    assert compare_turn(CONTEXT, trace(other), trace(own), reference, peer=True).verdict == "tie"


def test_a_foreign_token_where_two_others_tie_is_still_a_mismatch() -> None:
    own = greedy(CONTEXT, 4)
    foreign = (own[0], (own[1] + 20) % 60, 9, 9)
    found = compare_turn(CONTEXT, trace(foreign), trace(own), FakeReference(0.0))
    assert (found.verdict, found.top2_gap, found.logit_gap) == ("mismatch", 0.0, 10.0)


def test_an_answer_that_stops_short_is_a_mismatch() -> None:
    own = greedy(CONTEXT, 4)
    reference = FakeReference(0.0)
    assert compare_turn(CONTEXT, trace(own[:3]), trace(own), reference).verdict == "mismatch"
    # With end-of-text as the missing id the target is asked how close it was.
    found = compare_turn(CONTEXT, trace(own[:3], "eos"), trace(own), reference)
    assert (found.verdict, found.position, found.token_id, found.logit_gap) == (
        "mismatch",
        3,
        EOS,
        10.0,
    )


def test_a_killed_run_resumes_and_loses_only_the_prompt_in_flight(tmp_path: Path) -> None:
    ar = KilledAt(4)
    with pytest.raises(KeyboardInterrupt):
        run([ar, FakeSpeculative()], SampleStore(tmp_path), warmup=0)
    file = tmp_path / "samples.jsonl"
    kept = [json.loads(row)["id"] for row in file.read_text().splitlines()]
    assert kept == ["p0", "p0", "p1", "p1", "p2", "p2"]
    # A kill in the middle of a write leaves half a prompt and half a line.
    rows = file.read_text().splitlines(keepends=True)
    file.write_text("".join(rows[:5]) + rows[5][:40])
    store = SampleStore(tmp_path)
    again, speculative = FakeAr(), FakeSpeculative()
    store.resume(["ar", speculative.name])
    assert {s.id for s in store.samples} == {"p0", "p1"}
    run([again, speculative], store, warmup=0)
    assert [s.id for s in store.samples if s.method == "ar"] == [p.id for p in PROMPTS]
    assert len(again.calls) == 4
    whole = run([FakeAr(), FakeSpeculative()], warmup=0)
    assert store.samples == whole
    reread = SampleStore(tmp_path)
    reread.resume(["ar", speculative.name])
    assert reread.samples == whole


def test_resume_refuses_a_file_that_is_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text("hello\n")
    with pytest.raises(DynaSpecError, match="no JSON object"):
        SampleStore(tmp_path).resume(["ar"])
    (tmp_path / "samples.jsonl").write_text('{"id": 3}\n')
    with pytest.raises(DynaSpecError, match="schema 1"):
        SampleStore(tmp_path).resume(["ar"])


def test_an_error_names_prompt_and_method() -> None:
    class Broken(FakeAr):
        def run(self, *args: Any) -> TurnTrace:
            raise DynaSpecError("prompt of 9 tokens is longer than the context of 8")

    with pytest.raises(DynaSpecError, match="prompt p0, method ar: prompt of 9"):
        run([Broken()])

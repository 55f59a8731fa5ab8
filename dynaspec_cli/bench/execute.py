"""A whole benchmark: lab and options in; samples, summary, reports and the exactness verdict
out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynaspec_cli.bench import provenance
from dynaspec_cli.bench.method import Codec, Method, Reference
from dynaspec_cli.bench.metrics import summarize
from dynaspec_cli.bench.prompts import PromptFormat
from dynaspec_cli.bench.report.write import write_reports
from dynaspec_cli.bench.runner import Plan, ProgressCallback, Runner
from dynaspec_cli.bench.spec import MethodSpec
from dynaspec_cli.bench.store import FILE as SAMPLES
from dynaspec_cli.bench.store import SampleStore, write_atomic
from dynaspec_cli.bench.suites import Suite
from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.engine.stats import TIE_BOUND
from dynaspec_cli.errors import DynaSpecError, ExactnessError, UsageError


@dataclass(frozen=True)
class BenchOptions:
    """A benchmark as asked for; checked where it is made. ``max_new_tokens`` is by suite.

    ``asked`` holds every option as given, for provenance.
    """

    specs: tuple[MethodSpec, ...]
    suites: tuple[Suite, ...]
    max_new_tokens: Mapping[str, int]
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    tree: TreeConfig = field(default_factory=TreeConfig)
    prompt_format: str = "auto"
    system: str | None = None
    max_prompt_tokens: int | None = None
    repeats: int = 1
    warmup: int = 1
    seed: int = 0
    check_exact: bool = False
    out: Path | None = None
    resume: bool = False
    drafter: str = "auto"
    draft_head: str = "stored"
    assistant: str | None = None
    preset: str | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [suite.name for suite in self.suites]
        if len(set(names)) != len(names):
            raise UsageError(f"--suite: expected each suite once, got {', '.join(names)}")
        if not self.specs:
            raise UsageError("--method: expected at least one, got none")
        for option, value, least in (
            ("--repeats", self.repeats, 1),
            ("--warmup", self.warmup, 0),
            ("--max-new-tokens", min(self.max_new_tokens.values()), 1),
        ):
            if value < least:
                raise UsageError(f"{option}: expected at least {least}, got {value}")
        if self.check_exact and not self.sampling.greedy:
            raise UsageError(
                "--check-exact: expected greedy decoding (--temperature 0): sampled answers "
                f"differ by chance, got temperature {self.sampling.temperature}"
            )
        if self.check_exact and "ar" not in {str(spec) for spec in self.specs}:
            raise UsageError(
                "--check-exact: expected ar among the methods, whose answers it compares with"
            )
        if self.resume and self.out is None:
            raise UsageError("--resume: expected --out with the folder of the earlier run")


@dataclass
class Lab:
    """What a benchmark measures with. ``facts`` describe the model for summary and provenance,
    ``artifacts`` its files (name -> bytes, sha256)."""

    methods: Sequence[Method]
    codec: Codec
    reference: Reference
    facts: Mapping[str, Any]
    artifacts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """``summary`` is the object of summary.json; ``interrupted``: Ctrl-C ended the run early;
    ``failure``: what a prompt failed with, which ended it too."""

    summary: Mapping[str, Any]
    interrupted: bool
    failure: Exception | None = None

    def check(self) -> None:
        """Raise ExactnessError (exit code 3) where a method of ours gave a wrong answer, else the
        failure."""
        wrong: dict[str, list[str]] = {}
        for row in self.summary["overall"]:
            kind = self.summary["settings"]["kinds"][row["method"]]
            if kind == "speculative" and row.get("mismatch_ids"):
                wrong[row["method"]] = row["mismatch_ids"]
        if wrong:
            named = "; ".join(f"{method}: {', '.join(ids)}" for method, ids in wrong.items())
            raise ExactnessError(
                "--check-exact: answers differ from the target's own beyond a numerical tie "
                f"({named})"
                + (f"; and the run ended early: {self.failure}" if self.failure else "")
            )
        if self.failure is not None:
            raise self.failure


def execute(
    options: BenchOptions, lab: Lab, progress: ProgressCallback = lambda done, total, what: None
) -> Outcome:
    """Run, store and report. Ctrl-C, or a prompt that fails, keeps every finished prompt and still
    writes the reports; where there is none, the failure is raised."""
    prompt_format = PromptFormat(
        lab.codec, options.prompt_format, options.max_prompt_tokens, options.system
    )
    settings = _settings(options, lab, prompt_format)
    store = _open_store(options, _identity(settings, lab.artifacts))
    begun, kept = time.perf_counter(), len(store.samples)
    settings |= _earlier(options, bool(kept))
    machine = provenance.machine()  # its load is that before the first prompt
    if not kept:
        _write_provenance(options, lab, settings, machine)
    plan = Plan(
        suites=options.suites,
        max_new_tokens=dict(options.max_new_tokens),
        repeats=options.repeats,
        warmup=options.warmup,
        seed=options.seed,
        check_exact=options.check_exact,
    )
    interrupted = False
    failure: Exception | None = None
    runner = Runner(plan, lab.methods, prompt_format, lab.codec, store, lab.reference, progress)
    try:
        runner.run()
    except KeyboardInterrupt:
        interrupted = True
    except Exception as error:  # out of memory as well
        if not store.samples:
            raise
        failure = error  # hours of finished prompts are worth a summary all the same
    settings |= {
        "state": "interrupted" if interrupted or failure else "complete",
    }
    measured = len(store.samples) > kept
    if measured:
        settings["wall_s"] = round(settings["wall_s"] + time.perf_counter() - begun, 1)
    summary = summarize(
        store.samples,
        options.specs,
        settings,
        default_nodes=options.tree.nodes,
        seed=options.seed,
        checked=options.check_exact,
    )
    if options.out is not None:
        write_atomic(options.out / "summary.json", json.dumps(summary, indent=1) + "\n")
        if measured or not kept:  # else the reports are written anew of what was measured then
            _write_provenance(options, lab, settings, machine)
        if store.samples:
            write_reports(options.out, summary)
    return Outcome(summary, interrupted, failure)


def _settings(options: BenchOptions, lab: Lab, prompt_format: PromptFormat) -> dict[str, Any]:
    sampling, tree = options.sampling, options.tree
    dtype = str(lab.facts["dtype"])
    return {
        **lab.facts,
        "drafter": provenance.published(options.drafter),
        "draft_head": options.draft_head,
        "assistant": provenance.published(options.assistant),
        "cpu": provenance.machine()["cpu"],
        "methods": [str(spec) for spec in options.specs],
        "kinds": {str(spec): spec.kind for spec in options.specs},
        "suites": [
            {
                "name": suite.name,
                "prompts": len(suite.prompts),
                "sha256": suite.sha256,
            }
            for suite in options.suites
        ],
        "max_new_tokens": dict(options.max_new_tokens),
        "max_prompt_tokens": options.max_prompt_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        **prompt_format.settings(),
        "repeats": options.repeats,
        "warmup": options.warmup,
        "seed": options.seed,
        "tree_depth": tree.depth,
        "tree_width": tree.width,
        "tree_threshold": tree.threshold,
        "tree_draw": tree.draw,
        "tree_verification": tree.verification,
        "draft_temperature": tree.draft_temperature,
        "tree_acceptance": None if tree.acceptance is None else list(tree.acceptance),
        "tree_expansion": None if tree.expansion is None else list(tree.expansion),
        "ddd_steps": None if tree.ddd_steps is None else list(tree.ddd_steps),
        "tree_size": tree.nodes,
        "check_exact": options.check_exact,
        "tie_bound": TIE_BOUND[dtype] if options.check_exact else None,
        "preset": options.preset,
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "started": provenance.now(),
    }


_IDENTITY = (
    "model", "drafter", "draft_head", "assistant", "head_hash", "dtype", "device", "threads",
    "kernels", "methods", "suites", "max_new_tokens", "max_prompt_tokens", "temperature", "top_k",
    "top_p", "min_p", "prompt_format", "chat_template_sha256", "system_prompt", "repeats", "seed",
    "tree_depth", "tree_width", "tree_size", "tree_threshold", "tree_draw", "draft_temperature",
    "tree_acceptance", "tree_expansion", "ddd_steps", "tree_verification", "check_exact", "warmup",
    "target_kernels", "cpu", "versions", "commit",
)  # fmt: skip
"""Settings that an earlier part of a run must share with a later one."""


def _identity(settings: Mapping[str, Any], artifacts: Mapping[str, Any]) -> dict[str, Any]:
    # How many prompts a file gave is not in it: a larger --limit takes the same ones and more.
    suites = [{key: suite[key] for key in ("name", "sha256")} for suite in settings["suites"]]
    return {key: settings.get(key) for key in _IDENTITY} | {
        "suites": suites,
        "artifacts": dict(artifacts),
    }


def _earlier(options: BenchOptions, resumed: bool) -> dict[str, Any]:
    """When the run began and the seconds that its earlier parts took. Without samples to go on from
    there are none, whatever record another run has left there."""
    if options.out is None or not resumed:
        return {"wall_s": 0.0}
    try:
        record = json.loads((options.out / provenance.FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"wall_s": 0.0}
    before = record.get("settings", {})
    return {"wall_s": float(before.get("wall_s") or 0.0)} | (
        {"started": before["started"]} if "started" in before else {}
    )


def _open_store(options: BenchOptions, identity: Mapping[str, Any]) -> SampleStore:
    out = options.out
    if out is None:
        return SampleStore(None)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DynaSpecError(f"--out: cannot make the folder {out}: {error.strerror}") from error
    store = SampleStore(out)
    if (out / SAMPLES).exists():
        if not options.resume:
            raise UsageError(
                f"--out: {out} holds {SAMPLES} already; add --resume, or name another folder"
            )
        provenance.check_identity(out / provenance.FILE, identity)
        store.resume([str(spec) for spec in options.specs])
        planned = {(suite.name, prompt.id) for suite in options.suites for prompt in suite.prompts}
        left = {(sample.suite, sample.id) for sample in store.samples} - planned
        if left:
            raise DynaSpecError(
                f"--resume: the earlier run has {len(left)} prompts that this one leaves out; give "
                "its --limit or a larger one, or another --out"
            )
    return store


def _write_provenance(
    options: BenchOptions, lab: Lab, settings: Mapping[str, Any], machine: Mapping[str, Any]
) -> None:
    """Before the first prompt, so that a killed run can be resumed, and again at the end."""
    if options.out is None:
        return
    record = {
        "schema": 1,
        "options": provenance.published(dict(options.asked)),
        "settings": dict(settings),
        "machine": dict(machine),
        "artifacts": dict(lab.artifacts),
        "identity": _identity(settings, lab.artifacts),
    }
    write_atomic(
        options.out / provenance.FILE, json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    )

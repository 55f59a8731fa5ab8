"""``dynaspec bench``: options and printing; dynaspec_cli/bench measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynaspec_cli.bench.presets import Preset, describe_presets, find_preset, presets_json
from dynaspec_cli.bench.spec import ASSISTED, parse_specs
from dynaspec_cli.bench.suites import BUILT_IN, Suite, load_suite
from dynaspec_cli.bench.sweep import expand, parse_sweeps
from dynaspec_cli.commands.bench_options import (
    DEFAULT_NEW_TOKENS,
    DEFAULT_TREE,
    SMOKE_NEW_TOKENS,
    Asked,
    bench_options,
)
from dynaspec_cli.commands.drafting import tree_filling_options
from dynaspec_cli.commands.loading import load_engine
from dynaspec_cli.commands.options import (
    CommonOptions,
    common_options,
    given_option,
    recommended_filters,
    sampling_config,
    sampling_options,
)
from dynaspec_cli.commands.prompt import utf8_argument
from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.errors import DynaSpecError, UsageError

if TYPE_CHECKING:
    from dynaspec_cli.bench.execute import BenchOptions, Lab, Outcome
    from dynaspec_cli.engine.api import Engine

INTERRUPTED = 130


@click.command(
    epilog="""\b
Examples:
  dynaspec bench
  dynaspec bench --suite spec-bench --data-dir DATA --limit 20 --check-exact --out RESULTS \\
      --method ar --method full+eagle2@16 --method dynaspec@4096+eagle2@16
  dynaspec bench --sweep shortlist-size=512,1024,4096 --method full+eagle2 --method dynaspec+eagle2
  dynaspec bench --preset fr-spec-paper --data-dir DATA --out RESULTS

\b
SPEC is ar, SHORTLIST[@SIZE]+TREE[@NODES] with an optional DRAFTER: before it, or a
peer: transformers, transformers-lookup, transformers-assisted, llama.cpp,
llama.cpp-lookup, llama.cpp-draft. NODES may be auto: the size adapts, as in generate.
Without --suite and --method: the built-in smoke suite, ar against the shortlists, with
--check-exact. Exit code 3: an answer differs from the target's own beyond a numerical tie.
"""
)
@bench_options
@sampling_options
@tree_filling_options
@common_options
def bench(
    common: CommonOptions,
    list_presets: bool,
    report_only: Path | None,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    **own: Any,
) -> None:
    """Measure methods against each other on the same prompts, in turns, and say who won."""
    if list_presets:
        from dynaspec_cli.ui.console import print_json

        if common.json:
            print_json({"schema": 1, "presets": presets_json()})
        else:
            click.echo(describe_presets(), nl=False)
        return
    if report_only is not None:
        _redraw(report_only, common)
        return
    asked = Asked(**own)
    preset = None if asked.preset is None else find_preset(asked.preset)
    filters: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
    }
    if preset is not None and preset.sampling == "model" and not given_option("sampling"):
        filters |= recommended_filters(common.model)
    sampling = sampling_config(common.seed, **filters)
    tree = _tree(asked, preset)
    suites = _suites(asked, preset)
    if asked.measure_acceptance:
        _measure_acceptance(asked, preset, suites, sampling, common)
        return
    # A wrong spec is told before a model is loaded.
    texts: Sequence[str] = asked.method or (preset.methods if preset else ())
    parse_sweeps(asked.sweep)
    specs = expand(parse_specs(list(texts)), asked.sweep if texts else ())
    if asked.assistant is not None and not any(spec.peer in ASSISTED for spec in specs):
        raise UsageError(
            f"--assistant: expected --method {' or '.join(ASSISTED)}, which alone use it, got "
            f"{', '.join(map(str, specs)) or 'the default methods'}"
        )
    if asked.system is not None:
        utf8_argument("--system", asked.system)
    # What cannot work is told before a model is loaded; only the default methods depend on it.
    options = _options(asked, preset, texts, suites, sampling, tree, common) if texts else None
    engine = load_engine(common, asked.drafter, asked.drafter_option, tell=True)
    if options is None:
        texts = _default_texts(engine, common)
        options = _options(asked, preset, texts, suites, sampling, tree, common)
    outcome = _measure(_lab(engine, options, asked, common), options, common)
    _print(outcome, options, common)
    if outcome.interrupted:
        click.get_current_context().exit(INTERRUPTED)
    outcome.check()


def _measure_acceptance(
    asked: Asked,
    preset: Preset | None,
    suites: tuple[Suite, ...],
    sampling: SamplingConfig,
    common: CommonOptions,
) -> None:
    from dynaspec_cli.bench.acceptance import measure_acceptance, measuring_tree
    from dynaspec_cli.tree.acceptance import write_table
    from dynaspec_cli.ui.console import print_json
    from dynaspec_cli.ui.measuring import BenchBar

    engine = load_engine(common, asked.drafter, asked.drafter_option, tell=True)
    filling = {name: asked.filling[name] for name in ("draw", "draft_temperature")}
    bare = measuring_tree() if asked.tree_width is None else measuring_tree(asked.tree_width)
    tree = replace(bare, **filling)
    law = tree.draws(sampling), tree.temperature(sampling)
    usual = law == (bare.draws(sampling), bare.temperature(sampling))
    limit = _first(asked.max_prompt_tokens, preset and preset.max_prompt_tokens)
    new_tokens = max(_new_tokens(suite, asked, preset) for suite in suites)
    with BenchBar(enabled=not common.quiet) as bar:
        found = measure_acceptance(engine, suites, sampling, new_tokens, limit, tree, bar)
    path = None
    if usual:  # others are printed alone: sequoia without options would read them as the usual ones
        folder = None if engine.drafter is None else engine.drafter.folder
        if folder is None:
            raise DynaSpecError("--measure-acceptance: expected a drafter that lies in a folder")
        path = write_table(folder, {sampling.temperature: found})
    vector = [round(a, 4) for a in found.vector]
    if common.json:
        print_json(
            {
                "schema": 1,
                "temperature": sampling.temperature,
                "acceptance": vector,
                "tried": list(found.tried),
                "accepted": list(found.accepted),
                "facts": found.facts,
                "file": None if path is None else str(path),
            }
        )
        return
    click.echo(",".join(f"{a:g}" for a in vector))
    if not common.quiet:
        where = path or "not kept, the draws are not the usual ones; give it as --tree-acceptance"
        click.echo(
            f"{found.tried[0]} nodes at temperature {sampling.temperature:g}: {where}", err=True
        )


REPORT_OPTIONS = ("report_only", "json", "quiet", "debug", "config")


def _redraw(folder: Path, common: CommonOptions) -> None:
    """``--report-only``; refuses flags that would ask for a measurement."""
    from dynaspec_cli.bench.redraw import redraw

    context = click.get_current_context()
    given = [
        param.opts[0]
        for param in context.command.params
        if param.name not in REPORT_OPTIONS
        and context.get_parameter_source(str(param.name)) is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise UsageError(f"--report-only measures nothing; leave out {', '.join(given)}")
    summary, notice = redraw(folder)
    if notice and not common.quiet:
        click.echo(notice, err=True)
    _print_summary(summary, folder, common)


def _tree(asked: Asked, preset: Preset | None) -> TreeConfig:
    depth = preset.tree_depth if preset else DEFAULT_TREE.depth
    width = preset.tree_width if preset else DEFAULT_TREE.width
    threshold = _first(asked.filling["threshold"], preset and preset.tree_threshold)
    return TreeConfig(
        size=asked.tree_size,
        depth=depth if asked.tree_depth is None else asked.tree_depth,
        width=width if asked.tree_width is None else asked.tree_width,
        **{**asked.filling, "threshold": threshold},
    )


def _suites(asked: Asked, preset: Preset | None) -> tuple[Suite, ...]:
    names = asked.suite or (preset.suites if preset else BUILT_IN)
    return tuple(load_suite(name, asked.data_dir, asked.limit) for name in names)


def _default_texts(engine: Engine, common: CommonOptions) -> Sequence[str]:
    from dynaspec_cli.bench.lab import default_methods

    texts, notice = default_methods(engine)
    if notice and not common.quiet:
        click.echo(notice, err=True)
    return texts


def _options(
    asked: Asked,
    preset: Preset | None,
    texts: Sequence[str],
    suites: tuple[Suite, ...],
    sampling: SamplingConfig,
    tree: TreeConfig,
    common: CommonOptions,
) -> BenchOptions:
    from dynaspec_cli.bench.execute import BenchOptions

    default_run = not (asked.suite or asked.method or asked.preset) and sampling.greedy
    return BenchOptions(
        specs=tuple(expand(parse_specs(list(texts)), asked.sweep)),
        suites=suites,
        max_new_tokens={s.name: _new_tokens(s, asked, preset) for s in suites},
        sampling=sampling,
        tree=tree,
        prompt_format=asked.prompt_format,
        system=asked.system,
        max_prompt_tokens=_first(asked.max_prompt_tokens, preset and preset.max_prompt_tokens),
        repeats=_first(asked.repeats, preset and preset.repeats, 1),
        warmup=_first(asked.warmup, preset and preset.warmup, 1),
        seed=common.seed,
        check_exact=_first(asked.check_exact, default_run),
        out=asked.out,
        resume=asked.resume,
        drafter=asked.drafter,
        draft_head=asked.draft_head,
        assistant=asked.assistant,
        preset=asked.preset,
        asked=dict(click.get_current_context().params),
    )


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _new_tokens(suite: Suite, asked: Asked, preset: Preset | None) -> int:
    if asked.max_new_tokens is not None:
        return asked.max_new_tokens
    if preset is not None and suite.name in preset.max_new_tokens:
        return preset.max_new_tokens[suite.name]
    return SMOKE_NEW_TOKENS if suite.built_in else DEFAULT_NEW_TOKENS


def _lab(engine: Engine, options: BenchOptions, asked: Asked, common: CommonOptions) -> Lab:
    from dynaspec_cli.bench.lab import build_lab

    return build_lab(
        engine,
        options.specs,
        model=common.model,
        sampling=options.sampling,
        tree=options.tree,
        assistant=asked.assistant,
        draft_head=options.draft_head,
    )


def _measure(lab: Lab, options: BenchOptions, common: CommonOptions) -> Outcome:
    from dynaspec_cli.bench.execute import execute
    from dynaspec_cli.ui.measuring import BenchBar

    with BenchBar(enabled=not common.quiet) as bar:
        return execute(options, lab, bar)


def _print(outcome: Outcome, options: BenchOptions, common: CommonOptions) -> None:
    if not (common.json or outcome.summary["rows"] or outcome.interrupted):
        raise DynaSpecError("no prompt was measured")
    _print_summary(outcome.summary, options.out, common)


def _print_summary(summary: Mapping[str, Any], out: Path | None, common: CommonOptions) -> None:
    from dynaspec_cli.ui.console import print_json

    if common.json:
        print_json(summary)
    elif summary["rows"]:
        from dynaspec_cli.bench.report.terminal import print_summary

        print_summary(summary)
    # Without a finished prompt there is nothing to report on.
    if out is not None and summary["rows"] and not common.quiet:
        click.echo(f"Report: {out / 'report.html'}", err=True)

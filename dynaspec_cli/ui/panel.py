"""The closing panel of a generation."""

from __future__ import annotations

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from dynaspec_cli.engine.events import Comparison, GenerationResult

FALLBACK = "torch"
"""What ops.backend() says where no compiled kernels serve the device."""
WHY_ENDED = {
    "eos": "end of text",
    "length": "length limit",
    "stop": "stop text",
    "interrupted": "interrupted",
}


def result_panel(result: GenerationResult, plain: bool) -> RenderableType:
    """Speed, acceptance, time by phase, shortlist and backend; ``plain``: without a frame."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows(result):
        table.add_row(name, value)
    if plain:
        return table
    return Panel(table, box=box.ROUNDED, expand=False, border_style="dim")


def rows(result: GenerationResult) -> list[tuple[str, str]]:
    """(name, value) of every line."""
    out = [
        (
            "speed",
            f"{result.tokens_per_second:.1f} tokens/s · {result.new_tokens} tokens "
            f"in {result.time_to_first_token_s + result.decode_s:.2f} s "
            f"(first after {result.time_to_first_token_s:.2f} s; model loaded in "
            f"{result.load_s:.1f} s) · {WHY_ENDED[result.finish_reason]}",
        )
    ]
    if result.num_spec_steps:
        out += _speculation_rows(result)
    phases = [(name, ms) for name, ms in result.phase_ms.items() if ms >= 0.005]
    if phases:
        parts = " · ".join(f"{name} {ms:.2f}" for name, ms in phases)
        total = sum(ms for _, ms in phases)
        name = "ms per step" if result.num_spec_steps else "ms per token"
        out.append((name, f"{total:.2f} = {parts}".replace("draft_body", "draft body")))
    if result.comparison is not None:
        out += _comparison_rows(result.comparison)
    out.append(("backend", _backend(result)))
    return out


def _speculation_rows(result: GenerationResult) -> list[tuple[str, str]]:
    out = [
        (
            "acceptance",
            f"{result.mean_acceptance_length:.2f} tokens per verification (bonus token included) · "
            f"{result.num_accepted_draft_tokens} of {result.num_draft_tokens} drafted, "
            f"{result.num_spec_steps} verifications",
        )
    ]
    if result.acceptance_by_position:
        shares = " ".join(f"{100 * share:.0f}" for share in result.acceptance_by_position)
        out.append(("by position", f"{shares} % (each given that the one before was accepted)"))
    if result.mean_shortlist_size is not None:
        size, vocabulary = result.mean_shortlist_size, result.settings.get("vocab_size")
        share = f" of {vocabulary:,} ({100 * size / vocabulary:.1f} %)" if vocabulary else ""
        name = escape(str(result.settings.get("shortlist", "")))
        tree = result.settings.get("tree", "")
        out.append(("shortlist", f"{name}: {size:,.0f} tokens{share} · tree {tree}"))
    return out


def _comparison_rows(comparison: Comparison) -> list[tuple[str, str]]:
    plain = comparison.autoregressive
    speed = "nothing was decoded"
    if comparison.speedup is not None:
        word = "faster" if comparison.speedup >= 1 else "SLOWER"
        colour = "green" if comparison.speedup >= 1 else "red"
        speed = (
            f"[{colour}]{comparison.speedup:.2f} x, {word}[/] than autoregressive decoding "
            f"({plain.tokens_per_second:.1f} tokens/s)"
        )
    at = comparison.first_divergence
    if at is None:
        verdict = "[green]identical[/] token ids"
    else:
        kind = "a numerical tie" if at.tie else "[red]no tie[/]"
        verdict = (
            f"differ at token {at.position}: {at.token_id} against {at.ar_token_id}, "
            f"logit gap {at.logit_gap:.4f} ({kind})"
        )
    return [("speedup", speed), ("output", verdict)]


def _backend(result: GenerationResult) -> str:
    settings = result.settings
    kernels = str(settings.get("kernels", "unknown"))
    where = " · ".join(
        str(part)
        for part in (
            settings.get("weights", settings.get("dtype")),
            settings.get("device"),
            _threads(settings.get("threads")),
        )
        if part
    )
    if kernels == FALLBACK:
        # Without an extension, or with one that was built for the CPU alone.
        place = str(settings.get("device", "this device")).partition(":")[0]
        note = f"pure-PyTorch fallback (no compiled kernels for {place}; see dynaspec doctor)"
        return f"[yellow]{note}[/] · {where}"
    return f"{kernels} · {where}"


def _threads(count: object) -> str:
    return f"{count} threads" if count else ""

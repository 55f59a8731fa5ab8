"""The report of ``dynaspec doctor`` for people, on stdout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dynaspec_cli.target.demo_package import INSTALL_HINT

PART_NAMES = {
    "weights": "weights",
    "kv_cache": "KV cache",
    "drafter": "drafter",
    "shortlist_head": "head in shortlist order",
    "verification_logits": "logits of a verification",
    "graphs": "CUDA graphs, their activations, scratch rows",
}


def print_facts(facts: Mapping[str, Any]) -> None:
    """Every section as name and value, one below the other."""
    console = Console(highlight=False)
    for title, rows in sections(facts):
        console.print(f"[bold]{title}[/]")
        table = Table.grid(padding=(0, 2), pad_edge=True)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(name, value)
        console.print(table)


def sections(facts: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(title, [(name, value)]) of every section."""
    out = [("What runs where", _system_rows(facts["system"]))]
    if facts.get("memory"):
        out.append((f"Memory for {escape(str(facts['model']))}", _memory_rows(facts["memory"])))
    if facts.get("head_share"):
        out.append(("The LM head's share of a draft step, here", _head_rows(facts["head_share"])))
    if facts.get("drafter"):
        drafter = facts["drafter"]
        out.append(
            (
                "What a dynamic shortlist can do for the drafter",
                [
                    ("drafter", f"{escape(drafter['folder'])} ({escape(drafter['format'])})"),
                    ("verdict", drafter["verdict"]),
                ],
            )
        )
    if facts.get("note"):
        out.append(("Note", [("", escape(facts["note"]))]))
    return out


def _system_rows(system: Mapping[str, Any]) -> list[tuple[str, str]]:
    versions = " · ".join(f"{name} {v}" for name, v in system["versions"].items() if v)
    levels = " · ".join(
        f"{name} {'yes' if usable else 'no'}" for name, usable in system["isa_levels"].items()
    )
    backend = f"{system['backend']}: {escape(system['backend_reason'])}"
    if system["fallback"]:
        backend = f"[yellow]pure-PyTorch fallback[/]: {escape(system['backend_reason'])}"
    default = system["default_model"]
    return [
        ("kernels", backend),
        ("instruction sets", levels),
        ("CPU", f"{escape(system['cpu'])} · {system['cores']} cores · {system['threads']} threads"),
        ("CUDA", _cuda(system["cuda"])),
        ("runs on", f"{system['device']}, {system['dtype']}"),
        (
            "memory",
            f"{_gb(system['memory_available_bytes'])} of {_gb(system['memory_bytes'])} free",
        ),
        ("cache", f"{escape(system['cache_folder'])} ({_gb(system['cache_free_bytes'])} free)"),
        (
            "default model",
            f"{default['name']}: "
            + ("installed" if default["installed"] else escape(f"not installed ({INSTALL_HINT})")),
        ),
        ("versions", versions),
    ]


def _cuda(cuda: Mapping[str, Any]) -> str:
    built = "in this extension" if cuda["kernels_in_extension"] else "not in this extension"
    torch = f"torch has CUDA {cuda['torch_cuda']}" if cuda["torch_cuda"] else "torch has no CUDA"
    devices = escape(", ".join(cuda["devices"])) or "no device"
    return f"{devices} · {torch} · our kernels: {built}; {cuda['kernels_status']}"


def _memory_rows(memory: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        (PART_NAMES.get(name, name), _gb(size))
        for name, size in memory.get("parts_bytes", {}).items()
        if size
    ]
    fits = {True: "[green]fits[/]", False: "[red]does not fit[/]", None: ""}[memory["fits"]]
    if memory["total_bytes"] is None and fits:
        rows.append(("weights alone", f"{_gb(memory['available_bytes'])} free · {fits}"))
    elif memory["total_bytes"] is not None:
        free = f" · {_gb(memory['available_bytes'])} free · {fits}"
        about = f"{memory['dtype']}"
        if "context" in memory:
            about += f", {memory['context']} tokens of context"
        rows.append(("in all", f"{_gb(memory['total_bytes'])} ({about}){free}"))
    if "largest_lever" in memory:
        rows.append(("largest lever", escape(memory["largest_lever"])))
    if memory.get("head_share_of_weights"):
        rows.append(
            (
                "vocabulary",
                f"{memory['vocab_size']:,} tokens; one matrix over it is "
                f"{100 * memory['head_share_of_weights']:.0f} % of the weights",
            )
        )
    if "note" in memory:
        rows.append(("note", escape(memory["note"])))
    return rows


def _head_rows(head: Mapping[str, Any]) -> list[tuple[str, str]]:
    def line(ms: float, share: float | None) -> str:
        percent = "" if share is None else f" · {100 * share:.0f} % of the draft step"
        return f"{ms:.2f} ms{percent}"

    return [
        (
            f"all {head['vocab_size']:,} tokens",
            line(head["head_full_ms"], head["head_share_full"]),
        ),
        (
            f"{head['shortlist_size']:,} tokens",
            line(head["head_shortlist_ms"], head["head_share_shortlist"]),
        ),
        ("drafter's body", f"{head['draft_body_ms']:.2f} ms ({head['draft_body_source']})"),
        ("one target pass", f"{head['target_pass_ms']:.2f} ms (an autoregressive step)"),
        ("measured with", f"{head['rows']} rows, {head['threads']} threads, median"),
    ]


def _gb(size: int | None) -> str:
    if size is None:
        return "unknown"
    if size >= 1e8:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"

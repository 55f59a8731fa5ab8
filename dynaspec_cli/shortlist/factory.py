"""Builds a shortlist from its parts; ``registry.create`` is the way in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

from torch import Tensor

from dynaspec_cli.checkpoints.bundle import (
    CONFIG_FILE,
    HOW_TO_BUILD,
    ShortlistBundle,
    is_bundle,
)
from dynaspec_cli.checkpoints.fingerprint import Head
from dynaspec_cli.checkpoints.token_map import load_token_map
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.protocols import DrafterHead, Target
from dynaspec_cli.shortlist import dynaspec, nanospec
from dynaspec_cli.shortlist.base import BlockShortlist
from dynaspec_cli.shortlist.dynaspec import DynaSpecShortlist, Split, cluster_order
from dynaspec_cli.shortlist.frequency import FrequencyShortlist
from dynaspec_cli.shortlist.full import FullShortlist
from dynaspec_cli.shortlist.head import build_head
from dynaspec_cli.shortlist.names import DEFAULT_SIZES, PA_FR_DECAY
from dynaspec_cli.shortlist.router import Router
from dynaspec_cli.shortlist.schedule import BudgetSchedule


@dataclass(frozen=True)
class Options:
    """See ``registry.create``."""

    head: DrafterHead
    depth: int = 6
    mass: str = "constant"
    int8: bool = False
    prefill_positions: int | None = None
    use_router: bool = True


def resolve_size(method: str, size: int | None, target: Target) -> int:
    """The size asked for, checked against the vocabulary; a default is cut to it."""
    if size is None:
        return min(DEFAULT_SIZES[method], target.vocab_size)
    if size > target.vocab_size:
        raise UsageError(
            f"--shortlist-size: expected at most the vocabulary of {target.name}, "
            f"{target.vocab_size} tokens, got {size}"
        )
    return size


def _given(value: int | None, default: int) -> int:
    return default if value is None else value


def untrained(method: str, size: int | None, target: Target, options: Options) -> BlockShortlist:
    """``full`` and ``nanospec``: both share the head as it is."""
    head = build_head(options.head.weight, None, options.int8, options.head.vocab)
    if method == "full":
        if size is not None and size != target.vocab_size:
            raise UsageError("--shortlist-size: full has no size; choose another --shortlist")
        return FullShortlist(head)
    size = resolve_size(method, size, target)
    positions = _given(options.prefill_positions, nanospec.PREFILL_POSITIONS)
    return nanospec.NanoSpecShortlist(head, size, options.mass, positions)


def from_token_map(
    path: Path, size: int | None, target: Target, options: Options
) -> BlockShortlist:
    """A fixed shortlist from a file of absolute ids, most frequent first; ``size`` takes a
    prefix."""
    if size is not None:
        resolve_size("fr-spec", size, target)
    ids = load_token_map(path, target.vocab_size, size).ids
    ids = ids if size is None else ids[:size]
    return _frequency("fr-spec", ids, (ids.numel(),), ids.numel(), target, options)


def from_bundle(
    method: str, size: int | None, target: Target, bundle: ShortlistBundle, options: Options
) -> BlockShortlist:
    """A method of the bundle; refused when the bundle lacks what it needs."""
    if size is None and method == bundle.config.method:
        size = min(bundle.config.shortlist_size, target.vocab_size)
    size = resolve_size(method, size, target)
    if method == "dynaspec":
        return _dynaspec(size, target, bundle, options)
    order = bundle.generated if method == "vocabtrim" else bundle.frequency
    if order is None:
        raise DynaSpecError(
            f"{bundle.source}: holds no token counts for {method}; build it with --method {method}"
        )
    if order.numel() < size:
        raise UsageError(
            f"--shortlist-size: {bundle.source} ranks {order.numel()} tokens for {method}, got "
            f"{size}"
        )
    decay = PA_FR_DECAY if method == "pa-fr" else 1.0
    budgets = BudgetSchedule(size, order.numel(), decay, options.depth).table()
    return _frequency(method, order[: max(budgets)], budgets, size, target, options)


def _frequency(
    method: str,
    ids: Tensor,
    budgets: tuple[int, ...],
    size: int,
    target: Target,
    options: Options,
) -> BlockShortlist:
    order = held(options.head, ids.long())
    if not order.numel():
        raise DynaSpecError(
            f"--shortlist: none of the {ids.numel()} tokens of {method} has a row in the drafter's "
            "head; choose another --shortlist"
        )
    head = build_head(options.head.weight, order, options.int8, options.head.vocab)
    budgets = tuple(min(budget, head.num_rows) for budget in budgets)
    return FrequencyShortlist(method, head, budgets, options.mass, min(size, head.num_rows))


def _dynaspec(
    size: int, target: Target, bundle: ShortlistBundle, options: Options
) -> BlockShortlist:
    if bundle.frequency is None or bundle.cluster_tokens is None or bundle.cluster_offsets is None:
        raise DynaSpecError(
            f"{bundle.source}: holds no token clusters; build it with --method dynaspec"
        )
    split = Split(**bundle.config.split)
    # A router reads hidden rows like those it was trained on: the target's head's.
    routed = bundle.router is not None and options.use_router and not options.head.own
    if not routed:
        split = Split(core=1.0 - split.context, context=split.context, decay=1.0)
    frequency = held(options.head, bundle.frequency.long())
    core = min(max(1, int(size * split.core)), frequency.numel())  # never an empty shortlist
    # Deep trees would let the last budgets fall below what is always in.
    least = min(core + int(size * split.context), target.vocab_size)
    schedule = BudgetSchedule(size, target.vocab_size, split.decay, options.depth)
    budgets = tuple(max(budget, least) for budget in schedule.table())
    known = None if options.head.vocab is None else options.head.vocab.mask()
    order, offsets = cluster_order(
        frequency, core, bundle.cluster_tokens, bundle.cluster_offsets, known
    )
    head = build_head(options.head.weight, order, options.int8, options.head.vocab)
    router = None
    if routed and bundle.router is not None:
        router = Router(bundle.config.router, bundle.router, head.device)
    return DynaSpecShortlist(
        head,
        target,
        router,
        offsets,
        budgets,
        core,
        int(size * split.context),
        options.mass,
        _given(options.prefill_positions, dynaspec.PREFILL_POSITIONS),
        size,
    )


def held(head: DrafterHead, ids: Tensor) -> Tensor:
    """Of token ids int64 [m] those that have a row in the head, in their order."""
    return ids if head.vocab is None else ids[head.vocab.mask()[ids]]


def load_bundle(path: Path, target: Target) -> ShortlistBundle:
    """The bundle in a folder, checked against the target."""
    if not is_bundle(path):
        raise DynaSpecError(
            f"--shortlist {path}: no shortlist bundle ({CONFIG_FILE} and clusters.safetensors); "
            f"make one with {HOW_TO_BUILD}"
        )
    bundle = ShortlistBundle.from_pretrained(path)
    bundle.check_target(target)
    return bundle


def packaged_bundle(target: Target) -> ShortlistBundle | None:
    """The bundle that ships with the package for this target's head, or None."""
    folder = packaged_folder(target)
    return None if folder is None else ShortlistBundle.from_pretrained(folder)


def packaged_folder(head: Head) -> Path | None:
    """Folder of the bundle that ships with the package for a target's head, or None."""
    for folder, vocab_size, hidden_size, head_hash in _packaged():
        same_shape = (vocab_size, hidden_size) == (head.vocab_size, head.hidden_size)
        if same_shape and head.head_hash() in (None, head_hash):
            return folder
    return None


@lru_cache(maxsize=1)
def _packaged() -> tuple[tuple[Path, int, int, str], ...]:
    root = Path(str(resources.files("dynaspec_cli"))) / "data"
    found = []
    for config in sorted(root.glob(f"*/shortlist/{CONFIG_FILE}")):
        data = json.loads(config.read_text(encoding="utf-8"))
        found.append((config.parent, data["vocab_size"], data["hidden_size"], data["head_hash"]))
    return tuple(found)

"""Coverage of every policy that a bundle can serve, by shortlist size, on held-out text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli.checkpoints.bundle import ShortlistBundle
from dynaspec_cli.config import ShortlistConfig
from dynaspec_cli.drafters.eagle import EagleDrafter
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.shortlist import registry
from dynaspec_cli.shortlist.coverage import DEPTH, HeldOutText, measure
from dynaspec_cli.training.router_data import drafted_features
from dynaspec_cli.training.teacher import Teacher

SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768)
TEXT_TOKENS = 160
TOP = 3
_ROWS = 64


@dataclass(frozen=True)
class CoverageRow:
    """One policy at one size: covered share of the positions, over all and by draft position (None
    where no text was long enough), and the mean size."""

    policy: str
    size: int
    mean_size: float
    coverage: float | None
    by_position: tuple[float | None, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def held_out_texts(
    teacher: Teacher,
    texts: Sequence[Tensor],
    groups: Sequence[str],
    drafter: EagleDrafter | None,
    progress: Callable[[str, float | None], None],
) -> list[HeldOutText]:
    """Features and the target's top tokens of held-out texts; a quarter of each is its prompt."""
    found = []
    length = min(TEXT_TOKENS, teacher.max_length)
    for at, (ids, group) in enumerate(zip(texts, groups, strict=True)):
        tokens = ids[:length].long()
        features = teacher.read(tokens[None].to(teacher.head.device))[0]
        top = torch.cat([_top(teacher, part) for part in features.split(_ROWS)])
        features = features.cpu()
        drafted = () if drafter is None else drafted_features(drafter, features, tokens, DEPTH)
        prompt = max(2, tokens.numel() // 4)
        found.append(HeldOutText(tokens, features, top, prompt, group, tuple(drafted)))
        progress("held-out text", (at + 1) / len(texts))
    return found


def _top(teacher: Teacher, features: Tensor) -> Tensor:
    hidden = teacher.target.norm(features)
    logits = torch.nn.functional.linear(hidden.to(teacher.head.dtype), teacher.head)
    return torch.topk(logits, min(TOP, logits.shape[1])).indices.cpu()


def policies(bundle: ShortlistBundle) -> list[str]:
    """Names of the policies that can be built with this bundle."""
    names = ["nanospec"]
    if bundle.frequency is not None:
        names += ["fr-spec", "pa-fr"]
    if bundle.generated is not None:
        names.append("vocabtrim")
    if bundle.cluster_tokens is not None:
        names.append("dynaspec")
    return names


def coverage_table(
    target: Any,
    bundle: ShortlistBundle,
    texts: Sequence[HeldOutText],
    size: int,
    progress: Callable[[str, float | None], None],
) -> list[CoverageRow]:
    """Rows by policy and size. Sizes beyond what a policy ranks, or beyond the vocabulary, are left
    out."""
    sizes = sorted({s for s in SIZES if s <= target.vocab_size} | {size})
    plan = [(name, s) for name in policies(bundle) for s in sizes]
    rows = []
    for at, (name, wanted) in enumerate(plan):
        try:
            shortlist = registry.create(ShortlistConfig(name, wanted), target, bundle, depth=DEPTH)
        except DynaSpecError:
            continue
        found = measure(shortlist, target, texts)  # type: ignore[arg-type]
        rows.append(
            CoverageRow(
                name,
                wanted,
                round(found.mean_size, 1),
                _rounded(found.share()),
                tuple(_rounded(found.share(depth=d + 1)) for d in range(DEPTH)),
            )
        )
        progress("coverage", (at + 1) / len(plan))
    return rows


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)

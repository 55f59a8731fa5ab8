"""Held-out acceptance of a drafter under training: would a chain of greedy drafts be accepted?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from dynaspec_cli.training.model import DrafterModule
from dynaspec_cli.training.shards import Shard, ended


@dataclass(frozen=True)
class HeldOutScore:
    """``top1``: share of draft steps 1, 2, ... whose best token is the target's choice, given the
    true tokens before; ``chain_length``: mean tokens settled by a verified greedy chain of that
    depth (bonus included); by group too."""

    top1: tuple[float, ...]
    chain_length: float
    by_group: dict[str, float]


@dataclass(frozen=True)
class HeldOut:
    """Sequences to score on, and the target's ``choice`` int64 [N, T - begin + 1] after each row
    from ``begin`` - 1 on. Positions that the target continued count up to the end of the text
    (``going`` bool [N, T]), or every position of corpus text, where the target's choice is what its
    features say."""

    shard: Shard
    begin: int
    choice: Tensor
    going: Tensor

    @classmethod
    def of(
        cls, shard: Shard, head: Tensor, final_norm: nn.Module, ends: Sequence[int] = ()
    ) -> HeldOut:
        begin = shard.prompt if shard.prompt < shard.tokens.shape[1] else 2
        with torch.no_grad():
            choice = [
                F.linear(final_norm(features[begin - 1 :]), head).argmax(-1)
                for features in shard.features
            ]
        going = ~ended(shard.tokens, shard.prompt, ends)
        return cls(shard, begin, torch.stack(choice), going)


@torch.no_grad()
def held_out_score(
    module: DrafterModule,
    held: Sequence[HeldOut],
    head: Tensor,
    embedding: nn.Module,
    final_norm: nn.Module,
    columns: Tensor,
    groups: Sequence[str],
    depth: int = 4,
) -> HeldOutScore | None:
    """Would drafts chosen among ``columns`` have been accepted? None where nothing is held out."""
    if not held:
        return None
    columns = columns.to(head.device)
    candidates = head[columns]
    hits = torch.zeros(depth)
    seen = torch.zeros(depth)
    sums: dict[str, list[float]] = {}
    for case in held:
        shard, begin = case.shard, case.begin
        for i in range(shard.tokens.shape[0]):
            tokens, features = shard.tokens[i : i + 1], shard.features[i : i + 1]
            choice = case.choice[i]
            # Row t is asked for the choice after token t + 1, which must not have ended the text.
            going = case.going[i, begin + depth - 2 :].to(choice.device)
            outputs = module_unroll(module, features, tokens, embedding, final_norm, depth)
            accepted: Tensor | None = None
            chain = 1.0
            for step, out in enumerate(outputs):
                # Row t predicts the target's choice at position t + 1.
                rows = out[:, begin - 2 + depth - 1 :]
                best = columns[
                    F.linear(final_norm(rows * module.config.feature_scale), candidates).argmax(-1)[
                        0
                    ]
                ]
                asked = going[: best.numel()]
                hit = (best == choice[depth - 1 :][: best.numel()]) & asked
                hits[step] += float(hit.sum())
                seen[step] += float(asked.sum())
                shifted = hit[step:]
                accepted = shifted if accepted is None else accepted[: shifted.numel()] & shifted
                roots = going[: accepted.numel()]
                chain += float(accepted[roots].float().mean()) if bool(roots.any()) else 0.0
            sums.setdefault(groups[int(shard.groups[i])], []).append(chain)
    every = [value for values in sums.values() for value in values]
    return HeldOutScore(
        tuple((hits / seen.clamp_min(1)).tolist()),
        sum(every) / max(1, len(every)),
        {name: sum(values) / len(values) for name, values in sorted(sums.items())},
    )


def module_unroll(
    module: DrafterModule,
    features: Tensor,
    tokens: Tensor,
    embedding: nn.Module,
    final_norm: nn.Module,
    depth: int,
    begin: int = 0,
) -> list[Tensor]:
    """Outputs [B, T - 1 - begin, d] (units of ``feature_scale``) of ``depth`` unrolled draft steps
    over whole sequences: features [B, T, d], tokens int64 [B, T]. Pair t is (feature t, token
    t + 1); output i belongs to pair ``begin`` + i, pairs before are context; rows below s of step s
    are void."""
    embedded = embedding(tokens.to(features.device)).to(features.dtype)
    scale, normed = module.config.feature_scale, module.config.normed_features

    def pass_on(out: Tensor) -> Tensor:
        rows: Tensor = final_norm((out * scale).to(features.dtype))
        return rows

    given = final_norm(features) if normed else (features.float() / scale).to(features.dtype)
    # Matrices are rounded to the activations' dtype once, not in every step.
    weights = {
        name: p.to(features.dtype) if p.dim() > 1 else p for name, p in module.named_parameters()
    }
    outputs: list[Tensor] = functional_call(
        module,
        weights,
        (given[:, :-1], embedded[:, 1:], embedded[:, :-1], depth, begin),
        {"pass_on": pass_on if normed else None},
    )
    return outputs

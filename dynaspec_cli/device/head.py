"""The drafter's head over a list of rows, in fixed shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from dynaspec_cli.device.candidates import Candidates
from dynaspec_cli.device.kernels import head_topk
from dynaspec_cli.device.selection import Selection
from dynaspec_cli.ops import linear
from dynaspec_cli.shortlist.head import DraftHead


def fits(head: DraftHead) -> bool:
    """Can its rows be scored so? Packed rows, and forms that no op knows, cannot."""
    return head.weight.packed is None and head.weight.plain is None


def score(
    head: DraftHead,
    hidden: Tensor,
    selection: Selection,
    k: int,
    log_mass: float,
    temperature: float,
    whole: bool,
) -> Candidates:
    """Best ``k`` of the selection for hidden [w, d]; ``log_mass`` is added to their scores.
    ``whole``: with the distribution over the selection, as ``Shortlist.score``."""
    ids = token_ids(head, selection.rows)
    if not whole:
        log_q, place = head_topk(
            hidden, head.weight.data, _stored(head, selection), selection.size, k, temperature,
            head.weight.scale,
        )  # fmt: skip
        best = ids[place.clamp(min=0)].where(place >= 0, -1)
        return Candidates(log_q + log_mass, best)
    data, scale = _rows(head, selection)
    logits = linear(hidden, data, None, scale) / temperature
    logits = logits.where(selection.rows >= 0, -torch.inf)
    log_probs = logits - logits.logsumexp(1, keepdim=True)
    best_q, place = _best(log_probs, k)
    best = ids[place.clamp(max=ids.shape[0] - 1)].where(best_q > -torch.inf, -1)
    return Candidates(best_q + log_mass, best, log_probs, ids)


def token_ids(head: DraftHead, rows: Tensor) -> Tensor:
    """int64: the tokens of rows int64, -1 for -1."""
    if not head.row_ids.numel():
        return rows
    return head.row_ids[rows.clamp(min=0)].long().where(rows >= 0, -1)


def _stored(head: DraftHead, selection: Selection) -> Tensor:
    """Where the selection's rows lie in the weight, -1 for none."""
    return token_ids(head, selection.rows) if head.gather else selection.rows


def _rows(head: DraftHead, selection: Selection) -> tuple[Tensor, Tensor | None]:
    """The selection's rows of the weight and their scales; what need not be copied is not."""
    scaled = head.weight.scale.numel() > 0
    if selection.first and not head.gather:
        count = selection.rows.shape[0]
        return head.weight.data[:count], head.weight.scale[:count] if scaled else None
    rows = _stored(head, selection).clamp(min=0)
    return head.weight.data[rows], head.weight.scale[rows] if scaled else None


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best k of scores [w, S], a tie to the lower column; -inf where there are fewer."""
    if scores.shape[1] < k:
        scores = torch.nn.functional.pad(scores, (0, k - scores.shape[1]), value=-torch.inf)
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :k]
    return scores.gather(1, order), order

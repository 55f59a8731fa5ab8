"""What the drafter is trained on: the target's distribution, at every unrolled draft step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

STEP_DECAY = 0.9
"""Weight of unrolled step s is STEP_DECAY**s: later steps matter only where earlier ones were
right."""


@dataclass(frozen=True)
class LossConfig:
    """``columns``: most frequent tokens in the softmax, beside the batch's own. ``gram``: weight of
    the logit-space term. ``prompt_weight``: weight of positions inside a prompt (text that the
    target did not write)."""

    columns: int = 6144
    gram: float = 0.5
    prompt_weight: float = 0.0


def gram_matrix(head: Tensor, counts: Tensor, limit: int = 32768) -> Tensor:
    """G [d, d] = sum_v pi_v (w_v - w)(w_v - w)^T over the ``limit`` most frequent tokens, pi ~
    counts^0.75, w the mean row.

    For an error e of the normed feature, e^T G e / 2 is the variance of the logits' error under pi,
    half of which is the second-order term of the KL divergence (logits are free up to a constant,
    hence the centring). So all of the vocabulary speaks at the price of one d x d product.
    """
    top = counts.topk(min(limit, counts.numel()))
    pi = (top.values.float() + 1) ** 0.75
    pi = pi / pi.sum()
    rows = head[top.indices.to(head.device)].float()
    rows = (rows - (pi[:, None].to(rows.device) * rows).sum(0)) * pi[:, None].to(rows.device).sqrt()
    return rows.t() @ rows


BLOCK = 32
"""Rows of logits a CPU works on at once: 32 rows of 6,500 float32 numbers stay in its cache."""


def _blocks(h: Tensor) -> Iterator[slice]:
    size = BLOCK if h.device.type == "cpu" else max(1, len(h))
    return (slice(i, i + size) for i in range(0, len(h), size))


def softmax_rows(h: Tensor, columns: Tensor) -> Tensor:
    """float32 [N, C]: softmax(h W^T) of h [N, d] and columns [C, d], not differentiated."""
    logits = F.linear(h, columns)
    p = torch.empty(logits.shape, device=h.device)
    for rows in _blocks(h):
        torch.softmax(logits[rows].float(), -1, out=p[rows])
    return p


class _SoftCrossEntropy(torch.autograd.Function):
    """sum_i w_i H(p_i, softmax(h_i W^T)) with the gradient written down: dL/dlogits = w (q sum(p) -
    p) = w (q - p). Saves the float32 matrices [N, C] that automatic differentiation would keep and
    read again; the gradient takes the logits' place."""

    @staticmethod
    def forward(context: Any, h: Tensor, columns: Tensor, p: Tensor, weight: Tensor) -> Tensor:
        logits = F.linear(h, columns)
        entropy = torch.empty(len(h), device=h.device)
        for rows in _blocks(h):
            part = logits[rows].float()
            norm = torch.logsumexp(part, -1)
            # H(p, q) = log Z - <p, logits>, since p sums to one.
            entropy[rows] = norm - torch.einsum("nc,nc->n", p[rows], part)
            logits[rows] = part.sub_(norm[:, None]).exp_().sub_(p[rows]).mul_(weight[rows, None])
        context.save_for_backward(logits @ columns)
        return (entropy * weight).sum()

    @staticmethod
    def backward(context: Any, grad: Tensor) -> Any:
        (gradient,) = context.saved_tensors
        return gradient * grad, None, None, None


def soft_cross_entropy(h: Tensor, columns: Tensor, p: Tensor, weight: Tensor) -> Tensor:
    """Scalar: h [N, d] (float32 or bf16, differentiated), columns [C, d] of its dtype, p float32
    [N, C] with rows that sum to one, weight float32 [N]."""
    loss: Tensor = _SoftCrossEntropy.apply(h, columns, p, weight)
    return loss


class _QuadraticForm(torch.autograd.Function):
    """sum_i w_i e_i^T G e_i / 2 for a symmetric G: the gradient w_i G e_i is at hand already."""

    @staticmethod
    def forward(context: Any, error: Tensor, gram: Tensor, weight: Tensor) -> Tensor:
        product = error @ gram
        value = torch.einsum("nd,nd,n->", product, error, weight) / 2
        context.save_for_backward(product.mul_(weight[:, None]))
        return value

    @staticmethod
    def backward(context: Any, grad: Tensor) -> Any:
        (gradient,) = context.saved_tensors
        return gradient * grad, None, None


def quadratic_form(error: Tensor, gram: Tensor, weight: Tensor) -> Tensor:
    """Scalar: error float32 [N, d] (differentiated), gram float32 [d, d], symmetric, weight float32
    [N]."""
    value: Tensor = _QuadraticForm.apply(error, gram, weight)
    return value


def unrolled_loss(
    outputs: list[Tensor],
    truth: Tensor,
    columns: Tensor,
    gram: Tensor | None,
    weight: Tensor,
    config: LossConfig,
) -> tuple[Tensor, list[float]]:
    """Sum over unrolled steps of soft cross-entropy plus the logit-space term; and the
    cross-entropy of each step.

    outputs: normed predictions [B, T, d] by step, whose first s rows of step s are void; truth:
    normed features of the target [B, T, d]; columns [C, d]: head rows of the softmax; weight
    float32 [B, T].
    """
    width = truth.shape[-1]
    with torch.no_grad():
        p = softmax_rows(truth.reshape(-1, width), columns)
    total = torch.zeros((), device=truth.device)
    values = []
    for step, predicted in enumerate(outputs):
        h, t = predicted.reshape(-1, width), truth.reshape(-1, width)
        w = weight.clone()
        w[:, :step] = 0
        # All rows may be void: every text of a batch may end with its first token.
        w = (w / w.sum().clamp_min(1e-6)).reshape(-1)
        entropy = soft_cross_entropy(h, columns, p, w)
        values.append(float(entropy.detach()))
        loss = entropy
        if gram is not None:
            loss = loss + config.gram * quadratic_form(h.float() - t.float(), gram, w)
        total = total + loss * STEP_DECAY**step
    return total, values

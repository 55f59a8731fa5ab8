"""What the drafter is trained on: the target's distribution, at every unrolled draft step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dynaspec_cli.training.loss_config import LossConfig

STEP_DECAY = 0.9
"""Weight of unrolled step s is STEP_DECAY**s: later steps matter only where earlier ones were
right."""


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


class _SoftLoss(torch.autograd.Function):
    """sum_i w_i ((1 - s) H(p_i, q_i) + s TV(p_i, q_i)), q_i = softmax(h_i W^T), with the gradient
    written down: by the logits, that of H is q - p, that of TV = 1 - sum min(p, q) is q (share -
    below), ``below`` where q < p and ``share`` the q there. Saves the float32 matrices [N, C] that
    automatic differentiation would keep and read again; the gradient takes the logits' place."""

    @staticmethod
    def forward(
        context: Any, h: Tensor, columns: Tensor, p: Tensor, weight: Tensor, variation: float
    ) -> Tensor:
        logits = F.linear(h, columns)
        losses = torch.empty(len(h), device=h.device)
        for rows in _blocks(h):
            part, wanted = logits[rows].float(), p[rows]
            norm = torch.logsumexp(part, -1)
            # H(p, q) = log Z - <p, logits>, since p sums to one.
            losses[rows] = norm - torch.einsum("nc,nc->n", wanted, part)
            q = part.sub_(norm[:, None]).exp_()
            gradient = q
            if variation:
                below = q < wanted
                inside = q * below
                overlap = torch.minimum(q, wanted).sum(-1)
                losses[rows] = (1 - variation) * losses[rows] + variation * (1 - overlap)
                gradient = q * (1 + variation * (inside.sum(-1, keepdim=True) - 1))
                gradient -= variation * inside
            gradient -= (1 - variation) * wanted
            logits[rows] = gradient.mul_(weight[rows, None])
        context.save_for_backward(logits @ columns)
        return (losses * weight).sum()

    @staticmethod
    def backward(context: Any, grad: Tensor) -> Any:
        (gradient,) = context.saved_tensors
        return gradient * grad, None, None, None, None


def soft_loss(
    h: Tensor, columns: Tensor, p: Tensor, weight: Tensor, variation: float = 0.0
) -> Tensor:
    """Scalar: h [N, d] (float32 or bf16, differentiated), columns [C, d] of its dtype, p float32
    [N, C] with rows that sum to one, weight float32 [N]; the share of total variation, the rest is
    cross-entropy."""
    loss: Tensor = _SoftLoss.apply(h, columns, p, weight, variation)
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
    """Sum over unrolled steps of ``soft_loss`` plus the logit-space term; and the former of each
    step.

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
        loss = soft_loss(h, columns, p, w, config.variation)
        values.append(float(loss.detach()))
        if gram is not None and config.variation < 1:
            loss = loss + (1 - config.variation) * config.gram * quadratic_form(
                h.float() - t.float(), gram, w
            )
        total = total + loss * STEP_DECAY**step
    return total, values

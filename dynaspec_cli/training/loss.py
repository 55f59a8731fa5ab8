"""What the drafter is trained on: the target's distribution, at every unrolled draft step."""

from __future__ import annotations

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


class _SoftCrossEntropy(torch.autograd.Function):
    """sum_i w_i H(p_i, softmax(h_i W^T)) with the gradient written down: dL/dlogits = w (q sum(p) -
    p) = w (q - p). Saves the float32 matrices [N, C] that automatic differentiation would keep and
    read again."""

    @staticmethod
    def forward(context: Any, h: Tensor, columns: Tensor, p: Tensor, weight: Tensor) -> Tensor:
        logits = F.linear(h, columns).float()
        norm = torch.logsumexp(logits, -1)
        # H(p, q) = log Z - <p, logits>, since p sums to one.
        entropy = norm - torch.einsum("nc,nc->n", p, logits)
        gradient = logits.sub_(norm[:, None]).exp_().sub_(p).mul_(weight[:, None]).to(h.dtype)
        context.save_for_backward(gradient @ columns)
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
        p = torch.softmax(F.linear(truth, columns).float(), -1)
    total = torch.zeros((), device=truth.device)
    values = []
    for step, predicted in enumerate(outputs):
        h, t = predicted[:, step:].reshape(-1, width), truth[:, step:].reshape(-1, width)
        w = weight[:, step:].reshape(-1)
        w = w / w.sum()
        entropy = soft_cross_entropy(h, columns, p[:, step:].reshape(-1, p.shape[-1]), w)
        values.append(float(entropy.detach()))
        loss = entropy
        if gram is not None:
            error = h.float() - t.float()
            loss = loss + config.gram * ((error @ gram) * error).sum(-1).mul(w).sum() / 2
        total = total + loss * STEP_DECAY**step
    return total, values

"""Products of half types with float32 sums, and the grouped attention made of them: what a GPU's
matrix units do. On a CPU the factors are widened, since its libraries round each sum.

Nothing here reads a value back or has a shape that depends on data.
"""

from __future__ import annotations

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
MASKED = torch.finfo(torch.float32).min
"""Score of a key that is not seen: finite, so that a row that sees no key has numbers too."""


def own_dtype(weight: Tensor) -> bool:
    """Is the matrix multiplied in its own dtype where it lies?"""
    return weight.dtype in HALF and weight.device.type != "cpu"


def product(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T``, float32 [n, m] of x [n, k] and weight [m, k] (float32, bf16 or fp16), x
    rounded to a half weight's dtype."""
    x = x.to(weight.dtype)
    if own_dtype(weight):
        return torch.mm(x, weight.t(), out_dtype=torch.float32)
    return x.float() @ weight.float().t()


def _batched(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``, float32 [B, n, m], of [B, n, k] and [B, k, m] of one dtype."""
    return (
        torch.bmm(a, b, out_dtype=torch.float32)
        if own_dtype(a)
        else torch.bmm(a.float(), b.float())
    )


def grouped_attention(
    q: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float, softcap: float = 0.0
) -> Tensor:
    """Attention float32 [n, heads * head_dim]: q [n, heads, head_dim], keys and values [T,
    kv_heads, head_dim], ``seen`` bool [n, T].

    The queries of a group of heads become rows of one product with their keys, so that nothing is
    expanded: kv_heads products [n * group, head_dim] x [head_dim, T]. Rounding as in
    ``reference.decoder_layer``: queries and softmax numerators to the cache's dtype, scores and
    sums float32.
    """
    n, heads, size = q.shape
    kv_heads = keys.shape[1]
    rows = q.to(keys.dtype).reshape(n, kv_heads, heads // kv_heads, size).transpose(0, 1)
    scores = _batched(rows.reshape(kv_heads, -1, size), keys.permute(1, 2, 0)) * scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.view(kv_heads, n, heads // kv_heads, -1)
    scores = scores.masked_fill(~seen[None, :, None], MASKED).flatten(1, 2)
    weight = torch.exp(scores - scores.amax(-1, keepdim=True)).to(values.dtype)
    total = weight.sum(-1, keepdim=True, dtype=torch.float32)
    out = _batched(weight, values.transpose(0, 1)) / total
    return out.view(kv_heads, n, -1, size).transpose(0, 1).reshape(n, heads * size)

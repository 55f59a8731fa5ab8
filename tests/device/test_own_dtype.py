"""On a GPU half matrices are multiplied in their own dtype; keys and values are not expanded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pretend import DeviceTensor, pretend_cuda, to_host
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from dynaspec_cli.ops import reference
from dynaspec_cli.ops.layer import dense_layer
from dynaspec_cli.ops.product import grouped_attention, product
from dynaspec_cli.ops.reference_tree import tree_mask

HALF = (torch.bfloat16, torch.float16)
D, HEADS, KV_HEADS, SIZE, INNER, ROWS, COMMITTED = 48, 6, 2, 16, 40, 5, 11


class Largest(TorchDispatchMode):
    """Numbers in the largest float32 tensor that any operation makes."""

    seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.seen = max([self.seen, *(t.numel() for t in made if t.dtype == torch.float32)])
        return out


def on_gpu(values: Any) -> Any:
    return tree_map(lambda t: DeviceTensor(t) if isinstance(t, torch.Tensor) else t, values)


def layer(dtype: torch.dtype, gated: bool) -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(3)

    def randn(*shape: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
        return (torch.randn(shape, generator=g) * 0.3).to(kind)

    qkv = (HEADS + 2 * KV_HEADS) * SIZE
    norm = randn(D) if gated else torch.empty(0)
    weights = dense_layer(
        [
            randn(D),
            randn(qkv, D, kind=dtype),
            randn(qkv),
            randn(SIZE),
            randn(SIZE),
            randn(D, HEADS * SIZE, kind=dtype),
            norm,
            randn(D),
            randn(2 * INNER, D, kind=dtype),
            randn(D, INNER, kind=dtype),
            norm,
        ]
    )
    cache = randn(32, KV_HEADS, SIZE, kind=torch.bfloat16)
    parents = torch.tensor([-1, 0, 0, 1, 3])
    mask, depth = tree_mask(parents)
    angle = randn(ROWS, SIZE)
    shape = (HEADS, KV_HEADS, SIZE, 1e-6, 0.25, 7, "gelu_tanh", 3.0)
    x = randn(ROWS, D) * 3
    return (
        x, weights, cache, cache.clone(), angle.cos(), angle.sin(), depth + COMMITTED, mask,
        COMMITTED, *shape,
    )  # fmt: skip


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", HALF)
def test_a_layer_is_the_cpus_and_widens_no_matrix(dtype: torch.dtype, gated: bool) -> None:
    expected = reference.decoder_layer(*layer(dtype, gated))
    with pretend_cuda() as guard:
        given = on_gpu(layer(dtype, gated))
        guard.hot = True
        with Largest() as largest:
            got = reference.decoder_layer(*given)
    tolerance = 1e-5 if dtype == torch.bfloat16 else 2e-2  # fp16 rounds the inputs there alone
    torch.testing.assert_close(to_host(got), expected, atol=tolerance, rtol=tolerance)
    assert largest.seen < INNER * D
    assert largest.seen < 32 * HEADS * SIZE


def test_the_check_would_notice_a_widened_matrix() -> None:
    with pretend_cuda(), Largest() as largest:
        x = on_gpu(torch.ones(2, D))
        _ = x @ on_gpu(torch.ones(INNER, D, dtype=torch.bfloat16)).float().t()
    assert largest.seen >= INNER * D


@pytest.mark.parametrize("dtype", HALF)
def test_a_product_rounds_its_input_and_not_its_sum(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(1)
    x, weight = torch.randn(3, 64, generator=g), torch.randn(7, 64, generator=g).to(dtype)
    expected = x.to(dtype).double() @ weight.double().t()
    with pretend_cuda():
        got = to_host(product(on_gpu(x), on_gpu(weight)))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(product(x, weight), got)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_attention_is_the_expanded_one(dtype: torch.dtype, softcap: float) -> None:
    g = torch.Generator().manual_seed(2)
    q = torch.randn(ROWS, HEADS, SIZE, generator=g)
    keys, values = (torch.randn(20, KV_HEADS, SIZE, generator=g).to(dtype) for _ in "kv")
    seen = torch.rand(ROWS, 20, generator=g) < 0.5
    seen[:, 3] = True
    expected = reference._attention(q, keys, values, seen, 0.3, softcap)
    got = grouped_attention(q, keys, values, seen, 0.3, softcap)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_a_row_that_sees_no_key_has_numbers() -> None:
    keys = torch.ones(4, KV_HEADS, SIZE)
    got = grouped_attention(
        torch.ones(2, HEADS, SIZE), keys, keys, torch.zeros(2, 4, dtype=torch.bool), 1.0
    )
    assert got.isfinite().all()

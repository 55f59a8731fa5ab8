"""linear.cu on the SIMT machine against the reference ops; the router's streams and events."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch

from dynaspec_cli.ops import reference

from .machine import FLOAT32, Machine
from .test_head import DTYPES, as_bytes

CODES = {dtype: code for code, dtype in DTYPES.items()}


def code(tensor: torch.Tensor | None) -> ctypes.c_int:
    return ctypes.c_int(FLOAT32 if tensor is None else CODES[tensor.dtype])


def constant(machine: Machine, tensor: torch.Tensor | None, name: str) -> ctypes.c_void_p | None:
    return None if tensor is None else machine.constant(as_bytes(tensor), name)


def linear(machine: Machine, a, b, weight, scale, bias, silu: bool = False) -> np.ndarray:  # type: ignore[no-untyped-def]
    n, m = a.shape[0], weight.shape[0]
    out = machine.output((n, m), np.float32, "out")
    status = machine.launch(
        "dynaspec_linear",
        constant(machine, a, "a"),
        code(a),
        a.shape[1],
        constant(machine, b, "b"),
        code(b),
        0 if b is None else b.shape[1],
        n,
        constant(machine, weight, "weight"),
        code(weight),
        constant(machine, scale, "scale"),
        constant(machine, bias, "bias"),
        code(bias),
        m,
        ctypes.c_int(silu),
        out,
        None,
    )
    assert status == 0
    return out.array.copy()


def draw(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    if dtype == torch.int8:
        return torch.randint(-127, 128, shape, generator=g).to(dtype)
    return torch.randn(shape, generator=g).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 16, 1), (3, 40, 17), (9, 33, 8), (8, 640, 20), (17, 1, 5)], ids=str
)
def test_linear(machine: Machine, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    n, k, m = shape
    x = draw((n, k), [torch.float32, torch.bfloat16, torch.float16][n % 3], n)
    weight = draw((m, k), dtype, m)
    scale = torch.rand(m) * 0.1 if dtype == torch.int8 else None
    bias = draw((m,), torch.float32, 3) if n != 3 else None
    got = linear(machine, x, None, weight, scale, bias)
    expected = reference.linear(x, weight, bias, scale).numpy()
    np.testing.assert_allclose(
        got, expected, atol=3e-6 * max(1, np.abs(expected).max()) * k**0.5, rtol=0
    )


def test_a_row_does_not_depend_on_the_rows_beside_it(machine: Machine) -> None:
    x, weight = draw((11, 72), torch.float32, 1), draw((9, 72), torch.bfloat16, 2)
    together = linear(machine, x, None, weight, None, None)
    for i in (0, 8, 10):
        machine.reset(i)
        np.testing.assert_array_equal(
            linear(machine, x[i : i + 1], None, weight, None, None)[0], together[i]
        )


class RouterStruct(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("w1", "b1", "w2", "b2")],
        *[(name, ctypes.c_int) for name in ("w1_dtype", "b1_dtype", "w2_dtype", "b2_dtype")],
        ("inner", ctypes.c_int64),
        ("clusters", ctypes.c_int64),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["mlp", "centroid", "centroid with bias"])
def test_router(machine: Machine, kind: str, dtype: torch.dtype) -> None:
    n, d, e, inner, clusters = 5, 40, 24, 19, 33
    features, embedding = draw((n, d), torch.float32, 1), draw((n, e), torch.bfloat16, 2)
    mlp = kind == "mlp"
    w1 = draw((inner, d + e), dtype, 3) * 0.1 if mlp else None
    b1 = draw((inner,), torch.float32, 4) if mlp else None
    w2 = draw((clusters, inner if mlp else d), dtype, 5)
    b2 = draw((clusters,), dtype, 6) if kind != "centroid" else None
    pointers = [constant(machine, t, "router") for t in (w1, b1, w2, b2)]
    router = RouterStruct(
        *[p.value if p else None for p in pointers],
        *[code(t).value for t in (w1, b1, w2, b2)],
        inner,
        clusters,
    )
    scores = machine.output((n, clusters), np.float32, "scores")
    inner_values = machine.output((n, inner), np.float32, "inner")
    status = machine.launch(
        "dynaspec_router_scores",
        ctypes.byref(router),
        constant(machine, features, "features"),
        code(features),
        d,
        constant(machine, embedding, "embedding"),
        code(embedding),
        e,
        n,
        scores,
        inner_values,
        None,
    )
    assert status == 0
    empty = torch.zeros(0)
    parts = [empty if t is None else t for t in (w1, b1, w2, b2)]
    expected = reference.router_clusters(features, embedding, *parts).numpy()
    # A bf16 second layer rounds the inner activations: one unit in the last place of them at most.
    np.testing.assert_allclose(
        scores.array, expected, atol=2e-5 if dtype == torch.float32 else 0.05, rtol=0
    )


def test_side_stream_order(machine: Machine) -> None:
    main, side, fork, join = (ctypes.c_void_p(i) for i in (1, 2, 3, 4))
    assert machine.launch("dynaspec_fork", main, side, fork) == 0
    assert machine.launch("dynaspec_join", main, side, join) == 0
    # event, stream: the side waits for main's fork, main waits for the side's join.
    assert machine.events().splitlines() == ["record 3 1", "wait 3 2", "record 4 2", "wait 4 1"]

"""rms_norm and drafter_input against their references."""

from __future__ import annotations

import pytest
import torch

from dynaspec_cli.ops import drafter_input, reference, rms_norm
from dynaspec_cli.ops.extension import EXTENSION

COMPILED = EXTENSION.module is not None
WEIGHTS = [torch.float32, torch.bfloat16, torch.float16]


def make(n: int, d: int, parts: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(n * 1000 + d + parts)
    features = torch.randn(n, d, generator=g)
    embedded = 3 * torch.randn((parts - 1) * n, d, generator=g)
    norms = torch.rand(parts, d, generator=g) + 0.5
    fc = (torch.randn(d, parts * d, generator=g) / d**0.5).to(dtype)
    return features, embedded, norms, fc, torch.randn(d, generator=g)


@pytest.mark.parametrize("d", [1, 3, 16, 63, 640])
@pytest.mark.parametrize("n", [0, 1, 5, 40])
def test_rms_norm(n: int, d: int) -> None:
    x, weight = make(n, d, 1, torch.float32)[0], torch.rand(d) + 0.5
    got = rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(got, reference.rms_norm(x, weight, 1e-6), rtol=2e-6, atol=1e-6)
    for i in range(n if COMPILED else 0):
        assert torch.equal(rms_norm(x[i : i + 1], weight, 1e-6), got[i : i + 1])


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize(("n", "d"), [(0, 8), (1, 33), (4, 64), (17, 640)])
def test_drafter_input(n: int, d: int, parts: int, dtype: torch.dtype) -> None:
    features, embedded, norms, fc, gate = make(n, d, parts, dtype)
    got = drafter_input(features, embedded, norms, fc, gate, 1e-6)
    wanted = reference.drafter_input(features, embedded, norms, fc, gate, 1e-6)
    # bf16 inputs of the product may round the other way where the norms differ in the last bit.
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    for i in range(n if COMPILED else 0):
        own = embedded.view(parts - 1, n, d)[:, i].contiguous()
        alone = drafter_input(features[i : i + 1], own, norms, fc, gate, 1e-6)
        assert torch.equal(alone, got[i : i + 1])


def test_registration() -> None:
    if not COMPILED:
        pytest.skip("the extension is not in use")
    arguments = make(3, 16, 3, torch.bfloat16)
    torch.library.opcheck(torch.ops.dynaspec.drafter_input.default, (*arguments, 1e-6))
    torch.library.opcheck(torch.ops.dynaspec.rms_norm.default, (arguments[0], torch.ones(16), 1e-6))


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(3, 15), r"features: expected contiguous float32 \[3, 16\]"),
        (1, torch.zeros(5, 16), r"embedded: expected contiguous float32 \[6, 16\]"),
        (3, torch.zeros(16, 47), r"fc: expected .*\[16, 48\]"),
        (4, torch.zeros(15), r"gate: expected contiguous float32 \[16\]"),
    ],
)
def test_bad_input(index: int, value: torch.Tensor, message: str) -> None:
    arguments = list(make(3, 16, 3, torch.float32))
    arguments[index] = value
    with pytest.raises(ValueError, match=message):
        drafter_input(*arguments, 1e-6)

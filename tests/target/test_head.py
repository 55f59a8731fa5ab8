"""The LM head's three questions against plain float64 arithmetic, with and without the compiled
ops."""

from __future__ import annotations

import pytest
import torch

from dynaspec_cli.checkpoints.fingerprint import head_hash
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target import head as head_module
from dynaspec_cli.target.head import LMHead, leaders
from dynaspec_cli.weights.weight import Weight, dense


@pytest.fixture(params=[True, False], ids=["ops", "torch"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(Weight, "compiled", False)
    return bool(request.param)


def made(dtype: torch.dtype, rows: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(1003, 24, generator=generator).to(dtype)
    return weight, torch.randn(rows, 24, generator=generator).to(dtype).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", ["plain", "bias", "scaled", "capped"])
def test_head(shape: str, dtype: torch.dtype, compiled: bool) -> None:
    weight, hidden = made(dtype)
    bias = torch.randn(1003, generator=torch.Generator().manual_seed(6)) * 3
    head = {
        "plain": LMHead(dense(weight)),
        "bias": LMHead(dense(weight), bias=bias),
        "scaled": LMHead(dense(weight), multiplier=0.25),
        "capped": LMHead(dense(weight), multiplier=2.0, softcap=6.0),
    }[shape]
    exact = hidden.double() @ weight.double().T
    if shape == "bias":
        exact += bias.double()
    exact *= head.multiplier
    if head.softcap is not None:
        exact = head.softcap * torch.tanh(exact / head.softcap)
    torch.testing.assert_close(head.logits(hidden).double(), exact, atol=1e-4, rtol=1e-4)
    assert head.logits(hidden).dtype == torch.float32
    assert torch.equal(head.argmax(hidden), exact.argmax(-1))
    assert torch.equal(head.leaders(hidden, 5), exact.topk(5, -1).indices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_ties_go_to_the_lowest_id(dtype: torch.dtype, compiled: bool) -> None:
    weight, hidden = made(dtype, rows=3)
    best = LMHead(dense(weight)).argmax(hidden)
    for row in range(3):
        copies = torch.tensor([1002, 500, int(best[row])])
        tied = weight.clone()
        tied[copies] = weight[best[row]]
        head = LMHead(dense(tied))
        low = int(copies.min())
        assert int(head.argmax(hidden[row : row + 1])) == low
        assert head.leaders(hidden[row : row + 1], 3)[0].tolist() == sorted(copies.tolist())


def test_near_ties_below_the_half_types_grid(compiled: bool) -> None:
    """bf16 logits of 16 lie 0.125 apart; here the winner leads by 0.01 and must still win."""
    weight = torch.zeros(64, 2, dtype=torch.bfloat16)
    weight[10] = torch.tensor([16.0, 0.0])
    weight[40] = torch.tensor([16.0, 0.01])
    head = LMHead(dense(weight))
    hidden = torch.tensor([[1.0, 1.0]])
    assert head.argmax(hidden).tolist() == [40]
    assert head.leaders(hidden, 2).tolist() == [[40, 10]]


def test_many_rows_in_pieces(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "PIECE_ELEMENTS", 2500)
    monkeypatch.setattr(head_module, "PIECE_ROWS", 3)
    weight, hidden = made(torch.float32, rows=11)
    exact = hidden @ weight.T
    head = LMHead(dense(weight))
    assert torch.equal(head.argmax(hidden), exact.argmax(-1))
    assert torch.equal(head.leaders(hidden, 2), exact.topk(2, -1).indices)


def test_hash_binds_to_the_weights_not_to_their_dtype() -> None:
    weight = torch.randn(9000, 16, generator=torch.Generator().manual_seed(7))
    rounded = weight.bfloat16()
    assert head_hash(weight) == head_hash(rounded) == head_hash(rounded.float())
    assert head_hash(rounded) == head_hash(rounded.half())
    assert len(head_hash(weight)) == 32
    for row in (0, 8999):
        changed = weight.clone()
        changed[row, 3] += 0.1
        assert head_hash(changed) != head_hash(weight)
    swapped = weight[torch.randperm(9000, generator=torch.Generator().manual_seed(8))]
    assert head_hash(swapped) != head_hash(weight)
    assert head_hash(weight[:, :8]) != head_hash(weight)
    assert head_hash(weight.view(4500, 32)) != head_hash(weight)


@pytest.mark.parametrize("vocab", [100, 512 * 4, 512 * 5, 512 * 9 + 77])
def test_leaders_by_stripes_are_those_of_a_whole_sort(vocab: int) -> None:
    """Also where they share a stripe, or lie in the rest that fills none, or are minus infinity."""
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(6, vocab, generator=generator)
    logits[1, 3:6] += 10
    logits[2, -2:] += 10
    logits[3, : vocab - 1] = -torch.inf
    logits[4, vocab // 2] += 10
    ids = leaders(logits, 3)
    assert torch.equal(logits.gather(1, ids), logits.sort(descending=True).values[:, :3])
    assert all(len(set(row)) == 3 for row in ids.tolist())


@pytest.mark.parametrize("extra", [{}, {"softcap": 6.0}, {"bias": torch.zeros(40)}])
def test_logits_that_are_no_numbers_have_no_best_token(extra) -> None:
    weight = torch.randn(40, 8)
    weight[7, 3] = float("nan")
    head = LMHead(dense(weight), **extra)
    hidden = torch.randn(2, 8)
    for best in (lambda: head.argmax(hidden), lambda: head.leaders(hidden, 3)):
        with pytest.raises(DynaSpecError, match="hold NaN or infinite values"):
            best()

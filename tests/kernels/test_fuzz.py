"""Random shapes, dtypes, budgets, offsets, ids against the references (DYNASPEC_FUZZ_SECONDS)."""

from __future__ import annotations

import os
import random
import time

import pytest
import torch
from head_cases import DTYPES, assert_same_topk, make_case
from packed_cases import make_packed

from dynaspec_cli import ops
from dynaspec_cli.ops import reference, reference_packed
from dynaspec_cli.ops.extension import EXTENSION
from dynaspec_cli.ops.formats import PACKED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(EXTENSION.module is None, reason=EXTENSION.reason),
]


def one_round(seed: int) -> None:
    rng = random.Random(seed)
    vocab = rng.choice([1, 2, 63, 64, 65, 257, rng.randint(1, 3000)])
    width = rng.choice([1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 640, rng.randint(1, 300)])
    if rng.random() < 0.15:  # too wide for the L1 cache: the kernels cut k into spans
        vocab, width = min(vocab, 400), rng.choice([1040, 1553, 2048, 2069, 4096])
    case = make_case(
        seed,
        n=rng.choice([1, 2, 6, 7, 12, 13, rng.randint(1, 110)]),
        d=width,
        vocab=vocab,
        dtype=rng.choice(list(DTYPES.values())),
        clusters=rng.randint(1, 40),
        extra=rng.choice([0, 1, rng.randint(0, 200)]),
        core=rng.choice([0, 1, rng.randint(0, vocab)]),
        budget=rng.choice([0, vocab, rng.randint(0, vocab)]),
        permuted=rng.random() < 0.5,
    )
    torch.set_num_threads(rng.choice([1, 2, 3]))
    temperature = rng.choice([1.0, rng.uniform(0.2, 3.0)])
    atol = 3e-5 / min(temperature, 1.0)
    blocks, size = ops.shortlist_union(*case.union)
    want_blocks, want_size = reference.shortlist_union(*case.union)
    assert torch.equal(blocks, want_blocks)
    assert int(size) == int(want_size)
    linear = ops.linear(case.hidden, case.head, None, case.scale)
    want_linear = reference.linear(case.hidden, case.head, None, case.scale)
    torch.testing.assert_close(linear, want_linear, atol=3e-5, rtol=2e-5)
    if int(size) == 0:
        return
    k = rng.choice([1, 10, 64, int(size), int(size) + 5, rng.randint(1, 64)])
    got = ops.draft_head(*case.dense, *case.union, k, temperature)
    assert_same_topk(got, reference.shortlist_topk(*case.dense, blocks, k, temperature), atol)
    log_q, ids, _ = ops.shortlist_log_probs(*case.dense, blocks, temperature)
    want_q, want_ids, _ = reference.shortlist_log_probs(*case.dense, blocks, temperature)
    assert torch.equal(ids, want_ids)
    torch.testing.assert_close(log_q, want_q, atol=atol, rtol=0)


def packed_round(seed: int) -> None:
    rng = random.Random(seed)
    form = PACKED[rng.choice(list(PACKED))]
    columns = form.block[0] * rng.randint(1, 70 if form.block[0] == 32 else 9)
    m, n = rng.choice([1, 2, 3, 7, rng.randint(1, 600)]), rng.choice([1, 2, 9, rng.randint(1, 110)])
    packed, values = make_packed(form, m, columns, seed)
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, columns, generator=g) * 10.0 ** rng.uniform(-6, 6)
    torch.set_num_threads(rng.choice([1, 2, 3]))
    bias = torch.randn(m, generator=g) if rng.random() < 0.5 else None
    got = ops.linear(x, packed, bias, None, form.code)
    exact = reference_packed.activations(x, form, ops.backend().removeprefix("cpu-"))
    want = exact @ values.double().t() + (0.0 if bias is None else bias.double())
    largest = exact.abs().sum(1)[:, None] * values.double().abs().amax(1) + 1.0
    assert ((got - want).abs() / largest).max() < 40 * 2.0**-24
    i = rng.randrange(n)
    alone = ops.linear(x[i : i + 1], packed, bias, None, form.code)
    assert torch.equal(alone[0], got[i])
    ids = torch.randint(0, m, (rng.randint(0, 20),), generator=g)
    assert torch.equal(ops.embed_rows(packed, ids, form.code, columns), values[ids])
    order = torch.randperm(m, generator=g, dtype=torch.int32)
    lo = rng.randrange(m)
    blocks = torch.tensor([[lo, rng.randint(lo + 1, m)]], dtype=torch.int32)
    x = x / x.abs().amax(1, keepdim=True).clamp_min(1e-30)
    arguments = (x, packed, torch.empty(0), order, blocks, rng.randint(1, 20), 0.9, form.code, True)
    moved = (x, packed[order.long()], torch.empty(0), order, *arguments[4:8])
    for a, b in zip(ops.shortlist_topk(*arguments), ops.shortlist_topk(*moved), strict=True):
        assert torch.equal(a, b)


def test_fuzz() -> None:
    threads = torch.get_num_threads()
    deadline = time.monotonic() + float(os.environ.get("DYNASPEC_FUZZ_SECONDS", "20"))
    seed = int(os.environ.get("DYNASPEC_FUZZ_SEED", "0"))
    first = seed
    try:
        while time.monotonic() < deadline:
            try:
                one_round(seed)
                packed_round(seed)
            except Exception as error:
                raise AssertionError(f"DYNASPEC_FUZZ_SEED={seed} fails") from error
            seed += 1
    finally:
        torch.set_num_threads(threads)
    print(f"{seed - first} rounds")

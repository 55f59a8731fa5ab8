"""Packed weights: a GGUF file's blocks in the kernels' order, against plain arithmetic."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from decoder_cases import Shape, layer_arguments
from packed_cases import FORMATS, make_blocks, make_packed
from test_isa import LEVELS, run_child

from dynaspec_cli import ops
from dynaspec_cli.ops import reference, reference_packed
from dynaspec_cli.ops.extension import EXTENSION
from dynaspec_cli.ops.formats import BYTE_LEVELS, PACKED, PAIRS, PackedFormat

pytestmark = pytest.mark.skipif(EXTENSION.module is None, reason=EXTENSION.reason)

NONE = torch.empty(0)
LEVEL = ops.backend().removeprefix("cpu-")
BLOCKS = [1, 2, 3, 4, 5, 7, 8, 12, 15, 18, 20, 64]  # of 32 values: every mixture of groups
by_format = pytest.mark.parametrize("form", PACKED.values(), ids=FORMATS)


def widths(form: PackedFormat) -> list[int]:
    return [32 * n for n in BLOCKS] if form.block[0] == 32 else [256, 512, 1280, 2048]


@by_format
def test_numbers_are_the_kernels(form: PackedFormat) -> None:
    """The kernels name the form of a number, and know no others."""
    name = form.name
    with pytest.raises(ValueError, match=rf"a multiple of {form.block[0]} values in {name}, got 7"):
        ops.embed_rows(torch.zeros(1, 1, dtype=torch.uint8), torch.tensor([0]), form.code, 7)
    with pytest.raises(ValueError, match="format: expected that of packed rows, got 12"):
        ops.embed_rows(torch.zeros(1, 1, dtype=torch.uint8), torch.tensor([0]), 4 + len(PACKED), 32)


@by_format
def test_rows_are_the_files(form: PackedFormat) -> None:
    """Every value of a packed row is the block's own, to the bit, and so says the reference."""
    for columns in widths(form):
        packed, values = make_packed(form, 9, columns, seed=columns)
        ids = torch.tensor([8, 0, 3, 3])
        rows = ops.embed_rows(packed, ids, form.code, columns)
        assert torch.equal(rows, values[ids])
        plain = reference_packed.embed_rows(packed, ids, form.code, columns)
        assert torch.equal(plain, values[ids])


def activations(n: int, columns: int, seed: int) -> torch.Tensor:
    """Rows of different sizes, one of zeros, one with an outlier, one denormal."""
    x = torch.randn(n, columns, generator=torch.Generator().manual_seed(seed))
    x *= torch.logspace(-3, 3, n)[:, None]
    x[0, columns // 3] = 300.0
    if n > 3:
        x[1], x[2] = 0.0, x[2] * 1e-40
    return x


def assert_close(
    got: torch.Tensor, want: torch.Tensor, x: torch.Tensor, values: torch.Tensor
) -> None:
    """Up to some twenty roundings of float32 sums whose terms are scale times code and minimum."""
    largest = x.abs().sum(1)[:, None] * values.double().abs().amax(1) + 1.0
    assert ((got - want).abs() / largest).max() < 20 * 2.0**-24


@by_format
def test_products(form: PackedFormat) -> None:
    """Against the float64 product of the block's values and the quantised activations."""
    for columns in widths(form):
        packed, values = make_packed(form, 37, columns, seed=columns + 1)
        for n in (1, 4, 17, 33):
            x = activations(n, columns, seed=n)
            bias = torch.randn(37, generator=torch.Generator().manual_seed(3))
            got = ops.linear(x, packed, bias, None, form.code)
            exact = reference_packed.activations(x, form, LEVEL)
            want = exact @ values.double().t() + bias.double()
            assert_close(got, want, exact, values)
            assert_close(reference.linear(x, packed, bias, None, form.code), want, exact, values)


@by_format
def test_activations_are_close(form: PackedFormat) -> None:
    """16 bits: 0.01 % of the row; 8 bits for each 32 or 256 values: 1 %."""
    x = torch.randn(5, 1024, generator=torch.Generator().manual_seed(0))
    for level in LEVELS:
        error = (reference_packed.activations(x, form, level) - x).norm() / x.norm()
        exact = form.activations == PAIRS and level not in BYTE_LEVELS
        assert error < (1e-4 if exact else 1e-2)


# Runs in the child: every kernel, and the same for each row alone, in other batches, on other
# numbers of threads, and for rows found by an index.
CHILD = """
import sys
import torch
from packed_cases import make_packed
from test_packed import activations, widths
from dynaspec_cli import ops
from dynaspec_cli.ops.formats import PACKED
none, outputs = torch.empty(0), {}
for form in PACKED.values():
    for columns in widths(form):
        packed, _ = make_packed(form, 301, columns, seed=columns)
        x = activations(35, columns, seed=columns)
        whole = ops.linear(x, packed, None, None, form.code)
        for n in (1, 2, 5, 9, 16, 17, 33):
            for lo in range(0, 35, n):
                part = ops.linear(x[lo : lo + n], packed, None, None, form.code)
                assert torch.equal(part, whole[lo : lo + n]), (form.name, columns, n)
        torch.set_num_threads(1)
        assert torch.equal(ops.linear(x, packed, None, None, form.code), whole)
        torch.set_num_threads(2)
        for first in (1, 3, 7):  # another place in the tiles
            part = ops.linear(x, packed[first:].contiguous(), None, None, form.code)
            assert torch.equal(part, whole[:, first:]), (form.name, columns, first)
        order = torch.randperm(301, generator=torch.Generator().manual_seed(1), dtype=torch.int32)
        blocks = torch.tensor([[3, 5], [17, 270], [299, 301]], dtype=torch.int32)
        found = ops.shortlist_log_probs(x, packed, none, order, blocks, 1.0, None, form.code, True)
        moved = packed[order.long()].contiguous()
        copied = ops.shortlist_log_probs(x, moved, none, order, blocks, 1.0, None, form.code)
        for a, b in zip(found, copied):
            assert torch.equal(a, b)
        outputs[form.name, columns] = whole
torch.save({"backend": ops.backend(), "outputs": outputs}, sys.argv[1])
"""


@pytest.mark.parametrize("level", LEVELS)
def test_batch_invariance_at_every_level(level: str, tmp_path) -> None:
    if level not in EXTENSION.module.available_isas().split(","):
        pytest.skip(f"this processor lacks {level}")
    saved = tmp_path / "outputs.pt"
    child = run_child(level, CHILD, str(saved))
    assert child.returncode == 0, child.stderr
    result = torch.load(saved)
    assert result["backend"] == f"cpu-{level}"
    for (name, columns), got in result["outputs"].items():
        form = PACKED[name]
        _, values = make_packed(form, 301, columns, seed=columns)
        exact = reference_packed.activations(activations(35, columns, seed=columns), form, level)
        assert_close(got, exact @ values.double().t(), exact, values)


def test_avx_vnni_gives_the_bits_of_avx2(tmp_path) -> None:
    if "avx_vnni" not in EXTENSION.module.available_isas().split(","):
        pytest.skip("this processor lacks avx_vnni")
    results = []
    for level in ("avx2", "avx_vnni"):
        saved = tmp_path / f"{level}.pt"
        child = run_child(level, CHILD, str(saved))
        assert child.returncode == 0, child.stderr
        results.append(torch.load(saved)["outputs"])
    for key, want in results[0].items():
        assert torch.equal(results[1][key], want), key


@by_format
def test_head_ops(form: PackedFormat) -> None:
    columns, n = 512, 5
    packed, _ = make_packed(form, 1000, columns, seed=5)
    hidden = torch.randn(n, columns, generator=torch.Generator().manual_seed(5)) / columns**0.5
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(6), dtype=torch.int32)[
        :700
    ]
    blocks = torch.tensor([[0, 40], [41, 42], [100, 700]], dtype=torch.int32)
    arguments = (hidden, packed, NONE, order, blocks)
    best = ops.shortlist_topk(*arguments, 8, 0.8, form.code, True)
    log_q, ids, lse = ops.shortlist_log_probs(*arguments, 0.8, None, form.code, True)
    want_q, want_ids, want_lse = reference.shortlist_log_probs(*arguments, 0.8, form.code, True)
    assert torch.equal(ids, want_ids)
    torch.testing.assert_close(log_q, want_q, atol=3e-5, rtol=0)
    torch.testing.assert_close(lse, want_lse, atol=3e-5, rtol=0)
    top = torch.sort(log_q, dim=1, descending=True, stable=True)
    assert torch.equal(best[0], top.values[:, :8])
    assert torch.equal(best[1], ids[top.indices[:, :8]])
    scores = torch.randn(n, 7, generator=torch.Generator().manual_seed(7))
    offsets = torch.arange(0, 701, 100, dtype=torch.int32)
    extra = torch.tensor([3, 650], dtype=torch.int32)
    fused = ops.draft_head(
        hidden, packed, NONE, order, scores, offsets, extra, 10, 300, 8, 0.8, form.code, True
    )
    again = ops.shortlist_topk(hidden, packed, NONE, order, fused[4], 8, 0.8, form.code, True)
    for a, b in zip(fused[:3], again, strict=True):
        assert torch.equal(a, b)


def test_gather_of_a_dense_head() -> None:
    head = torch.randn(300, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    hidden = torch.randn(3, 48, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(2), dtype=torch.int32)
    blocks = torch.tensor([[5, 280]], dtype=torch.int32)
    found = ops.shortlist_topk(hidden, head, NONE, order, blocks, 9, 1.0, gather=True)
    copied = ops.shortlist_topk(hidden, head[order.long()], NONE, order, blocks, 9, 1.0)
    for a, b in zip(found, copied, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("names", [("q8_0", "q5_0", "q4_1"), ("q4_k", "q4_k", "q6_k")])
def test_decoder_layer(names: tuple[str, str, str]) -> None:
    """Each matrix in a form of its own: against the reference, and each row of a chain alone."""
    shape = dataclasses.replace(Shape(), d=256, heads=4, kv_heads=2, head_dim=64, ffn=512)
    arguments = layer_arguments(shape, n=5, committed=0)
    forms = [PACKED[name] for name in names]
    sizes = {"q": (256, 256), "k": (128, 256), "v": (128, 256), "out": (256, 256)}
    sizes |= {"gate": (512, 256), "up": (512, 256), "down": (256, 512)}
    made = {}
    for index, (name, (rows, columns)) in enumerate(sizes.items()):
        form = forms[index % 3]
        made[name] = (make_packed(form, rows, columns, seed=index)[0], form.code)
    weights = arguments["weights"]._replace(
        qkv=tuple(made[name][0] for name in "qkv"),
        out=made["out"][0],
        gate_up=(made["gate"][0], made["up"][0]),
        down=made["down"][0],
        formats=tuple(code for _, code in made.values()),
    )
    arguments["weights"] = weights
    caches = arguments["k_cache"].clone(), arguments["v_cache"].clone()
    got = ops.decoder_layer(**arguments)
    plain = dict(arguments, k_cache=caches[0].clone(), v_cache=caches[1].clone())
    want = reference.decoder_layer(**plain)
    # Rounding may move an activation to the next code: a step of a row's or a block's scale.
    error = (got - want).norm() / want.norm()
    assert error < (1e-4 if names[0] == "q8_0" and LEVEL not in BYTE_LEVELS else 5e-3)
    rows = []
    for i in range(5):
        row = slice(i, i + 1)
        rows.append(
            ops.decoder_layer(
                arguments["x"][row], weights, *caches, arguments["cos"][row], arguments["sin"][row],
                torch.tensor([i]), torch.ones(1, 1, dtype=torch.bool), i, shape.heads,
                shape.kv_heads, shape.head_dim, 1e-6, 0.25, shape.window, shape.activation,
            )
        )  # fmt: skip
    assert torch.equal(torch.cat(rows), got)


@by_format
def test_bad_input(form: PackedFormat) -> None:
    values, columns = form.block[0], 2 * form.block[0]
    packed, _ = make_packed(form, 4, columns, seed=0)
    x = torch.zeros(2, columns)
    with pytest.raises(ValueError, match=rf"multiple of {values} values in {form.name}, got"):
        ops.linear(torch.zeros(2, columns + 1), packed, None, None, form.code)
    with pytest.raises(ValueError, match=rf"uint8 \[rows, {form.row_bytes(columns)}\]"):
        ops.linear(x, packed[:, :-2].contiguous(), None, None, form.code)
    with pytest.raises(ValueError, match="uint8"):
        ops.linear(x, packed.to(torch.int8), None, None, form.code)
    with pytest.raises(ValueError, match="ids: expected rows below 4, got 4"):
        ops.embed_rows(packed, torch.tensor([0, 4]), form.code, columns)
    with pytest.raises(ValueError, match="ids: expected rows below 4, got -1"):
        ops.embed_rows(packed, torch.tensor([-1]), form.code, columns)
    for bad in (99, 0, 3):
        with pytest.raises(ValueError, match=f"format: expected that of packed rows, got {bad}"):
            ops.linear(x, packed, None, None, bad)
    blocks = make_blocks(form, 4, columns, seed=0)
    out = torch.empty(blocks.shape, dtype=torch.uint8)
    with pytest.raises(ValueError, match="columns: expected a multiple"):
        ops.pack_blocks(torch.from_numpy(blocks), form.code, columns + 1, out)
    both = torch.from_numpy(blocks)
    with pytest.raises(ValueError, match="out: expected memory of its own"):
        ops.pack_blocks(both, form.code, columns, both)
    order = torch.tensor([0, 9], dtype=torch.int32)
    one = torch.tensor([[1, 2]], dtype=torch.int32)
    with pytest.raises(ValueError, match="row_ids: expected rows of the head, below 4, got 9"):
        ops.shortlist_topk(x, packed, NONE, order, one, 1, 1.0, form.code, True)


@by_format
@pytest.mark.parametrize("bad", [0x7C00, 0xFC00, 0x7E01])
def test_damaged_scales_are_refused(form: PackedFormat, bad: int) -> None:
    from packed_cases import halves

    columns = 2 * form.block[0]
    for at, _ in halves(form):
        blocks = make_blocks(form, 100, columns, seed=0)
        place = form.block[1] + at
        blocks[[70, 80], place : place + 2] = [bad & 255, bad >> 8]
        out = torch.empty(blocks.shape, dtype=torch.uint8)
        with pytest.raises(ValueError, match=r"finite scales, got NaN or infinity in row 70"):
            ops.pack_blocks(torch.from_numpy(blocks), form.code, columns, out)


@by_format
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_bad_activations_show(form: PackedFormat, bad: float) -> None:
    """A row that is not finite gives NaN in all its results, and leaves the others alone."""
    columns = 512
    packed, _ = make_packed(form, 20, columns, seed=0)
    x = torch.randn(3, columns, generator=torch.Generator().manual_seed(0))
    want = ops.linear(x, packed, None, None, form.code)
    x[1, 400] = bad
    got = ops.linear(x, packed, None, None, form.code)
    assert got[1].isnan().all()
    assert torch.equal(got[[0, 2]], want[[0, 2]])

"""The decoder layer: against the reference, and bit for bit against itself in other company."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from decoder_cases import (
    BF16,
    PARENTS,
    REFERENCE_SHAPES,
    Model,
    Shape,
    layer_arguments,
    make_tokens,
    make_weights,
)
from torch import Tensor

from dynaspec_cli.ops import (
    compiled,
    decoder_layer,
    kv_commit,
    reference,
    tree_mask,
)


@pytest.mark.parametrize("name", REFERENCE_SHAPES)
@pytest.mark.parametrize(
    ("n", "earlier", "committed"), [(1, 0, 0), (1, 0, 75), (17, 0, 70), (6, 11, 5), (40, 0, 3)]
)
def test_matches_reference(name: str, n: int, earlier: int, committed: int) -> None:
    s = REFERENCE_SHAPES[name]
    generator = torch.Generator().manual_seed(n)
    weights = make_weights(s, generator)
    t = n + earlier
    mask, depth = tree_mask(torch.tensor(PARENTS[:t] if t <= 17 else [i - 1 for i in range(t)]))
    caches = [
        torch.randn(committed + t + 2, s.kv_heads, s.head_dim, generator=generator) for _ in "kv"
    ]
    x = torch.randn(n, s.d, generator=generator)
    cos, sin = (torch.randn(n, s.head_dim, generator=generator) for _ in "cs")
    rows = (cos, sin, committed + depth, mask[earlier:].contiguous(), committed)
    results = []
    for function in (decoder_layer, reference.decoder_layer):
        k, v = (c.clone().to(s.cache_dtype) for c in caches)
        results.append((function(x.clone(), weights, k, v, *rows, *s.args()), k, v))
    low = s.dtype == BF16 or s.cache_dtype == BF16
    for got, wanted in zip(*results, strict=True):
        # A rounding to bf16 may fall to the other side: one part in 256 of one of many terms.
        bound = (2e-2 if low else 2e-5) * float(wanted.float().abs().max())
        torch.testing.assert_close(got.float(), wanted.float(), rtol=0, atol=bound)


EXACT_SHAPES = {
    "float32": Shape(),
    "float32-window": Shape(kv_heads=1, head_dim=16, window=13, activation="gelu_tanh"),
    "float32-softcap": Shape(head_norms=False, window=13, softcap=1.5),
    "bf16": Shape(dtype=BF16, cache_dtype=BF16),
    "bf16-softcap": Shape(head_dim=18, dtype=BF16, cache_dtype=BF16, softcap=0.7),
    "bf16-window": Shape(
        kv_heads=1, head_dim=48, dtype=BF16, cache_dtype=BF16, window=13, post_norms=False
    ),
    "bf16-odd": Shape(heads=3, kv_heads=1, head_dim=18, dtype=BF16, cache_dtype=BF16, window=6),
    "bf16-wide": Shape(
        d=192, heads=4, kv_heads=1, head_dim=128, ffn=256, dtype=BF16, cache_dtype=BF16
    ),
}
exact = pytest.mark.parametrize("name", EXACT_SHAPES)
needs_kernels = pytest.mark.skipif(
    not compiled(torch.empty(0)), reason="the PyTorch fallback is exact only up to rounding"
)


def path_of(node: int) -> list[int]:
    path = [node]
    while PARENTS[path[0]] >= 0:
        path.insert(0, PARENTS[path[0]])
    return path


def decode_one_by_one(model: Model, tokens: list[int], committed: int = 0) -> Tensor:
    rows = [model.extend([token], committed + i) for i, token in enumerate(tokens)]
    return torch.cat(rows)


@needs_kernels
@exact
@pytest.mark.parametrize("prompt_length", [1, 21, 68])
def test_tree_pass_equals_decoding_token_by_token(name: str, prompt_length: int) -> None:
    """Every node of a branching tree has the bits that plain decoding of its path gives, in the
    caches too: greedy speculative decoding is exact in any dtype."""
    model = Model(EXACT_SHAPES[name], layers=3, rows=128)
    prompt, tokens = make_tokens(prompt_length, 1), make_tokens(len(PARENTS), 2)
    model.extend(prompt, 0)
    got = model.tree(tokens, PARENTS, prompt_length)
    keys, values = model.keys.clone(), model.values.clone()
    for leaf in (16, 15, 8, 5, 13):
        path = path_of(leaf)
        wanted = decode_one_by_one(model, [tokens[i] for i in path], prompt_length)
        assert torch.equal(got[path], wanted)
        committed = slice(prompt_length, prompt_length + len(path))
        rows = [prompt_length + i for i in path]
        assert torch.equal(keys[:, rows], model.keys[:, committed])
        assert torch.equal(values[:, rows], model.values[:, committed])


@needs_kernels
@exact
def test_prefill_equals_decoding_token_by_token(name: str) -> None:
    tokens = make_tokens(75, 3)
    at_once, in_parts, one_by_one = (Model(EXACT_SHAPES[name], layers=2, rows=80) for _ in range(3))
    wanted = decode_one_by_one(one_by_one, tokens)
    assert torch.equal(at_once.extend(tokens, 0), wanted)
    parts = [in_parts.extend(tokens[a:b], a) for a, b in ((0, 33), (33, 34), (34, 75))]
    assert torch.equal(torch.cat(parts), wanted)
    assert torch.equal(at_once.keys[:, :75], one_by_one.keys[:, :75])


@needs_kernels
@exact
def test_decoding_goes_on_after_a_commit(name: str) -> None:
    """Tree, commit of a path, next tree: the same bits as plain decoding of the accepted tokens."""
    model, plain = (Model(EXACT_SHAPES[name], layers=2, rows=128) for _ in range(2))
    prompt, tokens = make_tokens(19, 4), make_tokens(len(PARENTS), 5)
    path = [0, 2, 6, 9]
    for m in (model, plain):
        m.extend(prompt, 0)
    model.tree(tokens, PARENTS, 19)
    kv_commit([*model.keys, *model.values], torch.tensor([19]), torch.tensor(path))
    decode_one_by_one(plain, [tokens[i] for i in path], 19)
    got = model.tree(tokens[::-1], PARENTS, 23)
    wanted = decode_one_by_one(plain, [tokens[::-1][i] for i in path_of(16)], 23)
    assert torch.equal(got[path_of(16)], wanted)


@needs_kernels
@exact
def test_order_and_number_of_rows_do_not_matter(name: str) -> None:
    model = Model(EXACT_SHAPES[name], layers=2, rows=128)
    tokens, prompt = make_tokens(len(PARENTS), 6), make_tokens(30, 7)
    model.extend(prompt, 0)
    wanted = model.tree(tokens, PARENTS, 30)
    # another order in which parents precede children, and half of the tree
    depth_first = sorted(range(len(PARENTS)), key=lambda i: [-j for j in path_of(i)])
    for chosen in (depth_first, [i for i in range(len(PARENTS)) if 1 not in path_of(i)]):
        place = {node: i for i, node in enumerate(chosen)}
        parents = [place[PARENTS[node]] if node else -1 for node in chosen]
        assert all(parent < i for i, parent in enumerate(parents))
        got = model.tree([tokens[node] for node in chosen], parents, 30)
        assert torch.equal(got, wanted[chosen])


@needs_kernels
@exact
def test_growing_the_tree_by_frontiers_equals_one_pass(name: str) -> None:
    """A drafter's use: later frontiers find their ancestors among the rows of earlier passes."""
    model = Model(EXACT_SHAPES[name], layers=1, rows=128)
    tokens, committed = make_tokens(len(PARENTS), 8), 26
    model.extend(make_tokens(committed, 9), 0)
    wanted = model.tree(tokens, PARENTS, committed)
    mask, depth = tree_mask(torch.tensor(PARENTS))
    for begin, end in ((0, 4), (4, 7), (7, 10), (10, 17)):
        rows = torch.tensor(tokens[begin:end])
        got = model.run(
            rows, committed + depth[:end], mask[begin:end, :end].contiguous(), committed
        )
        assert torch.equal(got, wanted[begin:end])


@needs_kernels
@pytest.mark.parametrize("name", ["float32", "bf16-wide"])
def test_threads_do_not_matter(name: str) -> None:
    threads = torch.get_num_threads()
    tokens = make_tokens(90, 10)
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            model = Model(EXACT_SHAPES[name], layers=2, rows=128)
            model.extend(tokens, 0)
            results.append((model.tree(tokens[:17], PARENTS, 90), model.extend(tokens[:1], 90)))
    finally:
        torch.set_num_threads(threads)
    for tree, row in results[1:]:
        assert torch.equal(tree, results[0][0])
        assert torch.equal(row, results[0][1])


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize("level", ["scalar", "avx2", "avx512"])
def test_lower_instruction_sets(level: str) -> None:
    from dynaspec_cli import _C

    if level not in _C.available_isas().split(",") or os.environ.get("DYNASPEC_CPU_ISA"):
        pytest.skip(f"{level} is not there to be chosen")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", __file__]
    run = subprocess.run(
        command,
        env={**os.environ, "DYNASPEC_CPU_ISA": level},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:]


@needs_kernels
def test_opcheck() -> None:
    x, weights, *rest = layer_arguments(replace(Shape(), dtype=BF16, cache_dtype=BF16)).values()
    torch.library.opcheck(torch.ops.dynaspec.decoder_layer.default, (x, *weights, *rest))


def test_no_rows() -> None:
    arguments = layer_arguments(Shape(), n=0)
    assert decoder_layer(**arguments).shape == (0, 48)

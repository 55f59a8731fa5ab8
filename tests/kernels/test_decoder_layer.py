"""The decoder layer: against the reference, and bit for bit against itself in other company."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from dynaspec_cli.ops import (
    LayerWeights,
    compiled,
    decoder_layer,
    dense_layer,
    kv_commit,
    reference,
    tree_mask,
)

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@dataclass(frozen=True)
class Shape:
    d: int = 48
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 20
    ffn: int = 72
    dtype: torch.dtype = F32
    cache_dtype: torch.dtype = F32
    window: int = 0
    activation: str = "silu"
    bias: bool = False
    head_norms: bool = True
    post_norms: bool = True
    softcap: float = 0.0

    def args(self) -> tuple[int, int, int, float, float, int, str, float]:
        scale = self.head_dim**-0.5
        sizes = (self.heads, self.kv_heads, self.head_dim)
        return (*sizes, 1e-6, scale, self.window, self.activation, self.softcap)


def make_weights(s: Shape, generator: torch.Generator) -> LayerWeights:
    def matrix(rows: int, k: int) -> Tensor:
        return (torch.randn(rows, k, generator=generator) * k**-0.5).to(s.dtype)

    def norm(size: int, present: bool = True) -> Tensor:
        if not present:
            return torch.empty(0)
        return 1 + 0.2 * torch.randn(size, generator=generator)

    qkv = (s.heads + 2 * s.kv_heads) * s.head_dim
    return dense_layer(
        [
            norm(s.d),
            matrix(qkv, s.d),
            torch.randn(qkv, generator=generator) if s.bias else torch.empty(0),
            norm(s.head_dim, s.head_norms),
            norm(s.head_dim, s.head_norms),
            matrix(s.d, s.heads * s.head_dim),
            norm(s.d, s.post_norms),
            norm(s.d),
            matrix(2 * s.ffn, s.d),
            matrix(s.d, s.ffn),
            norm(s.d, s.post_norms),
        ]
    )


class Model:
    """Layers with caches of their own; rows are named by token and position."""

    def __init__(self, s: Shape, layers: int, rows: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.shape = s
        self.layers = [make_weights(s, generator) for _ in range(layers)]
        self.embedding = torch.randn(32, s.d, generator=generator)
        angle = torch.arange(4096)[:, None] * 100.0 ** -torch.linspace(0, 1, s.head_dim // 2)
        self.cos, self.sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
        size = (layers, rows, s.kv_heads, s.head_dim)
        self.keys = torch.full(
            size, float("nan"), dtype=s.cache_dtype
        )  # unwritten rows must not be read
        self.values = torch.full(size, float("nan"), dtype=s.cache_dtype)

    def run(self, tokens: Tensor, positions: Tensor, mask: Tensor, committed: int) -> Tensor:
        """Output [n, d] of the last n = len(tokens) rows of the tree."""
        x = self.embedding[tokens]
        own = positions[positions.numel() - tokens.numel() :]
        for w, k, v in zip(self.layers, self.keys, self.values, strict=True):
            cos, sin = self.cos[own], self.sin[own]
            x = decoder_layer(x, w, k, v, cos, sin, positions, mask, committed, *self.shape.args())
        return x

    def extend(self, tokens: list[int], committed: int) -> Tensor:
        """A chain of tokens behind the committed rows."""
        n = len(tokens)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        return self.run(
            torch.tensor(tokens), torch.arange(committed, committed + n), mask, committed
        )

    def tree(self, tokens: list[int], parents: list[int], committed: int) -> Tensor:
        mask, depth = tree_mask(torch.tensor(parents))
        return self.run(torch.tensor(tokens), committed + depth, mask, committed)


def make_tokens(n: int, seed: int) -> list[int]:
    return torch.randint(0, 32, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


PARENTS = [-1, 0, 0, 0, 1, 1, 2, 4, 4, 6, 7, 10, 11, 3, 12, 9, 14]

REFERENCE_SHAPES = {
    "gemma": Shape(kv_heads=1, head_dim=32, window=9, activation="gelu_tanh"),
    "gemma2": Shape(head_norms=False, window=9, activation="gelu_tanh", softcap=1.5),
    "llama": Shape(head_norms=False, post_norms=False),
    "qwen2": Shape(d=56, head_norms=False, post_norms=False, bias=True),
    "qwen3": Shape(d=60, heads=6, kv_heads=3, head_dim=10, post_norms=False),
    "one-group": Shape(kv_heads=4, head_dim=34),
    "fp16": Shape(dtype=F16),
    "mixed": Shape(cache_dtype=BF16),
    "bf16": Shape(
        d=64, head_dim=72, dtype=BF16, cache_dtype=BF16, window=30, activation="gelu_tanh"
    ),
    "bf16-llama": Shape(
        dtype=BF16, cache_dtype=BF16, head_norms=False, post_norms=False, bias=True
    ),
}


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


def layer_arguments(s: Shape, n: int = 3, committed: int = 4) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    cache = torch.randn(committed + n, s.kv_heads, s.head_dim, generator=generator)
    return {
        "x": torch.randn(n, s.d, generator=generator),
        "weights": make_weights(s, generator),
        "k_cache": cache.to(s.cache_dtype),
        "v_cache": cache.clone().to(s.cache_dtype),
        "cos": torch.ones(n, s.head_dim),
        "sin": torch.zeros(n, s.head_dim),
        "positions": torch.arange(committed, committed + n),
        "mask": torch.ones(n, n, dtype=torch.bool).tril(),
        "cache_len": committed,
        "num_heads": s.heads,
        "num_kv_heads": s.kv_heads,
        "head_dim": s.head_dim,
        "eps": 1e-6,
        "scale": 0.25,
        "window": s.window,
        "activation": s.activation,
    }


def replaced(weights: object, **changed: object) -> LayerWeights:
    assert isinstance(weights, LayerWeights)
    return weights._replace(**changed)


BAD = {
    "x dtype": ("x", lambda a: a["x"].double(), r"x: expected .* got"),
    "x shape": ("x", lambda a: a["x"][0], r"x: expected .* got"),
    "cache too short": ("cache_len", lambda a: 5, r"cache_len|k_cache"),
    "cache dtype": ("v_cache", lambda a: a["v_cache"].bfloat16(), r"v_cache: expected .* got"),
    "cos": ("cos", lambda a: a["cos"][:, :4], r"cos: expected .* got"),
    "positions": (
        "positions",
        lambda a: a["positions"] - 1,
        r"positions: expected at least .* got 3",
    ),
    "positions dtype": ("positions", lambda a: a["positions"].int(), r"positions: expected .* got"),
    "mask shape": ("mask", lambda a: a["mask"][:2], r"mask: expected .* got"),
    "mask diagonal": ("mask", lambda a: a["mask"].triu(1), r"mask: expected every row"),
    "heads": ("num_heads", lambda a: 3, r"num_heads: expected .* got 3"),
    "head_dim": ("head_dim", lambda a: 7, r"head_dim: expected .* got 7"),
    "window": ("window", lambda a: -1, r"window: expected .* got -1"),
    "softcap": ("softcap", lambda a: -1.0, r"softcap: expected .* got -1"),
    "scale": ("scale", lambda a: float("nan"), r"scale: expected .* got nan"),
    "activation": ("activation", lambda a: "relu", r"activation: expected .* got relu"),
    "too few formats": (
        "weights",
        lambda a: replaced(a["weights"], formats=(-1, -1, -1)),
        r"formats: expected one for each matrix",
    ),
    "too many formats": (
        "weights",
        lambda a: replaced(a["weights"], formats=(-1,) * 5),
        r"formats: expected one for each matrix, got 1 too many",
    ),
    "no gate": (
        "weights",
        lambda a: replaced(a["weights"], gate_up=()),
        r"gate_up: expected an even number of rows, got 0",
    ),
    "qkv": (
        "weights",
        lambda a: replaced(a["weights"], qkv=(torch.zeros(4, 4),)),
        r"qkv: expected .* got",
    ),
    "norm": (
        "weights",
        lambda a: replaced(a["weights"], input_norm=torch.zeros(48).half()),
        r"input_norm: expected",
    ),
    "one norm": (
        "weights",
        lambda a: replaced(a["weights"], k_norm=torch.empty(0)),
        r"k_norm: expected .* both",
    ),
    "bias": (
        "weights",
        lambda a: replaced(a["weights"], qkv_bias=torch.zeros(3)),
        r"qkv_bias: expected .* got",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    name, change, message = BAD[case]
    arguments = layer_arguments(Shape())
    arguments[name] = change(arguments)
    with pytest.raises(ValueError, match=message):
        decoder_layer(**arguments)


@needs_kernels
def test_opcheck() -> None:
    x, weights, *rest = layer_arguments(replace(Shape(), dtype=BF16, cache_dtype=BF16)).values()
    torch.library.opcheck(torch.ops.dynaspec.decoder_layer.default, (x, *weights, *rest))


def test_no_rows() -> None:
    arguments = layer_arguments(Shape(), n=0)
    assert decoder_layer(**arguments).shape == (0, 48)

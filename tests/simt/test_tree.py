"""tree*.cu and kv_commit.cu on the SIMT machine against the reference ops."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch

from dynaspec_cli.ops import reference_tree as reference

from .machine import Machine


def random_parents(n: int, rng: np.random.Generator, spread: int = 12) -> np.ndarray:
    parents = [-1] + [int(rng.integers(max(0, i - spread), i)) for i in range(1, n)]
    return np.array(parents, np.int64)


@pytest.mark.parametrize("n", [1, 2, 8, 33, 150])
def test_tree_mask(machine: Machine, n: int) -> None:
    parents = random_parents(n, np.random.default_rng(n), spread=n)
    mask, depth = machine.output((n, n), np.bool_, "mask"), machine.output((n,), np.int64, "depth")
    assert (
        machine.launch(
            "dynaspec_tree_mask", machine.constant(parents, "parents"), n, mask, depth, None
        )
        == 0
    )
    expected_mask, expected_depth = reference.tree_mask(torch.from_numpy(parents))
    np.testing.assert_array_equal(mask.array, expected_mask.numpy())
    np.testing.assert_array_equal(depth.array, expected_depth.numpy())


@pytest.mark.parametrize("n", [1, 5, 64, 1025])
@pytest.mark.parametrize("seed", range(4))
def test_greedy_walk(machine: Machine, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parents, tokens, choices = (
        random_parents(n, rng, 4 + n // 4),
        rng.integers(0, 3, n),
        rng.integers(0, 3, n),
    )
    machine.reset(seed)
    path, length = machine.output((n,), np.int64, "path"), machine.output((1,), np.int64, "length")
    inputs = [machine.constant(x, "tree") for x in (tokens, parents, choices)]
    assert machine.launch("dynaspec_greedy_walk", *inputs, n, path, length, None) == 0
    expected = reference.greedy_walk(*map(torch.from_numpy, (tokens, parents, choices))).numpy()
    used = int(length.array[0])
    np.testing.assert_array_equal(path.array[:used], expected)
    assert (path.array[used:] == -1).all()


@pytest.mark.parametrize("seed", range(8))
def test_topk_expand(machine: Machine, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w, k = int(rng.choice([1, 3, 10, 40])), int(rng.choice([1, 4, 33]))
    count = int(rng.integers(1, min(w * k, 1024) + 1))
    scores, log_q = (
        rng.standard_normal(w).astype(np.float32),
        rng.standard_normal((w, k)).astype(np.float32),
    )
    if seed % 2:  # many ties
        scores, log_q = np.round(scores), np.round(log_q)
        log_q[rng.random((w, k)) < 0.2] = -np.inf
    machine.reset(seed)
    index, score = (
        machine.output((count,), np.int64, "index"),
        machine.output((count,), np.float32, "score"),
    )
    inputs = machine.constant(scores, "scores"), machine.constant(log_q, "log_q")
    assert machine.launch("dynaspec_topk_expand", *inputs, w, k, count, index, score, None) == 0
    expected = reference.topk_expand(torch.from_numpy(scores), torch.from_numpy(log_q), count)
    np.testing.assert_array_equal(index.array, expected[0].numpy())
    np.testing.assert_array_equal(score.array, expected[1].numpy())


@pytest.mark.parametrize("seed", range(8))
def test_tree_rerank(machine: Machine, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.choice([1, 7, 100, 2100]))
    count = int(rng.integers(1, n + 1))
    parents = np.array([int(rng.integers(-1, i)) for i in range(n)], np.int64)
    scores = rng.standard_normal(n).astype(np.float32)
    if seed % 2:
        scores = np.round(scores)
    machine.reset(seed)
    index, new_parents = (
        machine.output((count,), np.int64, "index"),
        machine.output((count,), np.int64, "parents"),
    )
    status = machine.launch(
        "dynaspec_tree_rerank",
        machine.constant(scores, "scores"),
        machine.constant(parents, "parents"),
        n,
        count,
        index,
        new_parents,
        machine.workspace(machine.size("dynaspec_rerank_workspace", n)),
        None,
    )
    assert status == 0
    expected = reference.tree_rerank(torch.from_numpy(scores), torch.from_numpy(parents), count)
    np.testing.assert_array_equal(index.array, expected[0].numpy())
    np.testing.assert_array_equal(new_parents.array, expected[1].numpy())


class CacheStruct(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
    ]


class WalkStruct(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("tokens", "parents")],
        *[(name, ctypes.c_int64) for name in ("n", "vocab")],
        *[(name, ctypes.c_void_p) for name in ("probs", "uniforms")],
    ]


class DraftStruct(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("values", "ids")],
        *[(name, ctypes.c_int64) for name in ("rows", "size")],
        ("row_of", ctypes.c_void_p),
        ("replacement", ctypes.c_bool),
    ]


def walk(machine: Machine, tokens, parents, probs, uniforms, draft=None):  # type: ignore[no-untyped-def]
    n, vocab = probs.shape
    pointers = [machine.constant(x, "tree").value for x in (tokens, parents)]
    given = WalkStruct(
        *pointers,
        n,
        vocab,
        machine.constant(probs, "probs").value,
        machine.constant(uniforms, "uniforms").value,
    )
    drawn = None
    if draft is not None:
        q, ids, rows, replacement = draft
        drawn = ctypes.byref(
            DraftStruct(
                machine.constant(q, "q").value,
                machine.constant(ids, "q ids").value if ids.size else None,
                *q.shape,
                machine.constant(rows, "q rows").value,
                replacement,
            )
        )
    path, length = machine.output((n,), np.int64, "path"), machine.output((1,), np.int64, "length")
    residual = machine.output((vocab,), np.float32, "residual")
    assert (
        machine.launch(
            "dynaspec_stochastic_walk", ctypes.byref(given), drawn, path, length, residual, None
        )
        == 0
    )
    used = int(length.array[0])
    assert (path.array[used:] == -1).all()
    return path.array[:used].copy(), residual.array.copy()


def random_walk(seed: int, vocab: int, n: int):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    probs = rng.random((n, vocab)).astype(np.float32) ** 3
    probs[rng.random((n, vocab)) < 0.3] = 0
    probs[:, 0] += 0.01
    parents, tokens = random_parents(n, rng), rng.integers(0, min(vocab, 5), n)
    return (
        rng,
        tokens,
        parents,
        probs * rng.uniform(0.5, 2, (n, 1)).astype(np.float32),
        rng.random(n, np.float32),
    )


@pytest.mark.parametrize("seed", range(10))
def test_stochastic_walk(machine: Machine, seed: int) -> None:
    vocab = [3, 6, 1500][seed % 3]
    _, tokens, parents, probs, uniforms = random_walk(seed, vocab, 1 + 5 * seed)
    machine.reset(seed)
    path, residual = walk(machine, tokens, parents, probs, uniforms)
    expected = reference.stochastic_walk(*map(torch.from_numpy, (tokens, parents, probs, uniforms)))
    np.testing.assert_array_equal(path, expected[0].numpy())
    np.testing.assert_allclose(residual, expected[1].numpy(), atol=1e-6)


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_sampled_walk(machine: Machine, seed: int, sparse: bool, replacement: bool) -> None:
    vocab, n = [4, 9, 1200][seed % 3], 4 + 6 * seed
    rng, tokens, parents, probs, uniforms = random_walk(seed, vocab, n)
    rows = rng.integers(-1, 3, n)
    rows[0] = 0
    if sparse:
        size = min(vocab, 5) + 2
        ids = np.stack(
            [rng.permutation(np.arange(size) % (min(vocab, 5) + 1)) for _ in range(3)]
        ).astype(np.int64)
        for i in range(3):  # a token once; the rest is padding
            ids[i][[j for j in range(size) if ids[i][j] in ids[i][:j]]] = -1
        ids[ids >= vocab] = -1
        q = rng.random((3, size)).astype(np.float32)
    else:
        ids, q = np.zeros((0, 0), np.int64), rng.random((3, vocab)).astype(np.float32) ** 2
    machine.reset(seed + 1)
    path, residual = walk(machine, tokens, parents, probs, uniforms, (q, ids, rows, replacement))
    expected = reference.sampled_walk(
        *map(torch.from_numpy, (tokens, parents, probs, uniforms, q, ids, rows)), replacement
    )
    np.testing.assert_array_equal(path, expected[0].numpy())
    np.testing.assert_allclose(residual, expected[1].numpy(), atol=3e-6)
    # What lies outside the vocabulary, or names no row of q, is padding too.
    machine.reset(seed + 2)
    wild = np.where(
        ids < 0, np.where(np.arange(ids.size).reshape(ids.shape) % 2, vocab, 1 << 32), ids
    )
    draft = (q, wild, np.where(rows < 0, 3, rows), replacement)
    path, residual = walk(machine, tokens, parents, probs, uniforms, draft)
    np.testing.assert_array_equal(path, expected[0].numpy())
    np.testing.assert_allclose(residual, expected[1].numpy(), atol=3e-6)


@pytest.mark.parametrize("draft", ["none", "dense", "sparse"])
@pytest.mark.parametrize("bad", [np.nan, 0.0, np.inf, -1.0])
@pytest.mark.parametrize("entered", [0, 1])
def test_a_row_without_a_law_ends_the_walk_in_nan(
    machine: Machine, entered: int, bad: float, draft: str
) -> None:
    """Whatever hangs below it: two siblings that its draft would give, the second with a child."""
    vocab, tokens, parents = 40, np.array([3, 7, 4, 9, 5, 6]), np.array([-1, 0, 1, 1, 3, 1])
    probs = np.full((6, vocab), 1 / vocab, np.float32)
    if entered == 1:
        probs[0] = np.eye(vocab, dtype=np.float32)[7]  # the walk goes from the root to row 1
    probs[entered] = bad if bad != np.inf else 0.1
    if bad == np.inf:
        probs[entered, tokens[1 if entered == 0 else 2]] = np.inf
    uniforms = np.array([0.5, 0.0, 0.9, 0.0, 0.0, 0.9], np.float32)
    drawn = None
    if draft != "none":
        rows = np.array([0, 1, -1, 1, -1, -1])
        q = np.full((2, vocab), 1 / vocab, np.float32)
        ids = np.zeros((0, 0), np.int64)
        if draft == "sparse":
            q, ids = q[:, :12], np.tile(np.arange(12), (2, 1))
        drawn = (q, ids, rows, False)
    path, residual = walk(machine, tokens, parents, probs, uniforms, drawn)
    assert path.tolist() == [0, 1][: entered + 1]
    assert np.isnan(residual).all()


@pytest.mark.parametrize("row_bytes", [32, 40, 6])
def test_kv_commit(machine: Machine, row_bytes: int) -> None:
    rng = np.random.default_rng(row_bytes)
    total, base = 30, 7
    rows = np.array([0, 1, 4, 5, 9, 15, -1, -1], np.int64)
    arrays = [
        rng.integers(0, 256, (total, row_bytes + extra)).astype(np.uint8)
        for extra in (0, row_bytes, 0)
    ]
    caches = [machine.mutable(a, "cache") for a in arrays]

    structs = (CacheStruct * 3)(
        *[CacheStruct(c.pointer.value, total, c.array.shape[1]) for c in caches]
    )
    given = machine.constant(rows, "rows")
    assert machine.launch("dynaspec_kv_commit", structs, 3, base, given, rows.size, None) == 0
    for before, cache in zip(arrays, caches, strict=True):
        expected = torch.from_numpy(before.copy())
        reference.kv_commit([expected], base, torch.from_numpy(rows[rows >= 0]))
        np.testing.assert_array_equal(cache.array, expected.numpy())


@pytest.mark.parametrize("rows", [[0] * 10, [0, 2, 1, 3], [3, 3, 3, 9, 9]])
def test_kv_commit_of_a_path_that_does_not_ascend_stays_within_the_cache(
    machine: Machine, rows: list[int]
) -> None:
    """The machine reports every access outside the buffer."""
    cache = machine.mutable(np.arange(20 * 32, dtype=np.uint8).reshape(20, 32), "cache")
    given = machine.constant(np.array(rows, np.int64), "rows")

    structs = (CacheStruct * 1)(CacheStruct(cache.pointer.value, 20, 32))
    assert machine.launch("dynaspec_kv_commit", structs, 1, 15, given, len(rows), None) == 0


def test_sizes_beyond_the_limits_are_refused(machine: Machine) -> None:
    assert machine.launch("dynaspec_greedy_walk", None, None, None, 1026, None, None, None) != 0
    assert machine.launch("dynaspec_tree_mask", None, 0, None, None, None) != 0
    assert machine.launch("dynaspec_topk_expand", None, None, 1, 4, 5, None, None, None) != 0
    assert machine.launch("dynaspec_tree_rerank", None, None, 70000, 5, None, None, None, None) != 0

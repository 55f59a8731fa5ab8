"""Merges that a vocabulary implies: pairs of tokens that spell a third."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Pairs = NDArray[np.int64]

BASES = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93)
"""Odd, so that powers have inverses modulo 2^64."""


def splits(spellings: Sequence[str]) -> Pairs:
    """int64 [m, 3], (token, left, right): every way to cut a token into two others, by the token's
    place, longer left halves first.

    By hashes of the halves, all at once (half a second for 262,144 tokens, most of it without the
    interpreter's lock, where the obvious loop takes two): the hash of letters c_0 … c_n is
    sum c_i b^i modulo 2^64, which gives that of every half from sums over the whole text. Equal
    texts have equal hashes; a base for which two tokens have the same is not used, and halves are
    compared with the token itself in the end.
    """
    lengths = np.fromiter(map(len, spellings), np.int64, len(spellings))
    text = "".join(spellings).encode("utf-32-le", "surrogatepass")
    letters = np.frombuffer(text, np.uint32).astype(np.uint64) + np.uint64(1)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    token = np.repeat(np.arange(len(spellings)), lengths)
    place = np.arange(len(letters)) - starts[token]
    distinct = len(set(spellings))
    for base in BASES:
        sums = np.zeros(len(letters) + 1, np.uint64)
        longest = int(lengths.max(initial=0)) + 1
        np.cumsum(letters * _powers(base, longest)[place], out=sums[1:])
        hashes = sums[ends] - sums[starts]
        order = np.argsort(hashes, kind="stable")
        ascending = hashes[order]
        if 1 + np.count_nonzero(ascending[1:] != ascending[:-1]) == max(1, distinct):
            break
    else:
        raise ValueError("no hash tells the tokens apart")
    inverse = _powers(pow(base, -1, 1 << 64), longest)

    def find(wanted: NDArray[np.uint64]) -> tuple[Pairs, NDArray[np.bool_]]:
        at = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
        return order[at], ascending[at] == wanted

    cut = np.flatnonzero(place > 0)
    whole = token[cut]
    left, known = find(sums[cut] - sums[starts[whole]])
    cut, whole, left = cut[known], whole[known], left[known]
    right, known = find((sums[ends[whole]] - sums[cut]) * inverse[place[cut]])
    found = np.stack([whole[known], left[known], right[known]], 1)
    found = found[np.lexsort((-place[cut[known]], found[:, 0]))]
    return found[_spelt(spellings, found)]


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


def _spelt(spellings: Sequence[str], found: Pairs) -> NDArray[np.bool_]:
    columns = (map(spellings.__getitem__, column.tolist()) for column in found.T)
    same = (whole == left + right for whole, left, right in zip(*columns, strict=True))
    return np.fromiter(same, np.bool_, len(found))


def by_rank(spellings: Sequence[str]) -> Pairs:
    """int64 [m, 2], (left, right): ``splits`` in their own order."""
    return splits(spellings)[:, 1:]


def by_score(spellings: Sequence[str], scores: NDArray[np.float32]) -> Pairs:
    """int64 [m, 2], (left, right) by the third token's score, the best first, then longer left and
    longer right halves first."""
    found = splits(spellings)
    last = np.fromiter({text: i for i, text in enumerate(spellings)}.values(), np.int64)
    found = found[np.isin(found[:, 0], last)]  # of tokens spelt alike one counts
    lengths = np.fromiter(map(len, spellings), np.int64, len(spellings))
    whole, left, right = found.T
    # Where these agree: the earlier token, then the earlier left half.
    order = np.lexsort((right, left, whole, -lengths[right], -lengths[left], -scores[whole]))
    return found[order, 1:]

"""Merges that a vocabulary implies: every pair of tokens that spells a third, by its definition."""

from __future__ import annotations

import random

import numpy as np

from dynaspec_cli.gguf_files.merges import by_rank, by_score


def merges_by_loops(spellings: list[str], scores: list[float] | None) -> list[tuple[str, str]]:
    """Every pair of tokens that spells a third, as its definition says."""
    found = []
    for index, token in enumerate(spellings):
        for cut in range(len(token) - 1, 0, -1):
            left, right = token[:cut], token[cut:]
            if left in spellings and right in spellings:
                score = 0.0 if scores is None else scores[index]
                places = spellings.index(left), spellings.index(right)
                lengths = (0, 0) if scores is None else (-len(left), -len(right))
                last = (-cut, 0) if scores is None else places
                found.append(((-score, *lengths, index, *last), (left, right)))
    return [pair for _, pair in sorted(found)]


def test_merges_of_a_vocabulary() -> None:
    rng = random.Random(0)
    letters = "ab\u2581\u6771\U0001f600"
    for count in (0, 1, 40, 150):
        texts = {"".join(rng.choices(letters, k=rng.randint(1, 5))) for _ in range(count)}
        spellings = rng.sample(sorted(texts), len(texts)) + [""] * (count > 1)
        scores = np.array([rng.choice((-1.0, -2.0, -3.0)) for _ in spellings], np.float32)
        for found, wanted in (
            (by_rank(spellings), merges_by_loops(spellings, None)),
            (by_score(spellings, scores), merges_by_loops(spellings, scores.tolist())),
        ):
            assert [(spellings[a], spellings[b]) for a, b in found.tolist()] == wanted
            assert count < 40 or len(wanted) > 10


def test_tokens_spelt_alike_count_once() -> None:
    """The last of them, as in the tokenizer's own dictionary."""
    spellings, scores = ["a", "ab", "b", "ab", "aa"], np.array([0, -3, 0, -1, -2], np.float32)
    merges = [(spellings[a], spellings[b]) for a, b in by_score(spellings, scores).tolist()]
    assert merges == [("a", "b"), ("a", "a")]

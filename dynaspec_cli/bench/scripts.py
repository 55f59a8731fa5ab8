"""Which writing system a token belongs to, for coverage by script."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache

from dynaspec_cli.bench.method import TurnTrace

SCRIPTS = ("Latin", "Cyrillic", "CJK", "Arabic", "Devanagari", "Thai", "code", "other", "common")
"""``CJK`` holds Han, kana and Hangul; ``common`` digits, punctuation, spaces, emoji and fragments
of characters; ``other`` every other alphabet; ``code`` all tokens of a code prompt's answer."""

_PREFIXES = {
    "LATIN": "Latin",
    "FULLWIDTH LATIN": "Latin",
    "CYRILLIC": "Cyrillic",
    "CJK": "CJK",
    "HIRAGANA": "CJK",
    "KATAKANA": "CJK",
    "HANGUL": "CJK",
    "ARABIC": "Arabic",
    "DEVANAGARI": "Devanagari",
    "THAI": "Thai",
}


@lru_cache(maxsize=65536)
def script_of(text: str) -> str:
    """The script of the first letter (or combining mark) of a token's text."""
    for character in text:
        if unicodedata.category(character)[0] not in "LM":
            continue
        name = unicodedata.name(character, "")
        if name.startswith(("COMBINING", "VARIATION")):
            continue
        for prefix, script in _PREFIXES.items():
            if name.startswith(prefix):
                return script
        return "other"
    return "common"


def is_code_task(task: str) -> bool:
    """Code is told by the task: its tokens are Latin letters and punctuation like any others."""
    return task == "code" or task.endswith("_code")


def covered_by_script(
    turns: Iterable[TurnTrace], task: str, piece: Callable[[int], str]
) -> dict[str, tuple[int, int]]:
    """Script -> (covered positions, positions) over the verified positions of a trace.

    ``piece`` gives a token id's text. ``StepStats.covered[i]`` speaks of the (i+1)-th token that a
    step settled; the first token of a turn comes from the prefill. Tokens that the length limit cut
    off have no id in the trace and are left out.
    """
    counts: dict[str, tuple[int, int]] = {}
    code = is_code_task(task)
    for turn in turns:
        start = 1
        for step in turn.steps:
            settled = turn.token_ids[start : start + step.accepted + 1]
            for token, hit in zip(settled, step.covered or (), strict=False):
                script = "code" if code else script_of(piece(token))
                hits, positions = counts.get(script, (0, 0))
                counts[script] = (hits + int(hit), positions + 1)
            start += step.accepted + 1
    return counts

"""How few tokens a text can have, without tokenizing it: its bytes over those of the longest token.

Megabytes take a tokenizer seconds, and a prompt that cannot fit should be refused before. The bound
holds where every token stands for a limited stretch of the normalised text and none of the text is
dropped, which is looked up in the tokenizer's parts: where one is not known to be so, there is no
bound.
"""

from __future__ import annotations

import json
from typing import Any

NORMALIZERS = frozenset(("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend", "Replace"))
PRE_TOKENIZERS = frozenset(("ByteLevel", "Digits", "Metaspace", "Punctuation", "Split"))
SPACE = "▁"
"""What a space may have become, of more bytes."""
CHARACTER = 4
"""Bytes of a character that has no token of its own, at most."""


class LeastTokens:
    """For texts of one ``tokenizers.Tokenizer``."""

    def __init__(self, backend: Any) -> None:
        steps = _kinds(backend.normalizer, "normalizers")
        # One that only makes texts longer is left out, as it takes its time.
        self._normalizer = backend.normalizer if any(map(_shortens, steps)) else None
        self._longest = _longest(backend)

    def of(self, text: str) -> int:
        """A lower bound on the tokens of ``text``; 0 where there is none."""
        if self._longest is None:
            return 0
        if self._normalizer is not None:
            text = self._normalizer.normalize_str(text)
        return -(-len(text.encode("utf-8", "surrogatepass")) // self._longest)


def _longest(backend: Any) -> int | None:
    """Bytes of normalised text that a token stands for, at most; None: no limit is known."""
    steps = _kinds(backend.pre_tokenizer, "pretokenizers")
    normalizers = _kinds(backend.normalizer, "normalizers")
    if (
        type(backend.model).__name__ != "BPE"
        or (backend.model.fuse_unk and not backend.model.byte_fallback)
        or not {step["type"] for step in normalizers} <= NORMALIZERS
        or not {step["type"] for step in steps} <= PRE_TOKENIZERS
        or any(step.get("behavior") == "Removed" for step in steps)
        or any(step["type"] == "Replace" and not step["content"] for step in normalizers)
    ):
        return None
    added = backend.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip for token in added):  # these take any number of spaces in
        return None
    # A byte-level token has a character for each of its bytes.
    by_byte = any(step["type"] == "ByteLevel" for step in steps)
    own = (len(t if by_byte else t.encode()) for t in backend.get_vocab(with_added_tokens=False))
    texts = (len(token.content.replace(" ", SPACE).encode()) for token in added)
    return max(CHARACTER, *own, *texts)


def _shortens(step: dict[str, Any]) -> bool:
    """May a normalizer's step leave fewer bytes than there were?"""
    if step["type"] != "Replace":
        return bool(step["type"] != "Prepend")
    text = step["pattern"].get("String")
    return text is None or len(text.encode()) > len(step["content"].encode())


def _kinds(part: Any, parts: str) -> list[dict[str, Any]]:
    """The settings of a tokenizer's part, or of each of those that it is a sequence of."""
    if part is None:
        return []
    settings = json.loads(part.__getstate__())
    if settings["type"] != "Sequence":
        return [settings]
    return list(settings[parts])

"""Token ids to text, piece by piece, never showing what the next token could still change.

Three things are held back, in this order:

1. bytes that are no character yet: the tail of a byte-level BPE decode, or a run of byte-fallback
   tokens (``<0xE2>``), whose decoding as a whole fails if a later byte is malformed;
2. text that may be the beginning of a stop text;
3. the last grapheme cluster where more of it is likely to come (emoji joined by U+200D, flags,
   keycaps, skin tones, vowel signs).

The pieces concatenate to the tokenizer's decoding of all ids, up to the stop text. One exception:
if malformed bytes follow more than ``MAX_BYTE_RUN`` well-formed byte-fallback tokens, what was
already shown stays, where decoding everything at once would replace every byte of the run.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

REPLACEMENT = "\ufffd"
MAX_BYTE_RUN = 64
"""Byte-fallback tokens held back at most; a run is shown as far as it is well formed after that."""
MAX_WINDOW = 32
"""Tokens decoded at most per call, plus those of the call itself; bounds the work per token."""
MAX_CLUSTER = 64
"""Code points of one grapheme cluster held back at most."""

_TEXT_STYLE_EMOJI = frozenset("\u203c\u2049\u2139\u3030\u303d")
"""Letters and punctuation that a following U+FE0F turns into emoji; the other emoji are symbols."""
_KEYCAP_BASES = frozenset("0123456789#*")
_REGIONAL = range(0x1F1E6, 0x1F200)


class IncrementalDetokenizer:
    """State of one request. ``decode`` maps ids to text; ``byte_tokens`` maps the ids of
    byte-fallback tokens to their byte; ids in ``skip`` have no text; ``context`` are the last ids
    before the first pushed one (their text is not repeated, it decides about a leading space).
    ``special``: the texts of ids in ``skip``, which are not shown but count for ``stop``."""

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        *,
        byte_tokens: Mapping[int, int] | None = None,
        skip: frozenset[int] = frozenset(),
        context: Sequence[int] = (),
        stop: Sequence[str] = (),
        special: Mapping[int, str] | None = None,
    ) -> None:
        self._decode = decode
        self._byte_tokens = byte_tokens or {}
        self._skip = skip
        self._stop = tuple(stop)
        self._special = {
            token: text
            for token, text in (special or {}).items()
            if any(_overlap(text, end) for end in self._stop)
        }
        self._unseen: list[tuple[int, str]] = []  # special texts by their place in the pending text
        self._window = [i for i in context if i not in skip][-MAX_WINDOW:]
        self._seen = len(decode(self._window)) if self._window else 0  # characters of the window
        self._run: list[int] = []  # open run of byte-fallback tokens, not yet in the window
        self._raw: Callable[[int], str] | None = None  # how an open run is shown byte by byte
        self._raw_decoder: codecs.IncrementalDecoder | None = None
        self._pending = ""  # decoded, held back
        self._parts: list[str] = []
        self.num_tokens = 0
        """Tokens consumed, up to and including the one that completed a stop text."""
        self.stopped = False
        """True once a stop text was found; later tokens are ignored."""

    @classmethod
    def for_tokenizer(
        cls, tokenizer: Any, prompt_ids: Sequence[int] = (), stop: Sequence[str] = ()
    ) -> IncrementalDetokenizer:
        """For a ``TextTokenizer`` or one of ``transformers`` or ``tokenizers``. With ``prompt_ids``
        the text continues the prompt (a leading space stays); without, it is a text of its own, as
        for a chat reply."""
        backend: Any = getattr(tokenizer, "backend", None)  # the name of TextTokenizer
        if not hasattr(backend, "get_added_tokens_decoder"):
            backend = getattr(tokenizer, "backend_tokenizer", tokenizer)  # that of transformers
        if hasattr(backend, "get_added_tokens_decoder"):
            added = backend.get_added_tokens_decoder()
            special = {i: token.content for i, token in added.items() if token.special}

            def decode(ids: list[int]) -> str:
                return str(backend.decode(ids, skip_special_tokens=True))

        else:
            special = {i: tokenizer.convert_ids_to_tokens(i) for i in tokenizer.all_special_ids}

            def decode(ids: list[int]) -> str:
                return str(
                    tokenizer.decode(
                        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
                    )
                )

        byte_tokens = _byte_fallback_tokens(backend, decode)
        return cls(
            decode,
            byte_tokens=byte_tokens,
            skip=frozenset(special),
            special=special,
            context=prompt_ids[-MAX_WINDOW:],
            stop=stop,
        )

    @property
    def text(self) -> str:
        """Everything shown so far."""
        return "".join(self._parts)

    def push(self, token_ids: Sequence[int]) -> str:
        """Consume tokens; returns the text that may be shown now (it may lag, or be empty)."""
        if not self._stop:
            for token in token_ids:
                self._feed(token)
            self._drain()
            return self._show(self._pending_end())
        for token in token_ids:
            if self.stopped:
                break
            self._feed(token)
            self._drain()
            self._cut_at_stop(self._pending + self._open_run_text())
        return self._show(len(self._pending) if self.stopped else self._pending_end())

    def finish(self) -> str:
        """The rest, including an incomplete character, which shows as U+FFFD."""
        if not self.stopped:
            self._close_run()
            self._drain(final=True)
            self._cut_at_stop(self._pending)
        return self._show(len(self._pending))

    # -- tokens to decoded text -------------------------------------------------------------------

    def _feed(self, token: int) -> None:
        self.num_tokens += 1
        if token in self._skip:
            if token in self._special:
                self._close_run()
                self._drain()
                self._unseen.append((len(self._pending), self._special[token]))
            return
        if token not in self._byte_tokens:
            self._close_run()
            self._window.append(token)
        elif self._raw is not None:
            self._run = [token]
            self._pending += self._raw(self._byte_tokens[token])
        else:
            self._run.append(token)
            self._check_run()

    def _check_run(self) -> None:
        """Show an open run byte by byte once its fate is known or it has become too long."""
        data = bytes(self._byte_tokens[t] for t in self._run)
        complete = _complete_utf8(data)
        if complete is None:  # malformed: the whole run decodes to one U+FFFD a byte, come what may
            self._drain(final=True)
            self._pending += REPLACEMENT * len(data)
            self._raw = lambda _: REPLACEMENT
        elif len(data) > MAX_BYTE_RUN:
            self._window += self._run[:complete]
            self._drain(final=True)
            decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
            decoder.decode(data[complete:])
            self._raw_decoder = decoder
            self._raw = lambda byte: decoder.decode(bytes([byte]))

    def _close_run(self) -> None:
        if self._raw is None:
            self._window += self._run
        else:
            if self._raw_decoder is not None:
                self._pending += self._raw_decoder.decode(b"", final=True)
            # The run's text is out; the window only needs some text before the next token.
            self._window = self._run[-1:] * 2
            self._seen = len(self._decode(self._window))
        self._run, self._raw, self._raw_decoder = [], None, None

    def _drain(self, final: bool = False) -> None:
        """Move what the window's tokens certainly mean to the pending text."""
        if not self._window:
            return
        text = self._decode(self._window)
        end = len(text)
        if text.endswith(REPLACEMENT) and not final:
            end -= 1
        if end > self._seen:
            self._pending += text[self._seen : end]
            self._seen = end
        if len(self._window) > MAX_WINDOW:
            self._slide(text)

    def _slide(self, text: str) -> None:
        """Forget the window's older tokens, at a border where what follows means the same alone.

        At least 4 tokens, so 4 bytes, are kept: an incomplete character lies in them. They must
        have text, since some tokenizers drop a space at the beginning.
        """
        for keep in range(4, MAX_WINDOW):
            tail = self._window[-keep:]
            kept = self._decode(tail)
            if kept and text.endswith(kept):
                self._seen -= len(text) - len(kept)
                self._window = tail
                return

    def _open_run_text(self) -> str:
        """Text of an open, well-formed byte run; only looked at, to find a stop text in time."""
        if not self._run or self._raw is not None:
            return ""
        text = self._decode(self._window + self._run)[self._seen :]
        return "" if REPLACEMENT in text else text

    # -- decoded text to shown text ---------------------------------------------------------------

    def _matched(self, text: str) -> str:
        """``text``, which begins with the pending text, with the special tokens' texts in it."""
        parts, last = [], 0
        for place, special in self._unseen:
            parts += [text[last:place], special]
            last = place
        return "".join([*parts, text[last:]])

    def _shown_before(self, at: int) -> int:
        """Characters of the pending text that lie before place ``at`` of ``_matched``."""
        hidden = 0
        for place, special in self._unseen:
            if at <= place + hidden:
                break
            if at < place + hidden + len(special):
                return place
            hidden += len(special)
        return at - hidden

    def _cut_at_stop(self, text: str) -> None:
        found = [at for at in map(text.find, self._stop) if at >= 0]
        if self._unseen:
            places = map(self._matched(text).find, self._stop)
            found += [self._shown_before(at) for at in places if at >= 0]
        if found:
            self._pending = text[: min(found)]
            self.stopped = True

    def _pending_end(self) -> int:
        """How much of the pending text cannot change its meaning any more."""
        end = min(self._unfinished_stop(self._pending), _grapheme_end(self._pending))
        if self._unseen:
            seen = self._matched(self._pending)
            end = min(end, self._shown_before(self._unfinished_stop(seen)))
        return end

    def _unfinished_stop(self, text: str) -> int:
        """Where a stop text may have begun that ``text`` ends in, else the text's length."""
        end = len(text)
        for stop in self._stop:
            for n in range(min(len(stop) - 1, len(text)), 0, -1):
                if text.endswith(stop[:n]):
                    end = min(end, len(text) - n)
                    break
        return end

    def _show(self, end: int) -> str:
        shown, self._pending = self._pending[:end], self._pending[end:]
        self._unseen = [(place - end, text) for place, text in self._unseen if place >= end]
        if shown:
            self._parts.append(shown)
        return shown


def _overlap(a: str, b: str) -> bool:
    """Can ``a`` and ``b`` share characters of a text?"""
    if not a or not b or a in b or b in a:
        return bool(a and b)
    shorter = range(1, min(len(a), len(b)))
    return any(a.endswith(b[:n]) or b.endswith(a[:n]) for n in shorter)


def _byte_fallback_tokens(tokenizer: Any, decode: Callable[[list[int]], str]) -> dict[int, int]:
    """Ids of ``<0x00>`` .. ``<0xFF>`` and their byte, if the tokenizer decodes them as bytes."""
    to_id = getattr(tokenizer, "token_to_id", None) or tokenizer.convert_tokens_to_ids
    unknown = getattr(tokenizer, "unk_token_id", None)
    ids = {to_id(f"<0x{byte:02X}>"): byte for byte in range(256)}
    found = {i: byte for i, byte in ids.items() if i is not None and i != unknown}
    letter = next((i for i, byte in found.items() if byte == ord("A")), None)
    return found if letter is not None and decode([letter]) == "A" else {}


def _complete_utf8(data: bytes) -> int | None:
    """Bytes that form whole characters, if the rest is a beginning of one; None if malformed."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start if error.reason == "unexpected end of data" else None
    return len(data)


def _grapheme_end(text: str) -> int:
    """Where the last grapheme cluster begins if more of it is likely to come, else the length."""
    if not text or not _may_grow(text[-1]):
        return len(text)
    start = _last_cluster(text)
    cluster = text[start:]
    whole_flag = len(cluster) == 2 and all(ord(c) in _REGIONAL for c in cluster)
    return len(text) if whole_flag or len(cluster) > MAX_CLUSTER else start


def _may_grow(char: str) -> bool:
    """Is it usual that the code point after ``char`` belongs to the same grapheme cluster?"""
    if char.isascii():
        return char in _KEYCAP_BASES or char == "\r"
    if char in _TEXT_STYLE_EMOJI:
        return True
    category = unicodedata.category(char)
    if category == "Lo":  # abugidas and abjads take marks; ideographs, kana and syllables do not
        return not re.match("[\u2e80-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff]", char) and (
            ord(char) < 0x20000
        )
    return category[0] in "MSC"


def _last_cluster(text: str) -> int:
    import regex  # type: ignore[import-untyped]  # UAX #29 clusters; loaded with the first text that needs it

    start = 0
    tail = max(0, len(text) - 2 * MAX_CLUSTER)
    for match in regex.finditer(r"\X", text, pos=tail):
        start = match.start()
    return start

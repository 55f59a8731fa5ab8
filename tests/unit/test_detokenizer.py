"""Text that was shown is never half a character, and adds up to the full decoding."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import regex

from dynaspec_cli.engine.detokenizer import MAX_BYTE_RUN, MAX_WINDOW, IncrementalDetokenizer

SAMPLES = (
    "The capital of France is Paris.",
    " leading  and   inner    spaces \n\n\ttabs ",
    "naïve café, größer, Straße; e\u0301 decomposed",
    "Привет, мир! Это просто текст.",
    "这是一个例子。日本語のテキストです。한국어 문장",
    "हिन्दी में क्षत्रिय, ไทยภาษา, عَرَبِيّ, עִבְרִית, မြန်မာ",
    "👩‍💻👨‍👩‍👧‍👦 🇩🇪🇫🇷🇬 👍🏽 ❤️‍🔥 1️⃣ #️⃣ ‼️ ℹ️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿!",
    "def f(x):\n    return {'a': [1, 2], \"b\": x ** 2}\r\n",
    "𓀀𓀁 𐍈 ☃ ∑ € ½ �",
)


def pieces(
    tokenizer: Any, ids: Sequence[int], prompt: Sequence[int] = (), chunk: int = 1
) -> list[str]:
    detokenizer = IncrementalDetokenizer.for_tokenizer(tokenizer, prompt)
    out = [detokenizer.push(ids[i : i + chunk]) for i in range(0, len(ids), chunk)]
    out.append(detokenizer.finish())
    assert detokenizer.text == "".join(out)
    assert detokenizer.num_tokens == len(ids)
    return out


def check_random(tokenizer: Any, choices: Sequence[int], rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(rounds):
        ids = [rng.choice(choices) for _ in range(rng.randint(1, 40))]
        full = tokenizer.decode(ids, skip_special_tokens=True)
        for chunk in (1, rng.randint(2, 7)):
            assert "".join(pieces(tokenizer, ids, chunk=chunk)) == full, ids


def check_sample(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    full = tokenizer.decode(ids, skip_special_tokens=True)
    assert full.strip() == text.strip()
    borders = {match.end() for match in regex.finditer(r"\X", full)} | {0}
    for chunk in (1, 2, 5):
        shown = 0
        parts = pieces(tokenizer, ids, chunk=chunk)
        assert "".join(parts) == full
        for part in parts:
            shown += len(part)
            # Latin letters are shown at once although a combining accent could follow them.
            whole = shown in borders or (shown and full[shown - 1].isascii())
            assert whole, (parts, full[:shown])


def test_byte_level_samples(byte_level_tokenizer: Any) -> None:
    for text in SAMPLES:
        check_sample(byte_level_tokenizer, text)


def test_byte_level_random_ids(byte_level_tokenizer: Any) -> None:
    size = byte_level_tokenizer.get_vocab_size()
    check_random(byte_level_tokenizer, range(size), 300, seed=1)


@pytest.mark.parametrize("strip", [False, True])
def test_byte_fallback_samples(byte_fallback_tokenizer: Callable[..., Any], strip: bool) -> None:
    for text in SAMPLES:
        ids = byte_fallback_tokenizer(strip).encode(text.replace(" ", "▁")).ids
        full = byte_fallback_tokenizer(strip).decode(ids)
        parts = pieces(byte_fallback_tokenizer(strip), ids)
        assert "".join(parts) == full
        assert "\ufffd" in text or not any("\ufffd" in part for part in parts)


@pytest.mark.parametrize("strip", [False, True])
def test_byte_fallback_random_ids(byte_fallback_tokenizer: Callable[..., Any], strip: bool) -> None:
    tokenizer = byte_fallback_tokenizer(strip)
    words = list(range(tokenizer.get_vocab_size()))
    few_bytes = [tokenizer.token_to_id(f"<0x{b:02X}>") for b in (0xE2, 0x82, 0xAC, 0x41, 0x20)]
    check_random(tokenizer, words, 150, seed=2)
    check_random(tokenizer, [*few_bytes, *range(259, len(words))], 300, seed=3)
    check_random(tokenizer, few_bytes, 150, seed=4)


def test_long_byte_runs_are_shown_in_bounded_delay(
    byte_fallback_tokenizer: Callable[..., Any],
) -> None:
    tokenizer = byte_fallback_tokenizer()
    text = "𓀀𓀁𓀂" * 40
    ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
    detokenizer = IncrementalDetokenizer.for_tokenizer(tokenizer)
    for n, token in enumerate(ids, 1):
        detokenizer.push([token])
        assert len(detokenizer.text.encode()) >= n - MAX_BYTE_RUN - 8
    detokenizer.push([tokenizer.token_to_id("▁the")])
    assert detokenizer.text + detokenizer.finish() == text + " the"


def test_leading_space_depends_on_the_prompt(byte_fallback_tokenizer: Callable[..., Any]) -> None:
    tokenizer = byte_fallback_tokenizer(True)
    the, cat = tokenizer.token_to_id("▁the"), tokenizer.token_to_id("cat")
    bos = tokenizer.token_to_id("<s>")
    assert "".join(pieces(tokenizer, [the, the])) == "the the"
    assert "".join(pieces(tokenizer, [the, the], prompt=[bos, cat])) == " the the"
    assert "".join(pieces(tokenizer, [the, the], prompt=[bos])) == "the the"


def test_emoji_and_flags_wait_for_their_rest(byte_fallback_tokenizer: Callable[..., Any]) -> None:
    tokenizer = byte_fallback_tokenizer()
    ids = [tokenizer.token_to_id(t) for t in ("👩", "\u200d", "💻", "s", ".")]
    assert pieces(tokenizer, ids) == ["", "", "", "👩\u200d💻s", ".", ""]
    one = tokenizer.token_to_id("1")
    keycap = [one, *(tokenizer.token_to_id(f"<0x{b:02X}>") for b in "\ufe0f\u20e3".encode())]
    assert [p for p in pieces(tokenizer, [*keycap, ids[-1]]) if p] == ["1\ufe0f\u20e3."]


def test_latin_text_is_not_delayed(byte_level_tokenizer: Any) -> None:
    ids = byte_level_tokenizer.encode("The capital of France").ids
    detokenizer = IncrementalDetokenizer.for_tokenizer(byte_level_tokenizer)
    for n in range(1, len(ids) + 1):
        detokenizer.push([ids[n - 1]])
        assert detokenizer.text == byte_level_tokenizer.decode(ids[:n])


def test_special_tokens_have_no_text(byte_level_tokenizer: Any) -> None:
    ids = byte_level_tokenizer.encode("Paris is").ids
    assert "".join(pieces(byte_level_tokenizer, [0, *ids[:2], 1, 0, *ids[2:], 1])) == "Paris is"


def stopped(tokenizer: Any, ids: Sequence[int], stop: Iterable[str], chunk: int = 1) -> Any:
    detokenizer = IncrementalDetokenizer.for_tokenizer(tokenizer, stop=tuple(stop))
    for i in range(0, len(ids), chunk):
        detokenizer.push(ids[i : i + chunk])
        if detokenizer.stopped:
            break
    detokenizer.finish()
    return detokenizer


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize(
    "stop", [["fox"], ["n fox j"], ["ox", "quick"], ["zzz"], ["T"], ["dog", "g"], ["lazy cat"]]
)
def test_stop_text_cuts_exactly(byte_level_tokenizer: Any, stop: list[str], chunk: int) -> None:
    text = "The quick brown fox jumps over the lazy dog"
    ids = byte_level_tokenizer.encode(text).ids
    # The reference: the first token after which a stop text is complete decides.
    expected, used = text, len(ids)
    for n in range(1, len(ids) + 1):
        at = [i for i in (byte_level_tokenizer.decode(ids[:n]).find(s) for s in stop) if i >= 0]
        if at:
            expected, used = text[: min(at)], n
            break
    detokenizer = stopped(byte_level_tokenizer, ids, stop, chunk)
    assert detokenizer.text == expected
    assert detokenizer.num_tokens == used
    assert detokenizer.stopped == (expected != text)


def test_stop_text_is_never_shown_in_part(byte_level_tokenizer: Any) -> None:
    ids = byte_level_tokenizer.encode("The quick brown fox").ids
    detokenizer = IncrementalDetokenizer.for_tokenizer(byte_level_tokenizer, stop=["brown fox"])
    for token in ids:
        detokenizer.push([token])
        assert "The quick ".startswith(detokenizer.text)
    assert (detokenizer.text, detokenizer.stopped) == ("The quick ", True)


def test_beginning_of_a_stop_text_is_shown_at_the_end(byte_level_tokenizer: Any) -> None:
    ids = byte_level_tokenizer.encode("The quick brown").ids
    detokenizer = stopped(byte_level_tokenizer, ids, ["brown fox"])
    assert (detokenizer.text, detokenizer.stopped) == ("The quick brown", False)


def test_stop_text_made_of_bytes_is_found_at_once(
    byte_fallback_tokenizer: Callable[..., Any],
) -> None:
    tokenizer = byte_fallback_tokenizer()
    euro = [tokenizer.token_to_id(f"<0x{b:02X}>") for b in "€".encode()]
    ids = [tokenizer.token_to_id("cat"), *euro, *euro]
    detokenizer = stopped(tokenizer, ids, ["€"])
    assert (detokenizer.text, detokenizer.num_tokens) == ("cat", 4)


def test_work_per_token_is_bounded(byte_level_tokenizer: Any) -> None:
    longest = 0

    def decode(ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return str(byte_level_tokenizer.decode(ids))

    detokenizer = IncrementalDetokenizer(decode)
    ids = byte_level_tokenizer.encode(" ".join(SAMPLES) * 5).ids
    for token in ids:
        detokenizer.push([token])
    assert longest <= MAX_WINDOW + 1
    garbage = byte_level_tokenizer.token_to_id("¢")  # a lone continuation byte
    for _ in range(500):
        detokenizer.push([garbage])
    assert longest <= 2 * MAX_WINDOW
    detokenizer.finish()
    assert detokenizer.text == byte_level_tokenizer.decode(ids + [garbage] * 500)


@pytest.mark.model
@pytest.mark.parametrize("kind", ["text", "random", "bytes"])
def test_default_model(kind: str) -> None:
    from tokenizers import Tokenizer

    folder = os.environ.get("DYNASPEC_TEST_MODEL", "")
    if not folder:
        pytest.skip("DYNASPEC_TEST_MODEL names no folder of the converted default model")
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    if kind == "text":
        for text in SAMPLES:
            check_sample(tokenizer, text)
    elif kind == "random":
        check_random(tokenizer, range(tokenizer.get_vocab_size()), 400, seed=5)
    else:
        few = [tokenizer.token_to_id(f"<0x{b:02X}>") for b in (0xF0, 0x9F, 0x98, 0x80, 0x41, 0x20)]
        check_random(tokenizer, [*few, *range(600, 640), 0, 1, 2], 400, seed=6)


EOS_TEXT = "<|eos|>"


@pytest.mark.parametrize(
    ("stop", "shown", "tokens"),
    [
        (["<|eos|>"], "The fox", 1),
        (["eos"], "The fox", 1),
        (["fox<|eos|>"], "The ", 1),
        (["<|eos|> jumps"], "The fox", 2),
        (["<|eos|>\n"], "The fox jumps", None),
        (["x<|eos|> j", "umps"], "The fo", 2),
        (["<|bos|>"], "The fox jumps", None),
        (["<|eos|>", "fox"], "The ", 0),
    ],
)
def test_texts_of_special_tokens_count_as_stop_texts(
    byte_level_tokenizer: Any, stop: list[str], shown: str, tokens: int | None
) -> None:
    """``tokens``: the special one, and those of " jumps", that were consumed (None: all)."""
    encode = byte_level_tokenizer.encode
    first, last = encode("The fox").ids, encode(" jumps").ids
    eos = byte_level_tokenizer.token_to_id(EOS_TEXT)
    detokenizer = IncrementalDetokenizer.for_tokenizer(byte_level_tokenizer, stop=stop)
    parts = [detokenizer.push([token]) for token in [*first, eos, *last]]
    parts.append(detokenizer.finish())
    assert "".join(parts) == detokenizer.text == shown
    assert detokenizer.stopped == (tokens is not None)
    if tokens in (0, 1):
        assert detokenizer.num_tokens == len(first) + tokens


def shown_before(whole: str, stop: str, special: Sequence[str]) -> str:
    """What is shown of ``whole``: up to ``stop``, be it in the text with the special tokens' texts
    or in the one without; none of these texts, nor a beginning of one that the stop cuts off."""
    spans = [m.span() for m in regex.finditer("|".join(map(regex.escape, special)), whole)]
    visible = [i for i in range(len(whole)) if not any(a <= i < b for a, b in spans)]
    text = "".join(whole[i] for i in visible)
    ends = [sum(i < whole.index(stop) for i in visible), text.find(stop)]
    return text[: min(end for end in ends if end >= 0)]


def test_special_tokens_in_stop_texts_against_a_search_in_the_whole_text(
    byte_level_tokenizer: Any,
) -> None:
    rng = random.Random(7)
    special = {byte_level_tokenizer.token_to_id(t): t for t in ("<|bos|>", EOS_TEXT)}
    words = [byte_level_tokenizer.encode(w).ids for w in ("ab", " ab", "<|", "|>", "é", "b")]
    for _ in range(400):
        ids = [i for _ in range(12) for i in rng.choice([*words, *([i] for i in special)])]
        whole = "".join(special.get(i) or byte_level_tokenizer.decode([i]) for i in ids)
        if "\ufffd" in whole:  # a character of several tokens
            whole = byte_level_tokenizer.decode(ids, skip_special_tokens=False)
        start = rng.randrange(len(whole))
        stop = whole[start : start + rng.randint(1, 9)]
        shown = shown_before(whole, stop, [*special.values()])
        for chunk in (1, 4):
            detokenizer = IncrementalDetokenizer.for_tokenizer(byte_level_tokenizer, stop=[stop])
            for begin in range(0, len(ids), chunk):
                detokenizer.push(ids[begin : begin + chunk])
            detokenizer.finish()
            assert detokenizer.stopped
            assert detokenizer.text == shown, (whole, stop)

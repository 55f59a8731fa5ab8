"""Tokenizers from a file's keys: against ``transformers``' own conversion, the ``tokenizer.json``
of the model that a pre-tokenizer is named after, and sentencepiece's algorithm written out."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_writing import write_raw

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.gguf_files.model import open_gguf
from dynaspec_cli.gguf_files.pretokenizers import PRE_TOKENIZERS
from dynaspec_cli.target import gguf_tokenizer as module
from dynaspec_cli.target.gguf_tokenizer import gguf_tokenizer
from dynaspec_cli.target.tokenizer import TextTokenizer

TEXTS = (
    "",
    " ",
    "\n\n  \n",
    "Hello, world! It's  we'LL don'T 12345 3.14",
    "  def f(x):\n\treturn x**2 / 7  # ok\n\n\nend",
    "naïve café Straße ÀÉ cafe\u0301",
    "東京 2024年、ひらがな カタカナ。",
    "हिन्दी में १२३ और বাংলা",
    "مرحبا بالعالم ٣٤ \u200d",
    "Привет №5, Ελληνικά ΆΈ",
    "👩‍💻🏳️‍🌈🇩🇪 ok",
    "\u3000全角\u00a0nbsp\u2009thin",
    "camelCaseWORDSAndMore XMLHttp/Request//path",
    "a\r\nb\r\rc\x00\x7f",
    "\n\n55% of  7 and\t\t8",
    "¡¿«»…—–“”",
)


def alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


MERGES = [
    *("Ġ t", "h e", "Ġ 1", "1 2", "3 4", "Ċ Ċ", "l l", "' s", "Ġ Ġ", "ĊĊ Ċ", "ĠĠ ĠĠ"),
    *("o k", "/ /", "Ñ Ģ", "å Ĳ", "w e", "12 34", "r n", "C a", "a m", "Ċ Ġ", "ĉ ĉ"),
]


def byte_level(pre: str | None, **more: Any) -> dict[str, Any]:
    tokens = [*alphabet(), *(merge.replace(" ", "") for merge in MERGES)]
    types = [1] * len(tokens) + [3, 3, 4]
    tokens += ["<|bos|>", "<|eot_id|>", "<think>"]
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": tokens.index("<|bos|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|eot_id|>"),
        **more,
    }
    return {key: value for key, value in keys.items() if value is not None}


def tokenizer(path: Path, keys: dict[str, Any], architecture: str = "llama") -> TextTokenizer:
    count = len(keys.get("tokenizer.ggml.tokens", "x"))
    embeddings = {"token_embd.weight": np.zeros((count, 4), np.float32)}
    write_raw(path, architecture, keys, embeddings)
    return gguf_tokenizer(open_gguf((path,)))


def by_transformers(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


def config_keys(keys: dict[str, Any]) -> dict[str, Any]:
    """What ``transformers`` wants beside the tokenizer."""
    return {
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": 4,
        "llama.attention.head_count": 1,
        "llama.attention.head_count_kv": 1,
        "llama.vocab_size": len(keys["tokenizer.ggml.tokens"]),
    }


@pytest.mark.parametrize("pre", ["default", "llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o"])
def test_byte_level_agrees_with_transformers(pre: str, tmp_path: Path) -> None:
    keys = byte_level(pre, **{"tokenizer.ggml.add_bos_token": True})
    path = tmp_path / "m.gguf"
    ours = tokenizer(path, {**keys, **config_keys(keys)})
    theirs = by_transformers(path)
    for text in (*TEXTS, "<|bos|>a<think> b</think><|eot_id|>"):
        assert ours.encode(text) == theirs(text)["input_ids"], text
        ids = ours.encode(text, special=False)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ids, skip_special=False) == text


def test_digits_stand_alone_as_in_smollm(tmp_path: Path) -> None:
    """The steps of SmolLM's own tokenizer.json."""
    from tokenizers import pre_tokenizers

    steps = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    ours = PRE_TOKENIZERS["smollm"].build()
    for text in TEXTS:
        assert ours.pre_tokenize_str(text) == steps.pre_tokenize_str(text), text


def test_deepseek_cuts_cjk_and_lines(tmp_path: Path) -> None:
    cut = PRE_TOKENIZERS["deepseek-coder"].build().pre_tokenize_str("ab 12\n東京!")
    assert [piece for piece, _ in cut] == ["ab", "Ġ", "1", "2", "Ċ", "æĿ±äº¬", "!"]


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_pre_tokenizer_keeps_the_text(pre: str) -> None:
    from tokenizers import decoders

    steps = PRE_TOKENIZERS[pre].build()
    for text in TEXTS:
        pieces = [piece for piece, _ in steps.pre_tokenize_str(text)]
        assert decoders.ByteLevel().decode(pieces) == text


def test_a_whole_word_is_not_merged(tmp_path: Path) -> None:
    """Llama 3: a piece that is a token is taken as it is, though no merges lead there."""
    keys = byte_level("llama-bpe")
    keys["tokenizer.ggml.tokens"] = [*keys["tokenizer.ggml.tokens"], "xyz"]
    keys["tokenizer.ggml.token_type"] = [*keys["tokenizer.ggml.token_type"], 1]
    ours = tokenizer(tmp_path / "m.gguf", keys)
    last = len(keys["tokenizer.ggml.tokens"]) - 1
    assert ours.encode("xyz", special=False) == [last]
    assert len(ours.encode("xyzx", special=False)) == 4
    assert ours.encode("a")[0] == ours.bos_id  # BOS without a key that says so


def test_special_tokens_outside_the_alphabet(tmp_path: Path) -> None:
    """DeepSeek's have a wide bar that no byte is written as."""
    keys = byte_level("deepseek-v3")
    bar = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
    tokens = [bar if token == "<|bos|>" else token for token in keys["tokenizer.ggml.tokens"]]
    ours = tokenizer(tmp_path / "m.gguf", {**keys, "tokenizer.ggml.tokens": tokens})
    assert ours.encode(f"{bar}a", special=False)[0] == tokens.index(bar)
    assert tokens.index(bar) in ours.special_ids
    assert ours.decode(ours.encode(f"{bar}a", special=False), skip_special=False) == f"{bar}a"


def test_eos_is_added_where_the_file_says_so(tmp_path: Path) -> None:
    keys = byte_level("gpt-2", **{"tokenizer.ggml.add_eos_token": True})
    ours = tokenizer(tmp_path / "m.gguf", keys)
    assert ours.encode("a")[-1] == keys["tokenizer.ggml.eos_token_id"]
    assert len(ours.encode("a", special=False)) == 1


def test_all_tokens_that_end_a_text(tmp_path: Path) -> None:
    keys = byte_level("gpt-2")
    eot, bos = keys["tokenizer.ggml.eos_token_id"], keys["tokenizer.ggml.bos_token_id"]
    named = {"tokenizer.ggml.eos_token_id": 7, "tokenizer.ggml.eot_token_id": bos}
    ours = tokenizer(tmp_path / "a.gguf", {**keys, **named, "tokenizer.ggml.eom_token_id": 9})
    assert ours.eos_ids == tuple(sorted((7, 9, bos)))
    # A file that names none: the control token of that spelling.
    ours = tokenizer(tmp_path / "b.gguf", {**keys, "tokenizer.ggml.eos_token_id": 7})
    assert ours.eos_ids == tuple(sorted((7, eot)))


PIECES = {
    "<unk>": (2, 0.0),
    "<s>": (3, 0.0),
    "</s>": (3, 0.0),
    **{f"<0x{i:02X}>": (6, 0.0) for i in range(256)},
    "\u2581": (1, -1.0),
    "th": (1, -2.0),
    "\u2581th": (1, -3.0),
    "he": (1, -1.5),
    "\u2581the": (1, -2.5),
    "the": (1, -6.0),
    "in": (1, -1.7),
    "ing": (1, -1.9),
    "\u2581\u2581": (1, -4.0),
    "ll": (1, -2.1),
    **{letter: (1, -10.0 - i) for i, letter in enumerate("thelowingards.,!é東")},
    "<tool>": (4, 0.0),
}


def pieces_keys(**more: Any) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": list(PIECES),
        "tokenizer.ggml.scores": [score for _, score in PIECES.values()],
        "tokenizer.ggml.token_type": [kind for kind, _ in PIECES.values()],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **more,
    }


def sentence_piece(text: str) -> list[int]:
    """The best neighbours are joined first, the leftmost of equals; letters that are no token
    become bytes."""
    ids = {piece: index for index, piece in enumerate(PIECES)}
    symbols = list(text.replace(" ", "\u2581"))
    while True:
        joined = [a + b for a, b in itertools.pairwise(symbols)]
        known = [(PIECES[pair][1], -at) for at, pair in enumerate(joined) if pair in PIECES]
        if not known:
            break
        at = -max(known)[1]
        symbols[at : at + 2] = [joined[at]]
    out = []
    for symbol in symbols:
        data = [f"<0x{byte:02X}>" for byte in symbol.encode()]
        out += [ids[symbol]] if symbol in ids else [ids[byte] for byte in data]
    return out


@pytest.mark.parametrize("prefix", [None, True, False])
def test_sentence_piece(prefix: bool | None, tmp_path: Path, cache_dir: Path) -> None:
    more = {} if prefix is None else {"tokenizer.ggml.add_space_prefix": prefix}
    ours = tokenizer(tmp_path / "m.gguf", pieces_keys(**more))
    lead = "" if prefix is False else " "
    for text in (*TEXTS, "the thing", "  telling  the lathe.", "all hell", "hallo, world 東京"):
        wanted = sentence_piece(lead + text) if text else []
        assert ours.encode(text, special=False) == wanted, text
        assert ours.encode(text) == [1, *wanted]
        assert ours.decode(wanted) == text
    # Text between special tokens is a text of its own, with its own space.
    both = ours.encode("<s>the<tool>ing</s>", special=False)
    tool = list(PIECES).index("<tool>")
    assert both == [1, *sentence_piece(lead + "the"), tool, *sentence_piece(lead + "ing"), 2]


def test_gemma_agrees_with_transformers(tmp_path: Path, cache_dir: Path) -> None:
    keys = pieces_keys()
    tokens, types = list(PIECES), [kind for kind, _ in PIECES.values()]
    tokens += ["  ", "    ", "<end_of_turn>", "<h1>", "\n\n"]
    types += [4, 4, 3, 4, 4]
    keys |= {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": [-float(i % 7) for i in range(len(tokens))],
        "tokenizer.ggml.add_space_prefix": False,
    }
    keys["tokenizer.ggml.tokens"].remove("\u2581\u2581")
    position = list(PIECES).index("\u2581\u2581")
    for name in ("token_type", "scores"):
        del keys[f"tokenizer.ggml.{name}"][position]
    extra = {k.replace("llama", "gemma3"): v for k, v in config_keys(keys).items()}
    path = tmp_path / "m.gguf"
    ours = tokenizer(path, {**keys, **extra}, "gemma3")
    theirs = by_transformers(path)
    for text in (*TEXTS, "the  thing    ends<end_of_turn>\n\n<h1> telling"):
        assert ours.encode(text) == theirs(text)["input_ids"], text
    assert ours.eos_ids == (2, tokens.index("<end_of_turn>"))


def test_derived_merges_are_kept(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tokenizer(tmp_path / "m.gguf", pieces_keys())
    (kept,) = (cache_dir / "tokenizers").iterdir()
    real = module.derived_merges
    calls: list[int] = []
    monkeypatch.setattr(module, "derived_merges", lambda v: calls.append(1) or real(v))
    again = tokenizer(tmp_path / "m.gguf", pieces_keys())
    assert not calls
    assert again.encode("the thing 東") == first.encode("the thing 東")
    whole = kept.read_bytes()
    merges = np.load(kept)
    far = io.BytesIO()
    np.save(far, merges + len(PIECES))
    wrong = io.BytesIO()
    np.save(wrong, merges[:, ::-1])
    damaged = [whole[:-9], b"", whole[20:], far.getvalue(), wrong.getvalue()]
    for count, data in enumerate(damaged, 1):
        kept.write_bytes(data)
        mended = tokenizer(tmp_path / "m.gguf", pieces_keys())
        assert len(calls) == count
        assert mended.encode("the thing 東") == first.encode("the thing 東")
        assert kept.read_bytes() == whole
    tokenizer(tmp_path / "n.gguf", pieces_keys(**{"tokenizer.ggml.add_space_prefix": False}))
    assert len(calls) == len(damaged) + 1  # another tokenizer, another file
    assert len(list((cache_dir / "tokenizers").iterdir())) == 2


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "pre-tokenizer": (byte_level("nobody-knows"), r"ggml\.pre is 'nobody-knows', a pre-tokenizer"),
    "no pre-tokenizer": (byte_level(None), r"ggml\.pre is missing"),
    "kind": (
        byte_level("gpt-2", **{"tokenizer.ggml.model": "rwkv"}),
        r"ggml\.model is 'rwkv': .* of a kind that is not read",
    ),
    "no kind": (byte_level("gpt-2", **{"tokenizer.ggml.model": None}), r"ggml\.model is None"),
    "no merges": (
        byte_level("gpt-2", **{"tokenizer.ggml.merges": None}),
        r"ggml\.merges is missing",
    ),
    "no tokens": (
        byte_level("gpt-2", **{"tokenizer.ggml.tokens": None}),
        r"ggml\.tokens is missing",
    ),
    "types": (
        byte_level("gpt-2", **{"tokenizer.ggml.token_type": [1, 2]}),
        r"ggml\.token_type does not hold a number for each",
    ),
    "no pair": (
        byte_level("gpt-2", **{"tokenizer.ggml.merges": ["a b c"]}),
        r"ggml\.merges holds 'a b c', no pair",
    ),
    "merge of strangers": (
        byte_level("gpt-2", **{"tokenizer.ggml.merges": ["zz yy"]}),
        r"the merges do not fit the vocabulary",
    ),
    "an id beyond": (
        byte_level("gpt-2", **{"tokenizer.ggml.eos_token_id": 9999}),
        r"ggml\.eos_token_id is 9999, no token of",
    ),
    "unknown key": (
        byte_level("gpt-2", **{"tokenizer.ggml.lowercase": True}),
        r"ggml\.lowercase is not known",
    ),
    "separator": (
        byte_level("gpt-2", **{"tokenizer.ggml.add_sep_token": True}),
        r"ggml\.add_sep_token is on",
    ),
    "no scores": (
        {k: v for k, v in pieces_keys().items() if not k.endswith("scores")},
        r"ggml\.scores is missing",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str, tmp_path: Path, cache_dir: Path) -> None:
    keys, message = REFUSED[case]
    with pytest.raises(DynaSpecError, match=message) as caught:
        tokenizer(tmp_path / "m.gguf", keys)
    assert "\n" not in str(caught.value)


def test_more_tokens_than_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_raw(path, "llama", byte_level("gpt-2"), {"token_embd.weight": np.zeros((9, 4))})
    with pytest.raises(DynaSpecError, match=r"ggml\.tokens has \d+ entries, but the .* 9 rows"):
        gguf_tokenizer(open_gguf((path,)))


def test_a_tokenizer_begun_early_is_handed_out_once(
    tiny_gguf: Path, tmp_path: Path, cache_dir: Path
) -> None:
    from dynaspec_cli.target.load import load

    module._begun.clear()  # what earlier tests began and never asked for
    module.begin_tokenizer(str(tiny_gguf))
    begun = module._begun[tiny_gguf]
    _, ours = load(str(tiny_gguf), "float32", "cpu")
    assert ours is begun.result()
    assert module.begun_tokenizer(tiny_gguf) is None
    for nothing in ("no/such-model", str(tmp_path), str(tmp_path / "none.gguf"), " "):
        module.begin_tokenizer(nothing)  # left to load, which says what is wrong
    assert not module._begun
    bad = tmp_path / "bad.gguf"
    write_raw(bad, "llama", byte_level("nobody-knows"), {"x": np.zeros(4)})
    module.begin_tokenizer(str(bad))
    future = module.begun_tokenizer(bad)
    assert future is not None
    with pytest.raises(DynaSpecError, match="nobody-knows"):
        future.result()


def test_the_tokenizer_needs_no_torch() -> None:
    code = "import sys, dynaspec_cli.target.gguf_tokenizer; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_chat_template_of_a_file(tmp_path: Path) -> None:
    source = (
        "{{ bos_token }}{%- for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if thinking %}<think>{% endif %}"
    )
    keys = byte_level("gpt-2", **{"tokenizer.chat_template": source})
    ours = tokenizer(tmp_path / "m.gguf", keys)
    assert ours.chat_template == source
    messages = [{"role": "user", "content": "hi"}]
    assert ours.decode(ours.chat(messages), skip_special=False) == "<|bos|>[user]hi"
    ids = ours.chat(messages, thinking=True)
    assert ids[-1] == keys["tokenizer.ggml.tokens"].index("<think>")

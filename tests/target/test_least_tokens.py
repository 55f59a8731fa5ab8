"""The lower bound on a text's tokens is one, comes near, and is 0 where none is known."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from dynaspec_cli.target.least_tokens import LeastTokens

PIECES = (
    *(
        "The capital",
        " of",
        "  France",
        "\n\n",
        "\t",
        "e\u0301",
        "é",
        "ﬁ",
        "Ａ",
        "💻",
        "東京",
        "\0",
    ),
    *("<|bos|>", "<s>", "▁", " ", "      ", "aaaaaaaa", "1234567", "naïve", "..."),
)


def texts() -> list[str]:
    draw = random.Random(0)
    found = ["".join(draw.choices(PIECES, k=draw.randrange(1, 60))) for _ in range(400)]
    return [*found, "", *PIECES, *(piece * 50 for piece in PIECES)]


def spread(tokenizer: Tokenizer) -> Tokenizer:
    """With normalizers that make texts longer and shorter."""
    steps = [normalizers.NFKC(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


@pytest.fixture(params=["bytes", "bytes, composed", "pieces", "pieces, stretched"])
def tokenizer(request: Any, byte_level_tokenizer: Any, byte_fallback_tokenizer: Any) -> Tokenizer:
    kind, _, more = request.param.partition(", ")
    made = byte_level_tokenizer if kind == "bytes" else byte_fallback_tokenizer()
    copy = Tokenizer.from_str(made.to_str())
    if more == "composed":
        copy.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(" ", "isolated")
        copy.pre_tokenizer = pre_tokenizers.Sequence([split, copy.pre_tokenizer])
    return spread(copy) if more == "stretched" else copy


def test_no_text_has_fewer(tokenizer: Tokenizer) -> None:
    least = LeastTokens(tokenizer)
    for text in texts():
        count = len(tokenizer.encode(text, add_special_tokens=False).ids)
        assert least.of(text) <= count, text
    longest = max(tokenizer.get_vocab(with_added_tokens=False), key=len)
    decoded = tokenizer.decode([tokenizer.token_to_id(longest)])
    assert least.of(decoded * 1000) >= 100


def without_a_bound() -> dict[str, Tokenizer]:
    vocab = {"[UNK]": 0, "a": 1, "b": 2}
    bpe = Tokenizer(models.BPE(vocab, [], unk_token="[UNK]"))

    def changed(**parts: Any) -> Tokenizer:
        tokenizer = Tokenizer.from_str(bpe.to_str())
        for name, part in parts.items():
            setattr(tokenizer, name, part)
        return tokenizer

    swallowing = changed()
    swallowing.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return {
        "fused unknowns": Tokenizer(models.BPE(vocab, [], unk_token="[UNK]", fuse_unk=True)),
        "words": Tokenizer(models.WordLevel(vocab, unk_token="[UNK]")),
        "word pieces": Tokenizer(models.WordPiece(vocab, unk_token="[UNK]")),
        "dropped spaces": changed(pre_tokenizer=pre_tokenizers.WhitespaceSplit()),
        "removed": changed(pre_tokenizer=pre_tokenizers.Split("a", "removed")),
        "stripped": changed(normalizer=normalizers.Strip()),
        "replaced by nothing": changed(normalizer=normalizers.Replace("a", "")),
        "a token that takes spaces in": swallowing,
    }


@pytest.mark.parametrize("name", without_a_bound())
def test_no_bound_where_a_token_may_stand_for_anything(name: str) -> None:
    assert LeastTokens(without_a_bound()[name]).of("a" * 10_000) == 0

"""From a file's vocabulary to a ``tokenizers.Tokenizer``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.gguf_files.header import Texts
from dynaspec_cli.gguf_files.merges import Pairs, by_rank, by_score
from dynaspec_cli.gguf_files.pretokenizers import PRE_TOKENIZERS
from dynaspec_cli.gguf_files.vocabulary import BYTE_LEVEL, CONTROL, USER_DEFINED, Vocabulary

SPACE = "\u2581"
"""What sentencepiece writes for a space."""

GEMMA = ("gemma", "gemma2", "gemma3")


def derived_merges(vocabulary: Vocabulary) -> Pairs:
    """int64 [m, 2], tokens that are merged, in order: for a vocabulary without merges of its own.

    Raises ``DynaSpecError`` for a token that is no UTF-8.
    """
    spellings = _written(vocabulary, _decoded(vocabulary, vocabulary.tokens))
    if vocabulary.architecture in GEMMA:
        # Gemma's scores do not follow the order of its merges; the order of its tokens does.
        return by_rank(spellings)
    assert vocabulary.scores is not None
    return by_score(spellings, vocabulary.scores)


def build_tokenizer(vocabulary: Vocabulary, merges: Pairs | None = None) -> Any:
    """The ``tokenizers.Tokenizer`` of a file: model, normaliser, pre-tokenizer, decoder, added
    tokens, and BOS or EOS around a text where the file asks for them. ``merges``: of
    ``derived_merges``, where the file has none.

    Raises ``DynaSpecError`` where the vocabulary and the merges do not fit together.
    """
    tokens = _decoded(vocabulary, vocabulary.tokens)
    spellings = _written(vocabulary, tokens)
    ids = {token: index for index, token in enumerate(spellings)}
    lines = _decoded(vocabulary, vocabulary.merges)
    if vocabulary.kind == BYTE_LEVEL:
        tokenizer = _byte_level(vocabulary, ids, lines)
    else:
        if merges is None:
            parts = [line.partition(" ") for line in lines]
            pairs = [(left, right) for left, _, right in parts]
        else:
            halves = np.array(spellings, object)[merges]
            pairs = list(zip(halves[:, 0].tolist(), halves[:, 1].tolist(), strict=True))
        tokenizer = _sentence_piece(vocabulary, ids, pairs)
    _add_tokens(tokenizer, vocabulary, tokens, ids)
    _frame(tokenizer, vocabulary, tokens)
    return tokenizer


def _written(vocabulary: Vocabulary, tokens: list[str]) -> list[str]:
    """``tokens`` as merges write them."""
    if vocabulary.kind == BYTE_LEVEL or vocabulary.architecture not in GEMMA:
        return tokens
    # The file spells tokens of several spaces with spaces, where texts have SPACE by then.
    return [SPACE * len(t) if " " in t and not t.strip() else t for t in tokens]


def _decoded(vocabulary: Vocabulary, texts: Texts | None) -> list[str]:
    try:
        return [] if texts is None else texts.decoded()
    except UnicodeDecodeError as error:
        raise DynaSpecError(
            f"{vocabulary.place}: a token or merge is no UTF-8 ({error.reason}); convert the model "
            "again"
        ) from error


def _byte_level(vocabulary: Vocabulary, ids: dict[str, int], lines: Sequence[str]) -> Any:
    """Merges over bytes, each written as one letter (GPT-2)."""
    from tokenizers import Tokenizer, decoders

    pre = PRE_TOKENIZERS[vocabulary.pre]
    merges = []
    for line in lines:
        left, space, right = line.partition(" ")
        if not space or " " in right:
            raise DynaSpecError(
                f"{vocabulary.place}: tokenizer.ggml.merges holds {line!r}, no pair"
            )
        merges.append((left, right))
    model = _merging(vocabulary, ids, merges, ignore_merges=pre.whole_words)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre.build()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(
    vocabulary: Vocabulary, ids: dict[str, int], merges: list[tuple[str, str]]
) -> Any:
    """Merges by scores over letters; what no token spells falls back to bytes."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers

    gemma = vocabulary.architecture in GEMMA
    unknown = vocabulary.ids.get("unk")
    tokenizer = Tokenizer(
        _merging(
            vocabulary,
            ids,
            merges,
            fuse_unk=True,
            byte_fallback=True,
            unk_token=None if unknown is None else vocabulary.text("unk"),
        )
    )
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    replace: Any = normalizers.Replace(" ", SPACE)
    if gemma:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    if vocabulary.add_space_prefix and not gemma:
        replace = normalizers.Sequence([normalizers.Prepend(SPACE), replace])
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    tokenizer.normalizer = replace
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merging(
    vocabulary: Vocabulary, ids: dict[str, int], merges: list[tuple[str, str]], **options: Any
) -> Any:
    from tokenizers.models import BPE

    try:
        return BPE(vocab=ids, merges=merges, **options)
    except Exception as error:
        raise DynaSpecError(
            f"{vocabulary.place}: the merges do not fit the vocabulary ({error}); convert the "
            "model again"
        ) from error


def _add_tokens(
    tokenizer: Any, vocabulary: Vocabulary, tokens: Sequence[str], ids: dict[str, int]
) -> None:
    """Control tokens are special; user-defined ones are matched whole and are text."""
    from tokenizers import AddedToken

    for kind, special, add in (
        (CONTROL, True, tokenizer.add_special_tokens),
        (USER_DEFINED, False, tokenizer.add_tokens),
    ):
        # One that the merges write otherwise (Gemma's runs of spaces) is found by them; adding it
        # would make a new id.
        texts = [tokens[i] for i in (vocabulary.types == kind).nonzero()[0].tolist()]
        add([AddedToken(t, normalized=False, special=special) for t in texts if t in ids])


def _frame(tokenizer: Any, vocabulary: Vocabulary, tokens: Sequence[str]) -> None:
    from tokenizers import processors

    names = [("bos", vocabulary.add_bos), ("eos", vocabulary.add_eos)]
    used = {name: vocabulary.ids[name] for name, on in names if on and name in vocabulary.ids}
    texts = {name: tokens[index] for name, index in used.items()}
    before, after = ([texts[name]] if name in texts else [] for name in ("bos", "eos"))
    single = [*before, "$A", *after]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=[*single, *(f"{part}:1" for part in [*before, "$B", *after])],
        special_tokens=[(texts[name], used[name]) for name in used],
    )

"""A file's tokenizer keys, checked and typed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.gguf_files.header import Texts, Value
from dynaspec_cli.gguf_files.model import GgufModel
from dynaspec_cli.gguf_files.pretokenizers import PRE_TOKENIZERS

EMBEDDINGS = "token_embd.weight"
PREFIX = "tokenizer.ggml."
BYTE_LEVEL, SENTENCE_PIECE = "gpt2", "llama"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Token types."""

ID_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
}
END_TEXTS = {
    "eot": ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"),
    "eom": ("<|eom_id|>",),
}
"""Control tokens that end a turn in files that do not name one: llama.cpp looks for the same."""

KNOWN = {
    "model", "pre", "tokens", "scores", "token_type", "merges", "add_bos_token", "add_eos_token",
    "add_space_prefix", "token_type_count",
}  # fmt: skip
OFF = ("add_sep_token", "remove_extra_whitespaces")
"""Switches that no model of these kinds needs; refused where they are on."""


@dataclass(frozen=True)
class Vocabulary:
    """``kind``: BYTE_LEVEL (merges over bytes) or SENTENCE_PIECE (merges by scores). ``types`` a
    number a token. ``ids``: by "bos", "eos", "eot", "eom", "unk", "pad", those there are.
    ``template``: the chat template's source."""

    place: str
    architecture: str
    kind: str
    pre: str
    tokens: Texts
    types: NDArray[np.int64]
    scores: NDArray[np.float32] | None
    merges: Texts | None
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    ids: dict[str, int]
    template: str | None

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a text or a turn."""
        return tuple(sorted({self.ids[name] for name in ("eos", "eot", "eom") if name in self.ids}))

    def text(self, name: str) -> str | None:
        """The spelling of a special token ("bos", …)."""
        if name not in self.ids:
            return None
        return self.tokens.at(self.ids[name])

    def fingerprint(self) -> str:
        """A hash of everything that the tokenizer is built from."""
        digest = hashlib.sha256()
        plain = (self.architecture, self.kind, self.pre, self.add_bos, self.add_eos)
        digest.update(repr((*plain, self.add_space_prefix, sorted(self.ids.items()))).encode())
        digest.update(self.tokens.raw())
        digest.update(self.types.tobytes())
        digest.update(b"" if self.scores is None else self.scores.tobytes())
        digest.update(b"" if self.merges is None else self.merges.raw())
        return digest.hexdigest()[:32]


def read_vocabulary(model: GgufModel) -> Vocabulary:
    """The tokenizer keys of a file.

    Raises ``DynaSpecError`` that names a tokenizer, a pre-tokenizer or a key that is not known, and
    what is missing or does not fit.
    """
    keys = {k[len(PREFIX) :]: v for k, v in model.keys.items() if k.startswith(PREFIX)}

    def refuse(key: str, why: str) -> DynaSpecError:
        return DynaSpecError(f"{model.place}: {PREFIX}{key} {why}")

    kind = keys.get("model")
    if kind not in (BYTE_LEVEL, SENTENCE_PIECE):
        raise refuse(
            "model", f"is {kind!r}: the file's tokenizer is of a kind that is not read here "
            f"(expected {BYTE_LEVEL!r} or {SENTENCE_PIECE!r})"
        )  # fmt: skip
    for key, value in keys.items():
        if key in OFF and value:
            raise refuse(key, "is on, which these tokenizers do not do")
        if key not in KNOWN and key not in OFF and not key.endswith("_token_id"):
            raise refuse(key, "is not known, and would change how texts are cut")
    tokens = keys.get("tokens")
    if not isinstance(tokens, Texts) or not len(tokens):
        raise refuse("tokens", "is missing: the file holds no vocabulary")
    types = _numbers(keys, "token_type", len(tokens), refuse)
    scores = _numbers(keys, "scores", len(tokens), refuse)
    merges = keys.get("merges")
    pre = _pre_tokenizer(str(kind), keys, refuse)
    if not isinstance(merges, Texts):
        merges = None
    if kind == BYTE_LEVEL and merges is None:
        raise refuse("merges", "is missing, which a byte-level vocabulary needs")
    if kind == SENTENCE_PIECE and scores is None and merges is None:
        raise refuse("scores", "is missing, which a vocabulary without merges needs")
    rows = model.tensors.shape(EMBEDDINGS)[0] if EMBEDDINGS in model.tensors else len(tokens)
    if len(tokens) > rows:
        raise refuse("tokens", f"has {len(tokens)} entries, but the embeddings {rows} rows")
    typed = np.full(len(tokens), NORMAL, np.int64) if types is None else types.astype(np.int64)
    add_bos = kind == SENTENCE_PIECE or PRE_TOKENIZERS[pre].add_bos
    template = model.keys.get("tokenizer.chat_template")
    return Vocabulary(
        place=model.place,
        architecture=model.architecture,
        kind=str(kind),
        pre=pre,
        tokens=tokens,
        types=typed,
        scores=None if scores is None else scores.astype(np.float32),
        merges=merges,
        add_bos=bool(keys.get("add_bos_token", add_bos)),
        add_eos=bool(keys.get("add_eos_token", False)),
        add_space_prefix=bool(keys.get("add_space_prefix", True)),
        ids=_ids(keys, tokens, typed, refuse),
        template=template if isinstance(template, str) and template.strip() else None,
    )


def _pre_tokenizer(kind: str, keys: dict[str, Value], refuse: Any) -> str:
    pre = keys.get("pre", "default" if kind == SENTENCE_PIECE else None)
    if pre is None:
        raise refuse(
            "pre", "is missing, so that nobody can say how texts are cut; convert the model again"
        )
    if kind == SENTENCE_PIECE:
        return "default"
    if pre not in PRE_TOKENIZERS:
        raise refuse(
            "pre", f"is {pre!r}, a pre-tokenizer that is not known here; give a folder of this "
            "model with its tokenizer.json instead"
        )  # fmt: skip
    return str(pre)


def _numbers(
    keys: dict[str, Value], name: str, count: int, refuse: Any
) -> NDArray[np.generic] | None:
    value = keys.get(name)
    if value is None:
        return None
    if not isinstance(value, np.ndarray) or value.size != count:
        raise refuse(name, f"does not hold a number for each of the {count} tokens")
    return value


def _ids(
    keys: dict[str, Value], tokens: Texts, types: NDArray[np.int64], refuse: Any
) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, key in ID_KEYS.items():
        value = keys.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or not 0 <= value < len(tokens):
            raise refuse(key, f"is {value}, no token of {len(tokens)}")
        found[name] = value
    for name, texts in END_TEXTS.items():
        if name not in found:
            named = {tokens.at(int(i)): int(i) for i in np.flatnonzero(types == CONTROL)}
            if present := [named[text] for text in texts if text in named]:
                found[name] = present[0]
    return found

"""The target's tokenizer behind four calls: encode, decode, chat and the ids that end a text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.chat import ChatTemplate
from dynaspec_cli.target.least_tokens import LeastTokens
from dynaspec_cli.target.tokenizer_cache import keep, kept_place, read_kept

FAST_MARK = "dynaspec_tokenizer.json"
"""Written beside a tokenizer.json of the GGUF cache: it alone encodes like the full tokenizer."""

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


class TextTokenizer:
    """Wraps ``tokenizers.Tokenizer``.

    ``eos_ids``: tokens that end a generation. ``special_ids``: tokens that are no text. ``bos_id``:
    None where the model has none. ``template``: None for a base model.
    """

    def __init__(
        self,
        backend: Any,
        eos_ids: Sequence[int],
        bos_id: int | None,
        template: ChatTemplate | None = None,
    ) -> None:
        # A fine-tune's tokenizer.json may keep how its texts were cut and padded for training, and
        # the backend would do so to every prompt; only transformers' own calls switch it off.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._template = template
        self._least: LeastTokens | None = None
        self.eos_ids = tuple(sorted(set(eos_ids)))
        self.bos_id = bos_id
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.vocab_size = int(backend.get_vocab_size(with_added_tokens=True))

    @property
    def backend(self) -> Any:
        """The ``tokenizers.Tokenizer``, for the incremental detokenizer."""
        return self._backend

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of ``text``, with the BOS token (``special``) where the model was trained with
        one."""
        return list(self._backend.encode(text, add_special_tokens=special).ids)

    def least_tokens(self, text: str) -> int:
        """A lower bound on ``len(encode(text))``, far cheaper; 0 where none is known."""
        if self._least is None:
            self._least = LeastTokens(self._backend)
        return self._least.of(text)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ``ids``; bytes that are no UTF-8 become U+FFFD."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special))

    @property
    def chat_template(self) -> str | None:
        """The source of the model's chat template; None where it has none."""
        return None if self._template is None else self._template.source

    def chat(self, messages: Sequence[Mapping[str, Any]], /, **arguments: Any) -> list[int]:
        """Ids of a conversation ([{"role", "content"}, ...]) by the model's chat template, open for
        the answer; ``arguments`` are further variables of the template."""
        # Templates write BOS themselves, so that encoding must not add a second one.
        return self.encode(self.written(messages, **arguments), special=False)

    def written(self, messages: Sequence[Mapping[str, Any]], /, **arguments: Any) -> str:
        """The text that ``chat`` encodes."""
        if self._template is None:
            raise DynaSpecError(
                "--chat: this model has no chat template (it is a base model); leave --chat out, "
                "or choose an instruction-tuned --model"
            )
        return self._template.render(messages, **arguments)


def load_tokenizer(folder: Path) -> TextTokenizer:
    """The tokenizer of a model folder.

    ``transformers`` reads it once; what it made is kept in the cache folder, so that later starts
    need neither its imports nor its second reading. Raises ``DynaSpecError`` where the folder holds
    none that it can read.
    """
    eos, bos = special_ids(folder)
    if (folder / FAST_MARK).is_file():
        from tokenizers import Tokenizer

        try:
            backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:
            raise DynaSpecError(
                f"{folder}: tokenizer.json cannot be read ({error}); delete the folder to rebuild "
                "it"
            ) from error
        return TextTokenizer(backend, eos, bos, _stored_template(folder))
    place = kept_place(folder)
    if (kept := read_kept(place)) is not None:
        return TextTokenizer(kept[0], eos, bos, kept[1])
    tokenizer = _transformers_tokenizer(folder)
    backend = _backend_of(tokenizer, folder)
    source = tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("default")
    template = ChatTemplate(source, dict(tokenizer.special_tokens_map)) if source else None
    made = TextTokenizer(backend, eos, bos, template)
    keep(place, backend, template)
    return made


def _stored_template(folder: Path) -> ChatTemplate | None:
    """The template of a folder that this program wrote."""
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if not file.is_file():
        return None
    settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    special = {name: str(settings[name]) for name in SPECIAL_NAMES if settings.get(name)}
    return ChatTemplate(file.read_text(encoding="utf-8"), special)


def special_ids(folder: Path) -> tuple[list[int], int | None]:
    """(EOS ids, BOS id or None) as ``generate`` would use them: generation_config.json before
    config.json."""
    merged: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        if path.is_file():
            data = json.loads(path.read_text(encoding="utf-8"))
            data = {**data.get("text_config", {}), **data}
            merged.update(
                {
                    k: v
                    for k, v in data.items()
                    if k in ("eos_token_id", "bos_token_id") and v is not None
                }
            )
    eos, bos = merged.get("eos_token_id"), merged.get("bos_token_id")
    return [eos] if isinstance(eos, int) else list(eos or []), bos[0] if isinstance(
        bos, list
    ) else bos


def _transformers_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise DynaSpecError(
            f"{folder}: no tokenizer can be read there ({_first_line(error)}); expected "
            "tokenizer.json"
        ) from error


def _backend_of(tokenizer: Any, folder: Path) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DynaSpecError(
            f"{folder}: {type(tokenizer).__name__} has no fast form; expected a tokenizer.json"
        )
    return backend


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

"""``llama.cpp`` on the same GGUF file: plain, with prompt lookup, with a draft model."""

from __future__ import annotations

import importlib.util
import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynaspec_cli.bench.method import TurnTrace
from dynaspec_cli.bench.peers.setting import PeerSetting
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.installing import extra
from dynaspec_cli.target.cache_dir import cache_root, make_folder
from dynaspec_cli.target.demo_package import ChunkedFile
from dynaspec_cli.target.resolve import ModelSource, resolve_model

LOOKUP_TOKENS = {"cuda": 10, "cpu": 2}
"""``num_pred_tokens`` that ``llama-cpp-python``'s documentation advises."""

DRAFT_TOKENS = {"cuda": 10, "cpu": 4}
"""Tokens that a draft model proposes before each verification."""


class LlamaCppPeer:
    """``llama-cpp-python`` on the very GGUF file that the target comes from: its own weights in
    their quantised form. ``kind`` is "llama.cpp", "llama.cpp-lookup" (its prompt lookup) or
    "llama.cpp-draft" (greedy drafts of ``--assistant``, verified as its interface for draft models
    does). The latter two keep the logits of every position, 4 bytes for each token of the
    vocabulary."""

    def __init__(self, kind: str, setting: PeerSetting):
        self.name = kind
        if importlib.util.find_spec("llama_cpp") is None:
            raise DynaSpecError(
                f"--method {kind}: llama-cpp-python is not installed; run {extra('peers')}"
            )
        self._setting = setting
        self._source = self._gguf(setting.model, "--model")
        self._assistant: ModelSource | None = None
        if kind == "llama.cpp-draft":
            if setting.assistant is None:
                raise UsageError(
                    f"--method {kind}: expected --assistant FILE.gguf, a small language model of "
                    "the same tokenizer"
                )
            self._assistant = self._gguf(setting.assistant, "--assistant")
        self._model: Any = None

    def _gguf(self, model: str | None, option: str) -> ModelSource:
        source = resolve_model(model, option)
        if source.gguf is None:
            raise DynaSpecError(
                f"--method {self.name}: expected {option} to be a model that comes as a GGUF file, "
                f"{source.name} is a folder of safetensors"
            )
        return source

    def prepare(self) -> None:
        from llama_cpp import llama_supports_gpu_offload

        if self._model is not None:
            return
        if self._setting.device.type == "cuda" and not llama_supports_gpu_offload():
            raise DynaSpecError(
                f"--method {self.name}: this build of llama.cpp has no GPU support; build it with "
                "CUDA, or measure with --device cpu"
            )
        drafts: Any = None
        device = self._setting.device.type
        if self.name == "llama.cpp-lookup":
            from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

            drafts = LlamaPromptLookupDecoding(num_pred_tokens=LOOKUP_TOKENS[device])
        elif self._assistant is not None:
            model = self._load(self._assistant)
            drafts = _Draft(model, DRAFT_TOKENS[device], self._setting.context)
        self._model = self._load(self._source, drafts)
        if isinstance(drafts, _Draft) and drafts.vocab_size != self._model.n_vocab():
            raise DynaSpecError(
                f"--method {self.name}: --assistant has {drafts.vocab_size} tokens, the model "
                f"{self._model.n_vocab()}; llama.cpp drafts with models of one vocabulary"
            )

    def _load(self, source: ModelSource, drafts: Any = None) -> Any:
        from llama_cpp import Llama

        try:
            return Llama(
                str(gguf_path(source)),
                n_ctx=self._setting.context,
                n_threads=self._setting.threads,
                n_threads_batch=self._setting.threads,
                n_gpu_layers=-1 if self._setting.device.type == "cuda" else 0,
                draft_model=drafts,
                logits_all=drafts is not None,  # else a prompt beyond one batch has no room
                verbose=False,
            )
        except (ValueError, RuntimeError) as error:
            raise DynaSpecError(
                f"--method {self.name}: cannot load {source.name} ({error})"
            ) from error

    def run(self, prompt_ids: Sequence[int], max_new_tokens: int, seed: int) -> TurnTrace:
        sampling = self._setting.sampling
        model = self._model
        if len(prompt_ids) + max_new_tokens > self._setting.context:
            raise DynaSpecError(
                f"{len(prompt_ids)} prompt tokens and {max_new_tokens} new ones do not fit the "
                f"{self._setting.context} that llama.cpp keeps room for; give --max-prompt-tokens"
            )
        model.reset()  # nothing of the last prompt's cache may be taken over
        model.set_seed(seed)
        new: list[int] = []
        reason = "length"
        begun = first_at = last_at = time.perf_counter()
        for token in model.generate(
            list(prompt_ids),
            temp=sampling.temperature,
            top_k=sampling.top_k if sampling.top_k else (1 if sampling.greedy else 0),
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repeat_penalty=1.0,
        ):
            last_at = time.perf_counter()
            if not new:
                first_at = last_at
            new.append(int(token))
            if token in self._setting.eos_ids:
                reason = "eos"
                break
            if len(new) >= max_new_tokens:
                break
        return TurnTrace(
            prompt_tokens=len(prompt_ids),
            token_ids=tuple(new),
            prefill_s=first_at - begun,
            decode_s=last_at - first_at,
            finish_reason=reason,
        )


class _Draft:
    """A ``LlamaDraftModel``: what ``model`` would say next, greedily. Its cache keeps the common
    beginning of two calls."""

    def __init__(self, model: Any, tokens: int, context: int) -> None:
        self._model, self._tokens, self._context = model, tokens, context
        self.vocab_size = int(model.n_vocab())

    def __call__(self, input_ids: Any, /, **_: Any) -> Any:
        import numpy as np

        room = self._context - len(input_ids)
        drafted = self._model.generate(input_ids.tolist(), temp=0.0, top_k=1, repeat_penalty=1.0)
        found = itertools.islice(drafted, max(0, min(self._tokens, room)))
        return np.array(list(found), dtype=np.intc)


def gguf_path(source: ModelSource) -> Path:
    """The model's GGUF file; one that comes in pieces is put together once, in the cache folder."""
    if not isinstance(source.gguf, ChunkedFile):
        if source.gguf is None:
            raise DynaSpecError(f"{source.name}: comes as no GGUF file")
        return source.gguf
    folder = cache_root() / "gguf"
    make_folder(folder)
    whole = folder / f"{source.name}-{source.gguf.sha256[:12]}.gguf"
    if not whole.is_file() or whole.stat().st_size != source.gguf.size:
        temporary = whole.with_suffix(f".{os.getpid()}.tmp")
        try:
            source.gguf.assemble(temporary)
            temporary.replace(whole)
        finally:
            temporary.unlink(missing_ok=True)
    return whole

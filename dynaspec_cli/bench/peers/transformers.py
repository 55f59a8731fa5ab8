"""``transformers`` on the same model: generate, prompt lookup, assisted generation.

They get the same ids and the same limits. A peer reports no steps, so that acceptance and phases
are unknown for it; its time to the first ids and its greedy answers are compared like everybody's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynaspec_cli.bench.method import TurnTrace
from dynaspec_cli.bench.peers.setting import PeerSetting
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.target.load import model_folder
from dynaspec_cli.target.resolve import resolve_model

LOOKUP_TOKENS = 10
"""``prompt_lookup_num_tokens`` of ``transformers``' documentation example."""


class TransformersModel:
    """One ``transformers`` model, loaded when the first peer needs it and shared by all three."""

    def __init__(self, setting: PeerSetting):
        self._setting = setting
        self._model: Any = None

    def folder(self) -> Path:
        source = resolve_model(self._setting.model)
        return model_folder(source, self._setting.dtype, lambda event: None)

    def get(self) -> Any:
        if self._model is None:
            from transformers import GenerationConfig

            self._model = load_causal(self.folder(), self._setting)
            # Its own settings (a repetition penalty, ...) would be mixed into every request.
            self._model.generation_config = GenerationConfig()
        return self._model


def load_causal(folder: Path | str, setting: PeerSetting) -> Any:
    """A causal language model in the run's dtype, on its device."""
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=setting.dtype, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DynaSpecError(f"peers: transformers cannot load {folder} ({reason})") from error
    return model.to(setting.device).eval()


def fast_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model's folder as ``transformers`` wants it for assisted decoding."""
    from transformers import PreTrainedTokenizerFast

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise DynaSpecError(
            f"--assistant: {folder} has no tokenizer.json; models of different vocabularies are "
            "joined by their tokenizers, so both must have one"
        )
    return PreTrainedTokenizerFast(tokenizer_file=str(path))


def _vocabulary(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)


class TransformersPeer:
    """``model.generate``; ``kind`` is "transformers", "transformers-lookup" or
    "transformers-assisted"."""

    def __init__(self, kind: str, setting: PeerSetting, shared: TransformersModel):
        self.name = kind
        self._setting = setting
        self._shared = shared
        self._options: dict[str, Any] = {}
        if kind == "transformers-assisted" and setting.assistant is None:
            raise UsageError(
                "--method transformers-assisted: expected --assistant NAME|FOLDER|FILE, a small "
                "language model"
            )

    def prepare(self) -> None:
        self._shared.get()
        if self.name == "transformers-lookup":
            self._options = {"prompt_lookup_num_tokens": LOOKUP_TOKENS}
        elif self.name == "transformers-assisted":
            source = resolve_model(self._setting.assistant, "--assistant")
            folder = model_folder(source, self._setting.dtype, lambda event: None)
            assistant = load_causal(folder, self._setting)
            self._options = {"assistant_model": assistant}
            if _vocabulary(assistant) != _vocabulary(self._shared.get()):
                # Drafts pass through text from one tokenizer to the other ("universal assisted
                # decoding"). transformers tells them apart by the sizes of the vocabularies.
                self._options |= {
                    "tokenizer": fast_tokenizer(self._shared.folder()),
                    "assistant_tokenizer": fast_tokenizer(folder),
                }

    def run(self, prompt_ids: Sequence[int], max_new_tokens: int, seed: int) -> TurnTrace:
        import torch
        from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

        class FirstPass(StoppingCriteria):
            """Never stops; it is asked after every pass, and keeps the time of the first."""

            at: float | None = None
            tokens = 1

            def __call__(self, input_ids: Any, scores: Any, **extra: Any) -> Any:
                if self.at is None:
                    if input_ids.is_cuda:  # our engine and the assisted forms wait here too
                        torch.cuda.synchronize(input_ids.device)
                    self.at = time.perf_counter()
                    self.tokens = input_ids.shape[1] - len(prompt_ids)
                return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

        sampling = self._setting.sampling
        config: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "do_sample": not sampling.greedy,
            "eos_token_id": sorted(self._setting.eos_ids) or None,
            "pad_token_id": min(self._setting.eos_ids, default=0),
        }
        if not sampling.greedy:
            config |= {
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
                "min_p": sampling.min_p,
            }
        ids = torch.tensor([list(prompt_ids)], device=self._setting.device)
        model = self._shared.get()
        first = FirstPass()
        torch.manual_seed(seed)
        begun = time.perf_counter()
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=GenerationConfig(**config),
                stopping_criteria=StoppingCriteriaList([first]),
                **self._options,
            )
        ended = time.perf_counter()
        new = output[0, len(prompt_ids) :].tolist()
        first_at = ended if first.at is None else first.at
        return TurnTrace(
            prompt_tokens=len(prompt_ids),
            token_ids=tuple(new),
            prefill_s=first_at - begun,
            decode_s=ended - first_at if len(new) > first.tokens else 0.0,
            finish_reason="eos" if new and new[-1] in self._setting.eos_ids else "length",
            first_tokens=min(first.tokens, len(new)),
        )

"""Small language models of the target's tokenizer, as vLLM's method "draft_model" runs them."""

from __future__ import annotations

from vllm.model_executor.models.gemma3 import Gemma3ForCausalLM
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from dynaspec_vllm.draft import ShortlistDraft


class LanguageModelDraft(ShortlistDraft):
    form = "language-model"


class DynaSpecLlamaForCausalLM(LanguageModelDraft, LlamaForCausalLM):
    pass


class DynaSpecMistralForCausalLM(LanguageModelDraft, MistralForCausalLM):
    pass


class DynaSpecQwen2ForCausalLM(LanguageModelDraft, Qwen2ForCausalLM):
    pass


class DynaSpecQwen3ForCausalLM(LanguageModelDraft, Qwen3ForCausalLM):
    pass


class DynaSpecGemma3ForCausalLM(LanguageModelDraft, Gemma3ForCausalLM):
    pass

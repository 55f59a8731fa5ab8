"""EAGLE-3 heads (arXiv 2503.01840): the rows of their own heads are what is shortlisted."""

from __future__ import annotations

from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM

from dynaspec_vllm.draft import ShortlistDraft


class Eagle3DynaSpecForCausalLM(ShortlistDraft, Eagle3LlamaForCausalLM):
    """vLLM's runner passes the hidden states of the layers that config.json names."""

    form = "eagle-3"

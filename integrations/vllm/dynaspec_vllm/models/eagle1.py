"""EAGLE-1 and EAGLE-2 heads (arXiv 2401.15077, 2406.16858), with fc's bias where a file has one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.models.llama_eagle import EagleLlamaForCausalLM

from dynaspec_vllm.draft import ShortlistDraft

if TYPE_CHECKING:
    from vllm.model_executor.models.llama_eagle import LlamaModel


class EagleDynaSpecForCausalLM(ShortlistDraft, EagleLlamaForCausalLM):
    """vLLM's class builds fc without a bias, the authors' files often have one."""

    form = "eagle-1"
    model: LlamaModel

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if getattr(self.config, "fc_bias", False):
            self.model.fc = ReplicatedLinear(
                input_size=2 * self.config.hidden_size,
                output_size=self.config.hidden_size,
                bias=True,
                params_dtype=self.dtype,
                prefix=f"{prefix}.model.fc" if prefix else "model.fc",
                return_bias=False,
            )

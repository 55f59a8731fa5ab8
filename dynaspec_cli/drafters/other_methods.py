"""Draft heads of methods that are not read here, refused by name rather than read as another."""

from __future__ import annotations

from collections.abc import Callable

from dynaspec_cli.drafters.config import FORMAT
from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.errors import DynaSpecError

SPECULATORS_METHODS = {
    "eagle": "speculators' EAGLE-1 format of 2025",
    "peagle": "P-EAGLE",
    "dflash": "DFlash",
    "dflash2": "DFlash",
    "dspark": "DSpark",
    "mtp": "MTP",
    "hydra": "Hydra",
    "medusa": "Medusa",
    "mlp": "MLP speculators",
    "independent": "speculators' independent drafters",
}
ARCHITECTURES = ("dflash", "dspark", "peagle", "domino", "medusa", "hydra", "mtp", "mlpspeculator")
"""Parts of class names that are always another method's. No method is accepted by its name."""


def refuse_other_methods(files: DrafterFiles) -> None:
    """Raise DynaSpecError with the method's name where a folder is one of them."""
    if files.config.get("format") == FORMAT:
        return
    said = files.config.get("speculators_model_type")
    if said is not None and said != "eagle3":
        name = SPECULATORS_METHODS.get(str(said), f"speculators_model_type {said!r}")
        raise _refusal(files, name)
    for name, test in _TESTS:
        if test(files):
            raise _refusal(files, name)
    classes = [str(name).lower() for name in files.config.get("architectures") or []]
    for part in ARCHITECTURES:
        if any(part in name for name in classes):
            raise _refusal(files, f"architecture {files.config['architectures'][0]}")


def _refusal(files: DrafterFiles, name: str) -> DynaSpecError:
    return DynaSpecError(
        f"drafter {files.folder}: {name}: this method is not read here; dynaspec reads EAGLE-1, "
        "EAGLE-2, HASS, EAGLE-3, EAGLE-3.1 heads, speculators EAGLE-3 folders and its own drafters"
    )


def _has(*names: str) -> Callable[[DrafterFiles], bool]:
    """Has a tensor of which one of these is a part of the name?"""

    def test(files: DrafterFiles) -> bool:
        parts = {part for tensor in files.shapes() for part in tensor.split(".")}
        return not parts.isdisjoint(names)

    return test


def _quantised(files: DrafterFiles) -> bool:
    layer = files.config.get("transformer_layer_config")
    inner = layer.get("quantization_config") if isinstance(layer, dict) else None
    return bool(files.config.get("quantization_config") or inner)


_TESTS: tuple[tuple[str, Callable[[DrafterFiles], bool]], ...] = (
    ("DFlash", lambda files: "dflash_config" in files.config),
    ("P-EAGLE", _has("mask_hidden")),
    ("Medusa", lambda files: any(key.startswith("medusa") for key in files.config)),
    ("Medusa", _has("medusa_head")),
    ("MTP", _has("eh_proj", "mtp", "mtp_block")),
    ("a quantised head", _quantised),
    ("a quantised head", _has("qweight", "weight_packed", "weight_scale", "qzeros")),
)

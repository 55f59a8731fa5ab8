"""How a model's makers recommend to sample from it: ``generation_config.json``, or the
``general.sampling`` keys of a GGUF file; for the embedded default model a file of this package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.gguf_files.model import open_gguf
from dynaspec_cli.target.demo_package import ChunkedFile
from dynaspec_cli.target.resolve import ModelSource

FILE = "generation_config.json"
FILTERS = ("temperature", "top_k", "top_p", "min_p")
GGUF_KEYS = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
GGUF_KEYS |= {"penalty_repeat": "repetition_penalty"}
GGUF_KEYS |= {"xtc_probability": "xtc_probability", "mirostat": "mirostat"}
"""llama.cpp's names; its other keys of ``general.sampling`` only say how these do what they do."""

NEUTRAL: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "no_repeat_ngram_size": 0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_h": None,
    "xtc_probability": 0.0,
    "mirostat": 0,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "bad_words_ids": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "constraints": None,
    "stop_strings": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "min_length": 0,
    "min_new_tokens": None,
    "num_beams": 1,
    "penalty_alpha": None,
    "dola_layers": None,
    "guidance_scale": None,
    "watermarking_config": None,
}
"""Settings that change a distribution beyond the four filters, with the value that does not."""


@dataclass(frozen=True)
class Recommended:
    """``filters``: temperature, top_k, top_p, min_p as far as they are given; temperature 0 where
    the model is to be decoded greedily. ``unmet``: settings that dynaspec does not apply, as
    name=value. ``origin``: the file."""

    filters: Mapping[str, float]
    unmet: tuple[str, ...]
    origin: str


def unmet_notice(source: ModelSource) -> str | None:
    """What the model asks for and dynaspec does not apply, whatever the options are: a sentence, or
    None where there is nothing. A file that cannot be read is said too, and is no error here."""
    try:
        found = recommended(source)
    except DynaSpecError as error:
        return str(error)
    if found is None or not found.unmet:
        return None
    return (
        f"{found.origin} asks for {', '.join(found.unmet)}, which dynaspec does not apply: "
        "probabilities are the model's own without it"
    )


def recommended(source: ModelSource) -> Recommended | None:
    """None where the model comes with no recommendation."""
    if source.folder is not None:
        path = source.folder / FILE
        return _of_config(_read(path), str(path)) if path.is_file() else None
    if isinstance(source.gguf, ChunkedFile):
        data = Path(str(resources.files("dynaspec_cli"))) / "data"
        path = data / source.name.removesuffix("-gguf") / FILE
        return _of_config(_read(path), path.name) if path.is_file() else None
    assert source.gguf is not None
    keys = open_gguf((source.gguf,)).keys
    prefix = "general.sampling."
    found = {GGUF_KEYS[k]: keys[prefix + k] for k in GGUF_KEYS if prefix + k in keys}
    if not found:
        return None
    return _of_config({"do_sample": True, **found}, str(source.gguf))


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DynaSpecError(f"{path}: expected a JSON object ({error}); copy it again") from None
    if not isinstance(config, dict):
        raise DynaSpecError(f"{path}: expected a JSON object, got a {type(config).__name__}")
    return config


def _of_config(config: Mapping[str, Any], origin: str) -> Recommended | None:
    """As ``generate`` of transformers reads it: without do_sample the filters do not count."""
    unmet = tuple(
        f"{name}={config[name]}"
        for name, neutral in NEUTRAL.items()
        if config.get(name) not in (None, neutral, [])
    )
    given = {name: config[name] for name in FILTERS if config.get(name) is not None}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DynaSpecError(f"{origin}: {name}: expected a number, got {value!r}")
    if not given and not unmet:
        return None
    if not config.get("do_sample", False):
        return Recommended({"temperature": 0.0}, unmet, origin)
    return Recommended({"temperature": 1.0, **given}, unmet, origin)

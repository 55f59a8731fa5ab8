"""A draft folder for vLLM with the plugin dynaspec-vllm: one drafter and its shortlist.

config.json        the drafter's, as vLLM reads it; "dynaspec_vllm": the shortlist's numbers and
                   what the target must be
model.safetensors  the drafter's tensors, and "shortlist.*" (vllm_shortlist.py)
README.md          what it is and how vLLM is started with it
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynaspec_cli.checkpoints.folder import CARD_FILE, CONFIG_FILE, text, write_folder
from dynaspec_cli.drafters.checkpoint import DrafterCheckpoint
from dynaspec_cli.drafters.files import WEIGHTS_FILE
from dynaspec_cli.drafters.language_model import KIND as LANGUAGE_MODEL
from dynaspec_cli.drafters.load import packaged_drafter
from dynaspec_cli.drafters.same_tokenizer import check_same_tokenizer
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.export.target_facts import TargetFacts
from dynaspec_cli.export.vllm_drafters import VllmDrafter, vllm_drafter
from dynaspec_cli.export.vllm_shortlist import ShortlistSizes, ranked_tokens, vllm_shortlist
from dynaspec_cli.installing import VLLM_PLUGIN
from dynaspec_cli.target.demo_package import SINGLE_FILE_PACKAGES
from dynaspec_cli.target.events import LoadProgress, ProgressCallback, ignore_progress
from dynaspec_cli.target.load import model_folder
from dynaspec_cli.target.resolve import HUB_FILE, resolve_model
from dynaspec_cli.target.tokenizer import load_tokenizer

KEY = "dynaspec_vllm"
SCHEMA = 1
DRAFT_TOKENS = 4


@dataclass(frozen=True)
class VllmExport:
    """``model``: the target, as ``--model``; ``drafter`` as ``--drafter`` (a folder, hub name or
    ``.gguf`` file, or "packaged"); ``shortlist``: "auto", a bundle's folder or a token map."""

    model: str | None
    drafter: str
    out: Path
    shortlist: str = "auto"
    sizes: ShortlistSizes = field(default_factory=ShortlistSizes)
    options: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0


def export_vllm(export: VllmExport, progress: ProgressCallback = ignore_progress) -> dict[str, Any]:
    """Write the draft folder. Returns facts for the report."""
    import torch

    target = TargetFacts.of(export.model, progress)
    progress(LoadProgress("reading the drafter"))
    source = _drafter(export.drafter, target, progress)
    drafter = vllm_drafter(source, target, export.options)
    ranked = ranked_tokens(export.shortlist, target)
    shortlist = vllm_shortlist(
        export.sizes,
        ranked,
        drafter.head,
        drafter.vocab,
        export.seed,
        lambda stage, share: progress(LoadProgress(stage, share)),
    )
    spec = {
        "schema": SCHEMA,
        "form": drafter.form,
        "vocab_size": target.vocab_size,
        "target_name": target.name,
        "target": drafter.target,
        **shortlist.spec,
    }
    tensors = {name: tensor.contiguous() for name, tensor in drafter.tensors.items()}
    tensors |= {f"shortlist.{name}": t.contiguous() for name, t in shortlist.tensors.items()}
    config = json.dumps({**drafter.config, KEY: spec}, indent=2, ensure_ascii=False) + "\n"
    speculative = speculative_config(drafter, export.out)

    def save(path: Path) -> None:
        from safetensors.torch import save_file

        # One storage under two names (a tied head) is written twice.
        distinct = {name: tensor.clone() for name, tensor in tensors.items()}
        save_file(distinct, path, metadata={"format": "pt"})

    write: dict[str, Callable[[Path], None]] = {
        CONFIG_FILE: text(config),
        WEIGHTS_FILE: save,
        CARD_FILE: text(_card(source, target, drafter, speculative, spec)),
    }
    write |= {name: text(content) for name, content in source.legal.items()}
    progress(LoadProgress("writing the draft folder"))
    write_folder(export.out, write, is_draft_folder, (WEIGHTS_FILE,), "draft folder")
    scored = spec["core"] + spec["recent"] + spec["taken"] * spec["cluster_size"]
    return {
        "from": source.kind,
        "target": target.name,
        "method": drafter.method,
        "rows": spec["rows"],
        "rows_scored": min(scored, spec["rows"]),
        "clusters": spec["clusters"],
        "bytes": sum(t.numel() * t.element_size() for t in tensors.values()),
        "dtype": str(next(iter(drafter.tensors.values())).dtype).removeprefix("torch."),
        "speculative_config": speculative,
        "notes": list(drafter.notes),
        "torch": torch.__version__,
    }


def speculative_config(drafter: VllmDrafter, out: Path) -> dict[str, Any]:
    """For vLLM's ``--speculative-config``."""
    return {
        "method": drafter.method,
        "model": str(out),
        "num_speculative_tokens": DRAFT_TOKENS,
        "use_local_argmax_reduction": True,
    }


def is_draft_folder(folder: Path) -> bool:
    """Was ``folder`` written by ``export_vllm``?"""
    try:
        return KEY in json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _drafter(name: str, target: TargetFacts, progress: ProgressCallback) -> DrafterCheckpoint:
    if name == "packaged":
        packaged = packaged_drafter(target)
        if packaged is None:
            raise DynaSpecError(f"--drafter packaged: none ships for {target.name}")
        return DrafterCheckpoint.from_pretrained(packaged)
    path = Path(name).expanduser()
    if is_draft_folder(path):
        raise DynaSpecError(
            f"--drafter {name}: a draft folder for vLLM already; give what it was made from"
        )
    one_file = path.is_file() or name.endswith(".gguf") or HUB_FILE.fullmatch(name)
    if one_file or name in SINGLE_FILE_PACKAGES:
        import torch

        folder = model_folder(resolve_model(name, "--drafter"), torch.bfloat16, progress)
        source = DrafterCheckpoint.from_pretrained(folder)
    else:
        source = DrafterCheckpoint.from_pretrained(name)
        folder = path
    if source.kind == LANGUAGE_MODEL:
        check_same_tokenizer(
            load_tokenizer(folder), load_tokenizer(target.folder), name, target.name
        )
    return source


def _card(
    source: DrafterCheckpoint,
    target: TargetFacts,
    drafter: VllmDrafter,
    speculative: dict[str, Any],
    spec: dict[str, Any],
) -> str:
    config = shlex.quote(json.dumps(speculative | {"model": "THIS_FOLDER"}))
    return (
        "---\nlibrary_name: vllm\ntags:\n- speculative-decoding\n- drafter\n---\n\n"
        f"# Drafter of {target.name} for vLLM\n\n"
        "Runs in vLLM with the plugin `dynaspec-vllm`. It scores a shortlist of the vocabulary; "
        "vLLM verifies what it\ndrafts, so the target's output does not change.\n\n"
        f"- made from: {source.source} ({source.kind})\n"
        f"- rows of its head: {spec['rows']}; always scored: {spec['core']}, and the latest "
        f"{spec['recent']} tokens\n"
        f"- clusters: {spec['clusters']} of {spec['cluster_size']}, of which a row takes "
        f"{spec['taken']}\n\n"
        f"The plugin: `{VLLM_PLUGIN}`.\n\n```\n"
        f"vllm serve {target.name} --speculative-config {config}\n"
        "```\n"
    )

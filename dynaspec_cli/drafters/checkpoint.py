"""A drafter's checkpoint as files: read from a folder or the hub, written, pushed, described."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dynaspec_cli.checkpoints.folder import CARD_FILE, CONFIG_FILE, text, write_folder
from dynaspec_cli.checkpoints.hub import fetch_drafter, push
from dynaspec_cli.drafters.files import WEIGHTS_FILE, DrafterFiles
from dynaspec_cli.drafters.registry import KINDS, kind_of

KEPT = ("LICENSE*", "NOTICE*")
"""Files that stay with the weights wherever they go."""


@dataclass(frozen=True)
class DrafterCheckpoint:
    """``kind``: its name in drafters/registry.py; ``config``: config.json; ``tensors`` by their
    names in the file, as stored, on the CPU; ``card``: README.md of where it came from; ``legal``:
    texts of licences and notices by file name; ``source``: where it came from."""

    kind: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    card: str | None = None
    legal: Mapping[str, str] = field(default_factory=dict)
    source: str = "memory"

    @classmethod
    def from_pretrained(cls, name: str | Path) -> DrafterCheckpoint:
        """Of a folder, or of a hub repository that is fetched. Raises DynaSpecError where it holds
        no drafter of a kind that is known."""
        folder = Path(name).expanduser()
        if not folder.is_dir():
            folder = fetch_drafter(str(name), str(name))
        files = DrafterFiles(folder, str(name))
        kind, _ = kind_of(files)
        legal = {
            path.name: path.read_text(encoding="utf-8", errors="replace")
            for pattern in KEPT
            for path in sorted(folder.glob(pattern))
        }
        card = folder / CARD_FILE
        return cls(
            kind,
            files.config,
            files.tensors(),
            card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None,
            legal,
            str(name),
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder; it appears complete or not at all. Raises DynaSpecError where it exists
        and is not empty."""
        from safetensors.torch import save_file

        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        write: dict[str, Callable[[Path], None]] = {
            CONFIG_FILE: text(json.dumps(self.config, indent=2, ensure_ascii=False) + "\n"),
            WEIGHTS_FILE: lambda path: save_file(tensors, path, metadata={"format": "pt"}),
            CARD_FILE: text(self.card or model_card(self)),
        }
        write |= {name: text(content) for name, content in self.legal.items()}
        write_folder(Path(folder), write, lambda _: False, (WEIGHTS_FILE,), "drafter")

    def push_to_hub(self, name: str, private: bool = False) -> str:
        """Upload as hub repository ``name`` ("ORG/NAME"); its address."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "drafter")
            return push(Path(folder) / "drafter", name, private, f"{self.kind} drafter")

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def model_card(checkpoint: DrafterCheckpoint) -> str:
    """README.md with the front matter that the hub reads."""
    config = checkpoint.config
    verifier = (config.get("speculators_config") or {}).get("verifier") or {}
    target = config.get("target_name") or verifier.get("name_or_path")
    base = f"base_model: {target}\n" if target and str(target).count("/") == 1 else ""
    parameters = sum(t.numel() for t in checkpoint.tensors.values() if t.is_floating_point())
    return (
        f"---\nlibrary_name: dynaspec\n{base}tags:\n- speculative-decoding\n- drafter\n"
        f"- {checkpoint.kind}\n---\n\n"
        f"# Drafter{f' for {target}' if target else ''}\n\n"
        f"{KINDS[checkpoint.kind].description[:1].upper()}"
        f"{KINDS[checkpoint.kind].description[1:]}. The target verifies what it drafts, so the "
        "target's output does not change.\n\n"
        f"- kind: {checkpoint.kind}\n- parameters: {parameters:,}\n"
        f"- made from: {checkpoint.source}\n\n"
        f'```\ndynaspec generate --model {target or "TARGET"} --drafter THIS_FOLDER "..."\n```\n'
    )

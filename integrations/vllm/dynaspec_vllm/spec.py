"""What ``config.json`` of a draft folder says under "dynaspec_vllm", checked where it is made.

The tensors lie in ``model.safetensors`` beside the drafter's own, under the names of ``shapes``:
head rows (token ids, where the target's head serves), never positions in another list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynaspec_vllm.errors import DraftFolderError

KEY = "dynaspec_vllm"
PREFIX = "shortlist."
SCHEMA = 1
FORMS = ("eagle-1", "eagle-3", "dynaspec-eagle-1", "language-model")
REMAKE = "make the folder again with: dynaspec export-vllm"


@dataclass(frozen=True)
class DraftSpec:
    """``form`` of the drafter; ``vocab_size`` of the target; ``rows`` of the head that is scored;
    ``target``: facts of the target's config.json that must agree, by their names there, and its
    ``target_name``. Of the shortlist: ``core`` rows always in, the latest ``recent`` tokens,
    ``taken`` of ``clusters`` clusters of ``cluster_size`` rows each; none where ``taken`` is 0."""

    form: str
    vocab_size: int
    rows: int
    target_name: str
    target: Mapping[str, Any]
    core: int
    recent: int
    clusters: int = 0
    cluster_size: int = 0
    taken: int = 0
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise DraftFolderError(
                f"draft folder: schema {self.schema} is not readable by this version, which reads "
                f"{SCHEMA}; {REMAKE}"
            )
        if self.form not in FORMS:
            raise DraftFolderError(
                f"draft folder: form: expected one of {', '.join(FORMS)}, got {self.form!r}"
            )
        for name in ("vocab_size", "rows", "core", "recent", "clusters", "cluster_size", "taken"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise DraftFolderError(
                    f"draft folder: {name}: expected a number of at least 0, got {value!r}"
                )
        if not 1 <= self.rows <= self.vocab_size:
            raise DraftFolderError(
                f"draft folder: rows: expected 1 to the {self.vocab_size} of the vocabulary, got "
                f"{self.rows}"
            )
        if not 1 <= self.core <= self.rows:
            raise DraftFolderError(
                f"draft folder: core: expected 1 to the head's {self.rows} rows, got {self.core}"
            )
        if self.taken > self.clusters:
            raise DraftFolderError(
                f"draft folder: taken: expected at most the {self.clusters} clusters, got "
                f"{self.taken}; {REMAKE}"
            )
        if self.taken and not self.cluster_size:
            raise DraftFolderError(f"draft folder: its clusters are empty; {REMAKE}")
        if not isinstance(self.target, Mapping):
            raise DraftFolderError(f"draft folder: target: expected an object, got {self.target!r}")

    @classmethod
    def of(cls, config: Any) -> DraftSpec:
        """Of a draft folder's config, as vLLM read it (an object with the file's keys) or as plain
        JSON."""
        found = config.get(KEY) if isinstance(config, Mapping) else getattr(config, KEY, None)
        if not isinstance(found, Mapping):
            raise DraftFolderError(
                f"draft folder: its config.json has no {KEY!r}, so it is none of export-vllm's; "
                f"{REMAKE}"
            )
        known = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := sorted(found.keys() - known.keys()):
            raise DraftFolderError(
                f"draft folder: {KEY}: {unknown[0]!r} is not known to this version; install the "
                "dynaspec-vllm that belongs to the dynaspec that made it"
            )
        missing = [
            name
            for name, field in known.items()
            if field.default is dataclasses.MISSING and name not in found
        ]
        if missing:
            raise DraftFolderError(f"draft folder: {KEY} lacks {', '.join(missing)}; {REMAKE}")
        return cls(**found)

    def shapes(self) -> dict[str, tuple[int, ...] | None]:
        """The shortlist's tensors, without ``PREFIX``; None: any width."""
        found: dict[str, tuple[int, ...] | None] = {"core": (self.core,)}
        if self.taken:
            found |= {
                "clusters": (self.clusters, self.cluster_size),
                "router": None,
                "router_bias": (self.clusters,),
            }
        return found

    def check_target(self, target: Any) -> None:
        """Refuse a target that the folder was not made for. ``target``: its config."""
        for name, mine in {"vocab_size": self.vocab_size, **self.target}.items():
            theirs = getattr(target, name, None)
            if mine != theirs:
                raise DraftFolderError(
                    f"draft folder: made for {self.target_name} ({name} {mine}), but the target "
                    f"has {name} {theirs}; export a drafter of this target"
                )

    def check_tensors(self, tensors: Mapping[str, Tensor], width: int) -> None:
        """Every tensor of ``shapes`` in its shape, ids in range; ``width`` of the head's rows."""
        shapes = self.shapes()
        for name, shape in shapes.items():
            if name not in tensors:
                raise DraftFolderError(
                    f"draft folder: its weights lack {PREFIX + name!r}; copy it again, or {REMAKE}"
                )
            wanted = (self.clusters, width) if shape is None else shape
            if tuple(tensors[name].shape) != wanted:
                raise DraftFolderError(
                    f"draft folder: {PREFIX + name!r} has shape {list(tensors[name].shape)}, "
                    f"config.json asks for {list(wanted)}"
                )
        if unknown := sorted(tensors.keys() - shapes.keys()):
            raise DraftFolderError(f"draft folder: unexpected tensor {PREFIX + unknown[0]!r}")
        self._check_rows("core", tensors["core"], least=0)
        if self.taken:
            self._check_rows("clusters", tensors["clusters"], least=-1)  # -1 fills a short one
            if bool((tensors["clusters"][:, 0] < 0).any()):
                raise DraftFolderError(f"draft folder: a cluster has no tokens; {REMAKE}")

    def _check_rows(self, name: str, rows: Tensor, least: int) -> None:
        if rows.dtype not in (torch.int32, torch.int64):
            raise DraftFolderError(
                f"draft folder: {PREFIX + name!r} holds {rows.dtype}, expected integers"
            )
        outside = (rows < least) | (rows >= self.rows)
        if bool(outside.any()):
            raise DraftFolderError(
                f"draft folder: {PREFIX + name!r} holds the id {int(rows[outside][0])}, which is "
                f"outside the {self.rows} rows of the head; it was made for another model"
            )
        if name == "core" and rows.unique().numel() != rows.numel():
            raise DraftFolderError(f"draft folder: {PREFIX + name!r} holds an id twice; {REMAKE}")

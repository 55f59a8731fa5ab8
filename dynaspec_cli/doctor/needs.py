"""What a request would need on top of the model: its drafter, and the shortlist's copy of the LM
head.

Both are looked up by the head's hash, which a model folder gives without the model being loaded, so
that ``--no-measure`` counts what ``generate`` would load.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynaspec_cli.checkpoints.fingerprint import Head
from dynaspec_cli.config import MOST_NODES
from dynaspec_cli.doctor import memory
from dynaspec_cli.doctor.drafter import drafter_path, inspect_drafter, language_model_sizes
from dynaspec_cli.doctor.memory import ModelSizes
from dynaspec_cli.drafters.files import weight_files
from dynaspec_cli.drafters.load import beside, packaged_drafter
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.ops.extension import EXTENSION
from dynaspec_cli.shortlist.packaged import packaged_folder
from dynaspec_cli.target.demo_package import ChunkedFile
from dynaspec_cli.target.resolve import ModelSource

UNKNOWN_HEAD = (
    "the shipped drafter and shortlist for a head of these sizes are counted; whether they are for "
    "this head is known once the model is loaded"
)


@dataclass(frozen=True)
class StoredHead:
    """The LM head of a model that was not loaded; ``known_hash`` None: a GGUF file that was not
    converted, whose head has no hash yet."""

    sizes: ModelSizes
    known_hash: str | None

    @property
    def vocab_size(self) -> int:
        return self.sizes.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.sizes.hidden_size

    def head_hash(self) -> str | None:
        return self.known_hash


@dataclass(frozen=True)
class Needs:
    """What the estimate is for: ``available`` bytes before anything is loaded, ``drafter`` as the
    option gives it. ``graphs``: is the target's pass captured as CUDA graphs; ``packed``: is the
    target a GGUF file on its own blocks; ``gathers``: does a shortlist find its rows in the
    target's own head."""

    dtype: str
    context: int
    available: int | None
    drafter: str
    graphs: bool = False
    packed: bool = False
    gathers: bool = False

    def of_head(self, sizes: ModelSizes, head: Head) -> dict[str, Any]:
        """``memory`` and, for ``--drafter auto``, ``drafter``."""
        explicit = drafter_path(self.drafter)
        named = beside(self.drafter)[0]
        folder = packaged_drafter(head) if named in ("auto", "packaged") else explicit
        # Without a shipped bundle the shortlist is nanospec's, on the target's own head.
        bundled = folder is not None and packaged_folder(head) is not None
        needed = memory.estimate(
            sizes,
            self.dtype,
            context=self.context,
            tree_size=MOST_NODES,
            drafter_bytes=0 if folder is None else self._drafter_bytes(folder),
            reordered_head=bundled and not self.gathers,
            available=self.available,
            graphs=self.graphs,
            packed=self.packed,
        )
        parts = needed["parts_bytes"]
        shipped = parts["shortlist_head"] + (parts["drafter"] if explicit is None else 0)
        if shipped and head.head_hash() is None:
            needed["note"] = UNKNOWN_HEAD
            if self.available is not None and needed["total_bytes"] - shipped <= self.available:
                needed["fits"] = needed["fits"] or None  # False only if it fits in neither case
            return {"memory": needed}
        if self.drafter != "auto":
            return {"memory": needed}
        return {"memory": needed, "drafter": None if folder is None else inspect_drafter(folder)}

    def of_gguf(self, source: ModelSource) -> dict[str, Any]:
        """``memory`` of a GGUF file that was not converted yet."""
        gguf = source.gguf
        if gguf is None:
            raise DynaSpecError(f"{source.name}: no GGUF file")
        notes = ["not converted yet; the first dynaspec generate converts it"]
        sizes = memory.gguf_sizes(gguf)
        if isinstance(sizes, int):
            found = memory.weights_alone(sizes, self.dtype, self.available)
            notes.append("the file does not tell its shape, so nothing but the weights is counted")
        else:
            found = self.of_head(sizes, StoredHead(sizes, None))["memory"]
            notes += [found["note"]] if "note" in found else []
        size = gguf.size if isinstance(gguf, ChunkedFile) else gguf.stat().st_size
        needed = found["parts_bytes"]["weights"]
        return found | {"gguf_bytes": size, "cache_bytes_needed": needed, "note": "; ".join(notes)}

    def _drafter_bytes(self, path: Path) -> int:
        """A language model has a cache of its own, takes the target's dtype, or its file's blocks,
        and while it loads its tokenizer stands beside the target's; of other drafters the weights
        are counted as they lie in their files."""
        sizes = language_model_sizes(path)
        if sizes is not None:
            item = memory.ITEM_BYTES[self.dtype]
            rows = self.context + MOST_NODES + 1
            packed = self.gathers and EXTENSION.module is not None
            tokenizer = sizes.vocab_size * memory.TOKEN_BYTES
            return sizes.weight_bytes(item, packed) + sizes.kv_width * rows * item + tokenizer
        return sum(part.stat().st_size for part in weight_files(path, required=False))

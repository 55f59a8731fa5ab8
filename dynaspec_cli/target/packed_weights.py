"""A GGUF file's weights as its own blocks, packed for the CPU's kernels."""

from __future__ import annotations

import warnings
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynaspec_cli.gguf_files.tensors import GgufTensor
from dynaspec_cli.ops.layer import LayerWeights
from dynaspec_cli.ops.pages import RESERVED, HugePages, on_huge_pages
from dynaspec_cli.target.native_spec import NativeSpec
from dynaspec_cli.target.native_weights import (
    NativeWeights,
    Tensors,
    assemble,
    checked,
    layer_names,
    layer_norms,
)
from dynaspec_cli.weights.pack import Blocks, pack, packs
from dynaspec_cli.weights.weight import Weight, dense

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class BlockTensors(Tensors, Protocol):
    """Tensors that are also to be had as the file's own blocks."""

    def blocks(self, name: str) -> GgufTensor: ...

    def forget(self, name: str) -> None: ...


class _Reader:
    """``other``: the dtype of matrices that have no packed form."""

    def __init__(self, files: BlockTensors, spec: NativeSpec, other: torch.dtype) -> None:
        self.files = files
        self.spec = spec
        self.other = other
        self.seen: dict[str, str] = {}  # block type -> form
        self.room = HugePages(RESERVED)

    def layer(self, index: int) -> LayerWeights:
        names = layer_names(self.spec, index)
        groups = [self.matrices(part) for part in (names.qkv, names.out, names.gate_up, names.down)]
        blocks = [part for group in groups for part in group if isinstance(part, Blocks)]
        packed = iter(self.packed(blocks))
        found = [
            tuple(next(packed) if isinstance(part, Blocks) else part for part in group)
            for group in groups
        ]
        qkv, (out,), gate_up, (down,) = found
        return LayerWeights(
            **layer_norms(self.files, self.spec, index),
            qkv=tuple(part.data for part in qkv),
            out=out.data,
            gate_up=tuple(part.data for part in gate_up),
            down=down.data,
            formats=tuple(part.code for group in found for part in group),
        )

    def table(self, name: str) -> Weight:
        (part,) = self.matrices({name: (self.spec.vocab_size, self.spec.hidden_size)})
        return self.packed([part])[0] if isinstance(part, Blocks) else part

    def matrices(self, names: dict[str, tuple[int, int]]) -> list[Blocks | Weight]:
        """Neighbours of one form become one matrix."""
        parts: list[Blocks | Weight] = []
        for name, size in names.items():
            part = self.matrix(name, size)
            last = parts[-1] if parts else None
            if isinstance(last, Blocks) and isinstance(part, Blocks) and last.form == part.form:
                sources = (*last.sources, *part.sources)
                parts[-1] = Blocks((*last.rows, *part.rows), part.form, part.columns, sources)
            elif isinstance(last, Weight) and isinstance(part, Weight):
                if last.data.dtype == part.data.dtype:
                    parts[-1] = dense(
                        on_huge_pages([torch.cat([last.data, part.data])], self.room)[0]
                    )
                else:
                    parts.append(part)
            else:
                parts.append(part)
        return parts

    def matrix(self, name: str, size: tuple[int, int]) -> Blocks | Weight:
        blocks = self.files.blocks(name)
        form = packs(blocks.block_type, blocks.shape[1])
        if form is None:
            kind = FLOATS.get(blocks.block_type, self.other)
            self.seen[blocks.block_type] = str(kind).removeprefix("torch.")
            return dense(on_huge_pages([checked(self.files, name, size, kind)], self.room)[0])
        self.seen[blocks.block_type] = form.name
        return Blocks(tuple(map(_tensor, blocks.parts)), form, size[1], (name,))

    def packed(self, blocks: list[Blocks]) -> list[Weight]:
        """Each weight's pages of the file are given back once it is packed, so that no more than
        one is held twice."""
        try:
            return pack(blocks, self.room, self.files.forget)
        except ValueError:
            for part in blocks:
                for name in part.sources:
                    self.files.blocks(name).check_finite()
            raise

    def form(self) -> str:
        """ "packed: q4_k, q6_k; q3_k as bfloat16"."""
        own = [kind.lower() for kind, form in self.seen.items() if form == kind.lower()]
        rest = [
            f"{kind.lower()} as {form}" for kind, form in self.seen.items() if form != kind.lower()
        ]
        return "; ".join([f"packed: {', '.join(sorted(own))}"] * bool(own) + sorted(rest))


def _tensor(rows: NDArray[np.uint8]) -> Tensor:
    with warnings.catch_warnings():  # the mapping is read-only, and only read
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(rows)


def read_packed(files: BlockTensors, spec: NativeSpec, other: torch.dtype) -> NativeWeights:
    """The file's blocks as they are multiplied; what has no packed form is de-quantised to
    ``other``, and ``form`` says so. Raises ``DynaSpecError`` for damaged scales."""
    reader = _Reader(files, spec, other)
    layers = [reader.layer(index) for index in range(len(spec.shapes))]
    weights = assemble(files, spec, layers, reader.table, "")
    return NativeWeights(
        weights.embedding, weights.head, weights.layers, weights.norm, reader.form()
    )

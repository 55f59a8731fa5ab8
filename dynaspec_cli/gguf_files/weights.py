"""A GGUF model's tensors under the names of ``transformers``, rows in our order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynaspec_cli.checkpoints.fingerprint import head_hash_of_rows, sampled_rows
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.gguf_files.layout import Slot
from dynaspec_cli.gguf_files.tensors import FLOATS, SCALE_BYTES, GgufTensor, GgufTensors

HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
VALUES_AT_ONCE = 1 << 17
"""De-quantised at a time: the temporaries stay in a core's second-level cache."""


class GgufWeights:
    """Matrices and vectors by our name. Gemma's norms are stored with their "+1" in the file."""

    def __init__(
        self,
        tensors: GgufTensors,
        slots: Mapping[str, Slot],
        report: Callable[[float], None] | None = None,
    ) -> None:
        """``report`` is told the share of the tensors that were de-quantised so far."""
        self.place = tensors.place
        self.report = report
        self._tensors = tensors
        self._slots = slots
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._slots

    def names(self) -> list[str]:
        """All tensor names."""
        return sorted(self._slots)

    def blocks(self, name: str) -> GgufTensor:
        """The tensor as the file's own blocks, its rows in the order of the ``rotate_half`` form;
        views of the mapped file where they need no other order."""
        slot = self._slot(name)
        tensor = self._tensors[slot.file]
        order = slot.row_order()
        if order is None or tensor.shape[0] == 1:
            return tensor
        return tensor.take(order)

    def forget(self, name: str) -> None:
        """Give the memory of the file's mapped pages back once a tensor was copied."""
        self._tensors.forget(self._slot(name).file)

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """The de-quantised tensor, [rows, columns] or [columns], rounded once to ``dtype``.

        Raises ``DynaSpecError`` for values that are no finite numbers.
        """
        slot, blocks = self._slot(name), self.blocks(name)
        self._read.add(name)
        if self.report is not None:
            self.report(len(self._read) / len(self._slots))
        blocks.check_finite()
        rows, columns = blocks.shape
        out = torch.empty(rows, columns, dtype=dtype)
        bits = out.view(torch.int16 if dtype.itemsize == 2 else torch.int32).numpy()
        step = max(1, VALUES_AT_ONCE // columns)

        def part(low: int) -> None:
            bits[low : low + step] = _rounded(blocks.floats(slice(low, low + step)), dtype)

        starts = range(0, rows, step)
        if len(starts) == 1:
            part(0)
        else:
            with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
                list(pool.map(part, starts))
        if blocks.block_type not in (*FLOATS, *SCALE_BYTES) and not bool(out.isfinite().all()):
            raise DynaSpecError(
                f"{self.place}: tensor {slot.file!r} holds values that are NaN or infinite; the "
                "file is damaged: download it again"
            )
        self.forget(name)
        if slot.shape[0] != 1:
            return out
        order = slot.row_order()
        vector = out.reshape(-1)
        return vector if order is None else vector[torch.from_numpy(order)]

    def head(self) -> GgufTensor:
        """The LM head's blocks: its own, or the embeddings it is tied to."""
        return self.blocks(HEAD if HEAD in self._slots else EMBEDDINGS)

    def head_hash(self) -> str:
        """``fingerprint.head_hash`` of the de-quantised head, from the rows that it samples."""
        head = self.head()
        picked: NDArray[np.int64] = sampled_rows(head.shape[0]).numpy()
        return head_hash_of_rows(head.shape, torch.from_numpy(head.floats(picked)))

    def _slot(self, name: str) -> Slot:
        if name not in self._slots:
            raise DynaSpecError(f"{self.place}: the model has no tensor {name!r}")
        return self._slots[name]


def _rounded(values: NDArray[np.float32], dtype: torch.dtype) -> NDArray[np.signedinteger[Any]]:
    """The bits of float32 ``values`` rounded to ``dtype``, halves to even. By numpy: several
    threads that each called torch's own parallel copy would wait for one another."""
    if dtype == torch.float32:
        return values.view(np.int32)
    if dtype == torch.float16:
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.int16)
    bits = values.view(np.uint32)
    bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (bits >> np.uint32(16)).astype(np.uint16).view(np.int16)

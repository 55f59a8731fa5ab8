"""The packed forms of weights: rows of a GGUF file's blocks in the kernels' order, uint8 [rows, row
bytes]. Their numbers are those of ``Format`` in csrc/cpu/kernels/kernels.h.

``PAIRS`` multiply activations of 16 bits with one scale a row (``max |x| / 32767``), where the
processor has VNNI (the level avx512_bf16) of 8 bits with a scale for every 32 values; ``QUADS``
activations of 8 bits with a scale for every 256 (``max |x| / 127``).
"""

from __future__ import annotations

from dataclasses import dataclass

PAIRS, QUADS = "pairs", "quads"
DENSE = -1
"""The format of a weight that its dtype describes."""


@dataclass(frozen=True)
class PackedFormat:
    """``block``: values and bytes of a block; ``activations``: PAIRS or QUADS; ``bits`` of a code;
    ``minimum``: blocks have a minimum beside their scale."""

    name: str
    code: int
    block: tuple[int, int]
    activations: str
    bits: int
    minimum: bool

    def fits(self, columns: int) -> bool:
        return columns > 0 and columns % self.block[0] == 0

    def row_bytes(self, columns: int) -> int:
        return columns // self.block[0] * self.block[1]


PACKED = {
    form.name: form
    for form in (
        PackedFormat("q8_0", 4, (32, 34), PAIRS, 8, minimum=False),
        PackedFormat("q4_0", 5, (32, 18), PAIRS, 4, minimum=False),
        PackedFormat("q4_1", 6, (32, 20), PAIRS, 4, minimum=True),
        PackedFormat("q5_0", 7, (32, 22), PAIRS, 5, minimum=False),
        PackedFormat("q5_1", 8, (32, 24), PAIRS, 5, minimum=True),
        PackedFormat("q4_k", 9, (256, 144), QUADS, 4, minimum=True),
        PackedFormat("q5_k", 10, (256, 176), QUADS, 5, minimum=True),
        PackedFormat("q6_k", 11, (256, 210), QUADS, 6, minimum=False),
    )
}
BYTE_LEVELS = ("avx512_bf16",)
"""Instruction-set levels on which ``PAIRS`` multiply activations of 8 bits."""

_BY_CODE = {form.code: form for form in PACKED.values()}


def activation_scales(form: PackedFormat, level: str, columns: int) -> tuple[int, int]:
    """(values that share a scale, largest code) of the activations that a form multiplies."""
    if form.activations == QUADS:
        return 256, 127
    return (32, 127) if level in BYTE_LEVELS else (columns, 32767)


def packed_format(code: int) -> PackedFormat:
    """Raises ``ValueError`` for a number that is no packed form's."""
    if code not in _BY_CODE:
        raise ValueError(f"format: expected that of packed rows, got {code}")
    return _BY_CODE[code]

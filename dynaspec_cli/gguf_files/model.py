"""A GGUF model: one file, a file in pieces, or the shards of a split one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.gguf_files.header import Header, Value, read_header
from dynaspec_cli.gguf_files.pieces import Pieces
from dynaspec_cli.gguf_files.tensors import GgufTensors

SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
QUANTIZATION_VERSION = 2
MAX_SHARDS = 10_000


@dataclass(frozen=True)
class GgufModel:
    """``keys`` of the first shard; ``tensors`` of all; ``place``: the file, for messages."""

    place: str
    keys: dict[str, Value]
    tensors: GgufTensors

    @property
    def architecture(self) -> str:
        """As the file names it."""
        return str(self.keys["general.architecture"])


def open_gguf(pieces: Sequence[Path]) -> GgufModel:
    """Open a file (``pieces`` in order; of a split file any one shard) and map its tensors.

    Raises ``DynaSpecError`` for everything that ``read_header`` refuses, for a shard that is
    missing or of another model, and for files that hold no model.
    """
    whole = Pieces(pieces)
    header = read_header(whole)
    count = header.keys.get("split.count", 0)
    if isinstance(count, int) and count > 1:
        return _split(whole, header, count)
    return _model([(whole, header)])


def _split(given: Pieces, header: Header, count: int) -> GgufModel:
    path = given.paths[0]
    match = SHARD.fullmatch(path.name)
    if len(given.paths) > 1 or match is None or int(match["count"]) != count or count > MAX_SHARDS:
        raise DynaSpecError(
            f"{path}: one of {count} shards of a split file, but not named so; expected "
            f"NAME-00001-of-{count:05d}.gguf and the others beside it"
        )
    shards = []
    for number in range(count):
        other = path.with_name(f"{match['stem']}-{number + 1:05d}-of-{count:05d}.gguf")
        if not other.is_file():
            raise DynaSpecError(
                f"{path}: shard {number + 1} of {count} is missing ({other.name}); download it "
                "into the same folder"
            )
        pieces = given if other == path else Pieces((other,))
        found = header if other == path else read_header(pieces)
        if found.keys.get("split.no") != number or found.keys.get("split.count") != count:
            raise DynaSpecError(
                f"{other}: says it is shard {found.keys.get('split.no')} of "
                f"{found.keys.get('split.count')}, expected {number} of {count}; it belongs to "
                "another file"
            )
        shards.append((pieces, found))
    held = sum(len(found.tensors) for _, found in shards)
    told = header.keys.get("split.tensors.count", held)
    if held != told:
        raise DynaSpecError(
            f"{path}: the {count} shards hold {held} tensors, expected {told}; one of them belongs "
            "to another file"
        )
    return _model(shards)


def _model(shards: list[tuple[Pieces, Header]]) -> GgufModel:
    pieces, first = shards[0]
    place, seen = pieces.name, set[str]()
    for shard, header in shards:
        for name in header.tensors:
            if name in seen:
                raise DynaSpecError(f"{shard.name}: tensor {name!r} stands in two shards")
            seen.add(name)
    if not isinstance(first.keys.get("general.architecture"), str):
        raise DynaSpecError(f"{place}: the GGUF file names no architecture; expected a model")
    kind = first.keys.get("general.type", "model")
    if kind != "model":
        raise DynaSpecError(f"{place}: holds a {kind}, expected a whole model")
    version = first.keys.get("general.quantization_version", QUANTIZATION_VERSION)
    entries = [entry for _, header in shards for entry in header.tensors.values()]
    quantised = any(entry.block_type.startswith("Q") for entry in entries)
    if quantised and version != QUANTIZATION_VERSION:
        raise DynaSpecError(
            f"{place}: blocks of quantisation version {version}, expected {QUANTIZATION_VERSION}; "
            "convert the model again"
        )
    return GgufModel(
        place, first.keys, GgufTensors(place, [(p, header.tensors) for p, header in shards])
    )

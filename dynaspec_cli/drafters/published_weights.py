"""Tensors of a published EAGLE head: their names in one form, their shapes, and what they become.

Names differ by library: ``midlayer.*`` and ``layers.0.*`` are one, some have a ``model.`` before
them, SGLang's ``aux_norm_low/mid/high`` are ``fc_norm.0/1/2``. Every tensor is used, or the head is
refused with the tensor's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dynaspec_cli.checkpoints.vocab_map import VocabMap
from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.drafters.kind import HeadFacts
from dynaspec_cli.drafters.layer import DraftLayer
from dynaspec_cli.drafters.published import EAGLE3, HeadConfig, read_head_config
from dynaspec_cli.errors import DynaSpecError

AUX_NORMS = {"aux_norm_low": "fc_norm.0", "aux_norm_mid": "fc_norm.1", "aux_norm_high": "fc_norm.2"}
LAYER = re.compile(r"layers\.(\d+)\.")
FREQUENCIES = re.compile(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
QUANTISED = ("qweight", "weight_packed", "weight_scale", "weight_zero_point", "qzeros")
QKV = ("q_proj", "k_proj", "v_proj")
CHECKED_ROWS = 2048
HIDDEN_NORM = "layers.0.hidden_norm.weight"

Shape = tuple[int, ...]


def canonical(name: str) -> str:
    """A tensor's name as this module writes it."""
    name = name.removeprefix("model.")
    if name.startswith("midlayer."):
        name = "layers.0." + name.removeprefix("midlayer.")
    stem, dot, last = name.rpartition(".")
    return AUX_NORMS.get(stem, stem) + dot + last


def renamed(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Tensors by canonical name. Raises DynaSpecError where two have one name."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if canonical(name) in found:
            raise DynaSpecError(f"{where}: {name!r} stands under another name too")
        found[canonical(name)] = tensor
    return found


def count_layers(names: Iterable[str]) -> int:
    """Decoder layers, by the tensors: configs copied from the target say the target's number."""
    numbers = {int(match[1]) for name in names if (match := LAYER.match(canonical(name)))}
    return max(numbers, default=-1) + 1


@dataclass(frozen=True)
class HeadWeights:
    """On the CPU, as stored. ``layers``; ``fc`` [D, 2D] (EAGLE-1) or [D, A * d]; ``embedding`` [V,
    D] and ``head`` [Vd, D], or None where the file has none; ``norm``, ``hidden_norm``,
    ``token_norm`` [D] (EAGLE-3); ``tap_norms``: one over all taps [A * d], or one a tap [d];
    ``vocab``: the token of each head row, None where row i is token i."""

    layers: tuple[DraftLayer, ...]
    fc: Tensor
    fc_bias: Tensor | None
    embedding: Tensor | None
    head: Tensor | None
    norm: Tensor | None
    hidden_norm: Tensor | None
    token_norm: Tensor | None
    tap_norms: tuple[Tensor, ...]
    vocab: VocabMap | None


class Taken:
    """Tensors by canonical name, of which each must be taken once, in its shape."""

    def __init__(self, tensors: dict[str, Tensor], where: str) -> None:
        self.left, self.where = dict(tensors), where

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def need(self, name: str, shape: Shape) -> Tensor:
        if name not in self.left:
            raise DynaSpecError(
                f"{self.where}: the weights lack {name!r}; the file does not fit its config.json"
            )
        tensor = self.left.pop(name)
        if tuple(tensor.shape) != shape:
            raise DynaSpecError(
                f"{self.where}: {name!r} has shape {list(tensor.shape)}, config.json asks for "
                f"{list(shape)}"
            )
        if not tensor.is_floating_point():
            raise DynaSpecError(
                f"{self.where}: {name!r} holds {str(tensor.dtype).removeprefix('torch.')}, "
                "expected floating-point weights; quantised heads are not read"
            )
        if not _finite(tensor):
            raise DynaSpecError(
                f"{self.where}: {name!r} holds NaN or infinite weights; the file is damaged, copy "
                "it again"
            )
        return tensor

    def maybe(self, name: str, shape: Shape) -> Tensor | None:
        return self.need(name, shape) if name in self.left else None

    def raw(self, name: str) -> Tensor | None:
        return self.left.pop(name, None)

    def check_empty(self) -> None:
        if not self.left:
            return
        name = sorted(self.left)[0]
        if name.rpartition(".")[2] in QUANTISED:
            raise DynaSpecError(f"{self.where}: {name!r}: quantised heads are not read")
        raise DynaSpecError(
            f"{self.where}: {name!r} is no tensor of a head as config.json describes it, and "
            "leaving it out would change the drafts"
        )


def read_weights(config: HeadConfig, tensors: Mapping[str, Tensor], where: str) -> HeadWeights:
    """Sort a file's tensors by what they are. Raises DynaSpecError with the tensor's name where one
    is missing, has another shape, holds no finite numbers, or is unknown."""
    taken = Taken(renamed(tensors, where), where)
    layers = count_layers(taken.left)
    if not layers:
        raise DynaSpecError(f"{where}: the weights have no decoder layer")
    _check_frequencies(config, taken)
    deep = config.method == EAGLE3
    d, width = config.hidden_size, config.target_hidden_size
    tap_norms: tuple[Tensor, ...] = ()
    if deep:
        columns = _columns(taken, d, width)
        tap_norms = _tap_norms(config, taken, columns)
    else:
        columns = 2 * d
    weights = HeadWeights(
        fc=taken.need("fc.weight", (d, columns)),
        fc_bias=None if deep else _fc_bias(config, taken),
        layers=tuple(_layer(config, taken, i) for i in range(layers)),
        embedding=taken.maybe("embed_tokens.weight", (config.vocab_size, d)),
        norm=taken.need("norm.weight", (d,)) if deep else None,
        hidden_norm=taken.need(HIDDEN_NORM, (d,)) if deep else None,
        token_norm=taken.need("layers.0.input_layernorm.weight", (d,)) if deep else None,
        tap_norms=tap_norms,
        vocab=_vocabulary(config, taken),
        head=_head(config, taken),
    )
    taken.check_empty()
    return weights


def _finite(tensor: Tensor) -> bool:
    """Are all numbers finite? A block of rows at a time: asked of a whole embedding, ``isfinite``
    holds twice its size beside it."""
    return all(bool(rows.isfinite().all()) for rows in tensor.split(CHECKED_ROWS))


def _layer(config: HeadConfig, taken: Taken, index: int) -> DraftLayer:
    shape, d, inner = config.layer, config.hidden_size, config.intermediate_size
    reads = 2 * d if config.method == EAGLE3 and index == 0 else d
    sizes = dict(zip(QKV, (shape.num_heads, *(shape.num_kv_heads,) * 2), strict=True))
    prefix = f"layers.{index}."

    def need(name: str, *size: int) -> Tensor:
        return taken.need(f"{prefix}{name}.weight", size)

    parts = [need(f"self_attn.{p}", n * shape.head_dim, reads) for p, n in sizes.items()]
    biases = [
        taken.maybe(f"{prefix}self_attn.{p}.bias", (n * shape.head_dim,)) for p, n in sizes.items()
    ]
    given = [bias for bias in biases if bias is not None]
    if given and (len(given) < len(biases) or config.said_qkv_bias is False):
        raise DynaSpecError(
            f"{taken.where}: config.json and weights disagree about the biases of {prefix}self_attn"
        )
    if not given and config.said_qkv_bias:
        taken.need(f"{prefix}self_attn.q_proj.bias", (sizes["q_proj"] * shape.head_dim,))
    norms = [taken.maybe(f"{prefix}self_attn.{n}_norm.weight", (shape.head_dim,)) for n in "qk"]
    if (norms[0] is None) != (norms[1] is None):
        taken.need(f"{prefix}self_attn.{'q' if norms[0] is None else 'k'}_norm.weight", ())
    return DraftLayer(
        qkv=torch.cat(parts),
        qkv_bias=torch.cat(given) if given else None,
        q_norm=norms[0],
        k_norm=norms[1],
        out=need("self_attn.o_proj", d, shape.num_heads * shape.head_dim),
        out_bias=taken.maybe(f"{prefix}self_attn.o_proj.bias", (d,)),
        mlp_norm=need("post_attention_layernorm", d),
        gate_up=torch.cat([need(f"mlp.{name}_proj", inner, d) for name in ("gate", "up")]),
        down=need("mlp.down_proj", d, inner),
        input_norm=need("input_layernorm", d) if index else None,
    )


def _columns(taken: Taken, d: int, width: int) -> int:
    """Columns of EAGLE-3's fc: a whole number of taps."""
    found = taken.left.get("fc.weight")
    columns = 0 if found is None or found.dim() != 2 else int(found.shape[1])
    if columns % width or not columns:
        taken.need("fc.weight", (d, 3 * width))
    return columns


def _tap_norms(config: HeadConfig, taken: Taken, columns: int) -> tuple[Tensor, ...]:
    if config.norm_before_fc and config.fc_norm:
        raise DynaSpecError(f"{taken.where}: config.json: norm_before_fc and fc_norm are both true")
    if config.norm_before_fc:
        return (taken.need("input_norm.weight", (columns,)),)
    if not config.fc_norm:
        return ()
    width = config.target_hidden_size
    return tuple(taken.need(f"fc_norm.{i}.weight", (width,)) for i in range(columns // width))


def _fc_bias(config: HeadConfig, taken: Taken) -> Tensor | None:
    """The file decides. EAGLE's default is a bias, and leaves one at random where the file has
    none; the other libraries have none then."""
    if config.said_fc_bias:
        return taken.need("fc.bias", (config.hidden_size,))
    if config.said_fc_bias is False and "fc.bias" in taken:
        raise DynaSpecError(f"{taken.where}: the file has fc.bias, but config.json says bias false")
    return taken.maybe("fc.bias", (config.hidden_size,))


def _head(config: HeadConfig, taken: Taken) -> Tensor | None:
    rows = config.draft_vocab_size or config.vocab_size
    head = taken.maybe("lm_head.weight", (rows, config.hidden_size))
    if head is None and rows != config.vocab_size:
        taken.need("lm_head.weight", (rows, config.hidden_size))
    return head


def _vocabulary(config: HeadConfig, taken: Taken) -> VocabMap | None:
    d2t, t2d = taken.raw("d2t"), taken.raw("t2d")
    rows = config.draft_vocab_size or config.vocab_size
    if d2t is None:
        if rows != config.vocab_size:
            raise DynaSpecError(
                f"{taken.where}: the weights lack 'd2t', the tokens of the head's {rows} rows"
            )
        if t2d is not None and not bool(t2d.bool().all()):
            raise DynaSpecError(f"{taken.where}: the weights have 't2d' and lack 'd2t'")
        return None
    vocab = VocabMap.from_head(d2t, t2d, rows, config.vocab_size, f"{taken.where}: d2t")
    return None if vocab.is_identity else vocab


def _check_frequencies(config: HeadConfig, taken: Taken) -> None:
    """Old files store the rotary frequencies: they must be those of the config."""
    for name in [name for name in taken.left if FREQUENCIES.fullmatch(name)]:
        stored = taken.left.pop(name).float()
        wanted = config.rope.table(config.layer.head_dim).inv_freq
        if stored.shape != wanted.shape or not torch.allclose(stored, wanted, rtol=0.01, atol=0.0):
            raise DynaSpecError(
                f"{taken.where}: {name!r} disagrees with a rotary base of {config.rope.theta:g}; "
                "give --drafter-option rope_theta=…"
            )


def inspect_head(files: DrafterFiles, method: str) -> HeadFacts:
    """Rows of the head that a folder's drafter scores with, from config and shapes alone."""
    where = f"drafter {files.folder}"
    config = read_head_config(files.config, files.options, method, where)
    shapes = {canonical(name): shape for name, shape in files.shapes().items()}
    head = shapes.get("lm_head.weight")
    rows = head[0] if head else None
    if head is None and config.tie:
        rows = config.vocab_size
    return HeadFacts(config.vocab_size, rows)

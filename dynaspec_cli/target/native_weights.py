"""A model's weights as the argument lists of ``ops.decoder_layer``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.ops.pages import on_huge_pages
from dynaspec_cli.target.native_spec import NativeSpec
from dynaspec_cli.target.weights import EMBEDDINGS, HEAD


class Tensors(Protocol):
    """Where the tensors come from: a folder's safetensors files, or a GGUF file; ``place`` is what
    messages call it."""

    place: str

    def __contains__(self, name: str) -> bool: ...

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor: ...


@dataclass(frozen=True)
class NativeWeights:
    """``embedding`` and ``head`` [V, d] (one tensor where tied); ``layers`` as
    ``reference.LAYER_WEIGHTS``; ``norm`` float32 [d], any "+1" added."""

    embedding: Tensor
    head: Tensor
    layers: list[list[Tensor]]
    norm: Tensor


def read_weights(files: Tensors, spec: NativeSpec, dtype: torch.dtype) -> NativeWeights:
    """Collect and fuse; matrices in ``dtype``, norms in float32. Raises ``DynaSpecError`` where a
    tensor is missing or of another shape than the config says."""
    # Copied once onto huge pages, which saves every pass a tenth to a fifth of its time.
    layers = [on_huge_pages(_layer(files, spec, i, dtype)) for i in range(len(spec.shapes))]
    vocabulary = (spec.vocab_size, spec.hidden_size)
    embedding = _on_huge_pages(_checked(files, EMBEDDINGS, vocabulary, dtype))
    head = embedding
    # A checkpoint may say it is tied and still store a head of its own (a merged adapter):
    # transformers then keeps the stored one.
    if not spec.tied or HEAD in files:
        stored = _checked(files, HEAD, vocabulary, dtype)
        if not (spec.tied and torch.equal(stored, embedding)):
            head = _on_huge_pages(stored)
    return NativeWeights(
        embedding, head, layers, _norm(files, "model.norm.weight", spec, spec.hidden_size)
    )


def _on_huge_pages(weight: Tensor) -> Tensor:
    return on_huge_pages([weight])[0]


def _layer(files: Tensors, spec: NativeSpec, index: int, dtype: torch.dtype) -> list[Tensor]:
    shape, prefix, d = spec.shapes[index], f"model.layers.{index}.", spec.hidden_size
    q, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    empty = torch.empty(0)

    def matrix(name: str, rows: int, columns: int) -> Tensor:
        return _checked(files, f"{prefix}{name}.weight", (rows, columns), dtype)

    def norm(name: str, size: int) -> Tensor:
        return _norm(files, f"{prefix}{name}.weight", spec, size)

    def fused(names: tuple[str, ...], rows: tuple[int, ...]) -> Tensor:
        return torch.cat([matrix(name, r, d) for name, r in zip(names, rows, strict=True)])

    projections = tuple(f"self_attn.{p}_proj" for p in "qkv")
    if spec.qkv_bias:
        names = [f"{prefix}{name}.bias" for name in projections]
        bias = torch.cat(
            [_checked(files, n, (r,)) for n, r in zip(names, (q, kv, kv), strict=True)]
        )
    else:
        bias = empty
    inner = spec.intermediate_size
    return [
        norm("input_layernorm", d),
        fused(projections, (q, kv, kv)),
        bias,
        norm("self_attn.q_norm", shape.head_dim) if spec.qk_norm else empty,
        norm("self_attn.k_norm", shape.head_dim) if spec.qk_norm else empty,
        matrix("self_attn.o_proj", d, q),
        norm("post_attention_layernorm", d) if spec.post_norms else empty,
        norm("pre_feedforward_layernorm" if spec.post_norms else "post_attention_layernorm", d),
        fused(("mlp.gate_proj", "mlp.up_proj"), (inner, inner)),
        matrix("mlp.down_proj", d, inner),
        norm("post_feedforward_layernorm", d) if spec.post_norms else empty,
    ]


def _norm(files: Tensors, name: str, spec: NativeSpec, size: int) -> Tensor:
    weight = _checked(files, name, (size,))
    return weight + spec.norm_offset if spec.norm_offset else weight


def _checked(
    files: Tensors, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    tensor = files.tensor(name, dtype)
    if tuple(tensor.shape) != shape:
        raise DynaSpecError(
            f"{files.place}: {name} has shape {list(tensor.shape)}, but config.json asks for "
            f"{list(shape)}"
        )
    return tensor

"""A model's weights, collected and fused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.ops.layer import LayerWeights, dense_layer
from dynaspec_cli.ops.pages import RESERVED, HugePages, on_huge_pages
from dynaspec_cli.target.native_spec import NativeSpec
from dynaspec_cli.target.weights import EMBEDDINGS, HEAD
from dynaspec_cli.weights.weight import Weight, dense

CPU = torch.device("cpu")


class Tensors(Protocol):
    """Where the tensors come from: a folder's safetensors files, or a GGUF file; ``place`` is what
    messages call it."""

    place: str

    def __contains__(self, name: str) -> bool: ...

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor: ...


@dataclass(frozen=True)
class NativeWeights:
    """``embedding`` and ``head`` [V, d] (one weight where tied); ``norm`` float32 [d], any "+1"
    added; ``form``: how the matrices are stored, in words."""

    embedding: Weight
    head: Weight
    layers: list[LayerWeights]
    norm: Tensor
    form: str


@dataclass(frozen=True)
class LayerNames:
    """Names of a layer's matrices, and (rows, columns) of each."""

    qkv: dict[str, tuple[int, int]]
    out: dict[str, tuple[int, int]]
    gate_up: dict[str, tuple[int, int]]
    down: dict[str, tuple[int, int]]


def layer_names(spec: NativeSpec, index: int) -> LayerNames:
    shape, prefix, d = spec.shapes[index], f"model.layers.{index}.", spec.hidden_size
    q, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    inner = spec.intermediate_size

    def named(**sizes: tuple[int, int]) -> dict[str, tuple[int, int]]:
        return {f"{prefix}{name.replace('__', '.')}.weight": size for name, size in sizes.items()}

    return LayerNames(
        named(self_attn__q_proj=(q, d), self_attn__k_proj=(kv, d), self_attn__v_proj=(kv, d)),
        named(self_attn__o_proj=(d, q)),
        named(mlp__gate_proj=(inner, d), mlp__up_proj=(inner, d)),
        named(mlp__down_proj=(d, inner)),
    )


def read_weights(
    files: Tensors, spec: NativeSpec, dtype: torch.dtype, device: torch.device = CPU
) -> NativeWeights:
    """Collect and fuse on ``device``, a layer at a time; matrices in ``dtype``, norms in float32.
    Raises ``DynaSpecError`` where a tensor is missing or of another shape than the config says."""

    room = HugePages(RESERVED)

    def placed(tensors: list[Tensor]) -> list[Tensor]:
        # Copied once onto huge pages, which saves every pass a tenth to a fifth of its time.
        return on_huge_pages(tensors, room) if device == CPU else [t.to(device) for t in tensors]

    def matrices(names: dict[str, tuple[int, int]]) -> Tensor:
        return torch.cat([checked(files, name, size, dtype) for name, size in names.items()])

    def layer(index: int) -> LayerWeights:
        names, norms = layer_names(spec, index), layer_norms(files, spec, index)
        norms |= {field: matrices(getattr(names, field)) for field in LayerNames.__annotations__}
        return dense_layer(placed([norms[name] for name in LayerWeights._fields[:-1]]))

    def table(name: str) -> Weight:
        found = checked(files, name, (spec.vocab_size, spec.hidden_size), dtype)
        return dense(placed([found])[0])

    layers = [layer(i) for i in range(len(spec.shapes))]
    return assemble(files, spec, layers, table, str(dtype).removeprefix("torch."))


def assemble(
    files: Tensors,
    spec: NativeSpec,
    layers: list[LayerWeights],
    table: Callable[[str], Weight],
    form: str,
) -> NativeWeights:
    """With the embeddings and the head that ``table`` reads by name."""
    embedding = table(EMBEDDINGS)
    head = embedding
    # A checkpoint may say it is tied and still store a head of its own (a merged adapter):
    # transformers then keeps the stored one.
    if not spec.tied or HEAD in files:
        stored = table(HEAD)
        if not (spec.tied and torch.equal(stored.data, embedding.data)):
            head = stored
    norm = _norm(files, "model.norm.weight", spec, spec.hidden_size).to(embedding.device)
    return NativeWeights(embedding, head, layers, norm, form)


def layer_norms(files: Tensors, spec: NativeSpec, index: int) -> dict[str, Tensor]:
    """The vectors of ``LayerWeights`` by name."""
    shape, prefix, d = spec.shapes[index], f"model.layers.{index}.", spec.hidden_size
    empty = torch.empty(0)

    def norm(name: str, size: int) -> Tensor:
        return _norm(files, f"{prefix}{name}.weight", spec, size)

    bias = empty
    if spec.qkv_bias:
        bias = torch.cat(
            [
                checked(files, name.replace(".weight", ".bias"), (rows,))
                for name, (rows, _) in layer_names(spec, index).qkv.items()
            ]
        )
    return {
        "input_norm": norm("input_layernorm", d),
        "qkv_bias": bias,
        "q_norm": norm("self_attn.q_norm", shape.head_dim) if spec.qk_norm else empty,
        "k_norm": norm("self_attn.k_norm", shape.head_dim) if spec.qk_norm else empty,
        "post_attention_norm": norm("post_attention_layernorm", d) if spec.post_norms else empty,
        "mlp_norm": norm(
            "pre_feedforward_layernorm" if spec.post_norms else "post_attention_layernorm", d
        ),
        "post_mlp_norm": norm("post_feedforward_layernorm", d) if spec.post_norms else empty,
    }


def _norm(files: Tensors, name: str, spec: NativeSpec, size: int) -> Tensor:
    weight = checked(files, name, (size,))
    return weight + spec.norm_offset if spec.norm_offset else weight


def checked(
    files: Tensors, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    tensor = files.tensor(name, dtype)
    if tuple(tensor.shape) != shape:
        raise DynaSpecError(
            f"{files.place}: {name} has shape {list(tensor.shape)}, but config.json asks for "
            f"{list(shape)}"
        )
    return tensor

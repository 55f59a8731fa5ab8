"""EAGLE-style drafter: the next feature from the last one and the new token (EAGLE-1/2, arXiv
2401.15077, 2406.16858).

It has a KV cache of its own over *pairs* (feature at t, token at t+1); pair t has position t.
Committed pairs carry the target's features; below them lie the temporary rows of the tree under
construction, which carry predicted ones and are dropped by the next ``read``. The LM head and the
final norm are the target's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from dynaspec_cli import ops
from dynaspec_cli.drafters.config import DrafterConfig
from dynaspec_cli.drafters.files import WEIGHTS_FILE, DrafterFiles
from dynaspec_cli.drafters.head import target_head
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.ops.pages import on_huge_pages
from dynaspec_cli.ops.reference import LAYER_WEIGHTS
from dynaspec_cli.protocols import Committed, DraftRows, DraftTree, Frontier, Target
from dynaspec_cli.target.state import grown

MAX_TREE_ROWS = 1024
EXTEND_ROWS = 256
"""Pairs a pass when a prompt is read; bounds the causal mask."""

NORMS = ("input_norm", "q_norm", "k_norm", "post_attention_norm", "mlp_norm", "post_mlp_norm")


@dataclass
class DrafterState:
    """Request state. ``length``: committed pairs; ``tree_*``: the temporary rows behind
    them; ``predicted`` [w, d]: the last pass's features."""

    k: list[Tensor]
    v: list[Tensor]
    cos: Tensor
    sin: Tensor
    last_token: int
    length: int = 0
    tree_rows: int = 0
    tree_mask: Tensor | None = None
    tree_positions: Tensor | None = None
    tree_tokens: Tensor | None = None
    predicted: Tensor | None = None


class EagleDrafter:
    """See ``DrafterConfig`` for the formula. Predicted features are float32, in units of
    ``config.feature_scale``."""

    name = "memory"
    folder: Path | None = None
    taps: tuple[int, ...] = ()

    def __init__(self, config: DrafterConfig, tensors: dict[str, Tensor], target: Target) -> None:
        check_fits(config, target)
        self.config = config
        self.target = target
        self.dtype = target.dtype
        device = target.device
        self.gate = tensors["gate"].float().to(device)
        self.fc = tensors["fc"].to(device, self.dtype).contiguous()
        names = ["feature_norm", "next_norm", "current_norm"][
            : 3 if config.use_current_token else 2
        ]
        self.norms = torch.stack([tensors[name].float() for name in names]).to(device)
        self.layers = [self._layer(tensors, i) for i in range(config.num_layers)]
        half = torch.arange(0, config.head_dim, 2, device=device).float() / config.head_dim
        self.inverse_frequencies = 1.0 / config.rope_theta**half
        self.head = target_head(target)

    def _layer(self, tensors: dict[str, Tensor], index: int) -> list[Tensor]:
        weights = []
        for name in LAYER_WEIGHTS:
            tensor = tensors.get(f"layers.{index}.{name}", torch.empty(0))
            kind = torch.float32 if name in NORMS or name == "qkv_bias" else self.dtype
            weights.append(tensor.to(self.target.device, kind).contiguous())
        return on_huge_pages(weights) if self.target.device.type == "cpu" else weights

    @property
    def num_bytes(self) -> int:
        """Bytes of weights that a draft step reads."""
        return (
            sum(t.numel() * t.element_size() for layer in self.layers for t in layer)
            + self.fc.numel() * self.fc.element_size()
        )

    def describe(self) -> dict[str, Any]:
        return {
            "drafter_kind": self.config.format,
            "drafter_layers": self.config.num_layers,
            "drafter_trained_tokens": self.config.trained_tokens,
        }

    def begin(self, prompt: Tensor, max_length: int) -> DrafterState:
        c, device = self.config, self.target.device
        kind = torch.float32 if self.dtype == torch.float16 else self.dtype
        capacity = max_length + MAX_TREE_ROWS
        shape = (capacity, c.num_kv_heads, c.head_dim)
        cos, sin = self._rotations(capacity)
        return DrafterState(
            k=[torch.empty(shape, dtype=kind, device=device) for _ in self.layers],
            v=[torch.empty(shape, dtype=kind, device=device) for _ in self.layers],
            cos=cos,
            sin=sin,
            last_token=int(prompt[0]),
        )

    def _rotations(self, capacity: int) -> tuple[Tensor, Tensor]:
        """Rotary tables (cos, sin) [capacity, head_dim]."""
        positions = torch.arange(capacity, device=self.target.device).float()
        angle = positions[:, None] * self.inverse_frequencies
        angle = torch.cat([angle, angle], 1)
        return angle.cos(), angle.sin()

    def extend(self, state: DrafterState, committed: Committed) -> DraftRows:
        features = committed.output.features[committed.rows]
        state.predicted = self.read(state, features, committed.tokens)
        return DraftRows(self.target.norm(state.predicted), features[-1:])

    def step(self, state: DrafterState, frontier: Frontier) -> DraftRows:
        assert state.predicted is not None
        features = state.predicted[frontier.source]
        state.predicted = self.expand(state, features, frontier.tokens, frontier.parents)
        return DraftRows(self.target.norm(state.predicted), features)

    def observe(self, state: DrafterState, tree: DraftTree, path: Tensor) -> None:
        """Nothing: what was accepted comes with the next ``extend``."""

    def rewind(self, state: DrafterState, prompt: Tensor, max_length: int) -> int:
        """Pair t holds tokens t and t + 1, so m tokens leave m - 1 pairs. The pair at the seam, the
        last kept token's feature with the token that follows now, comes with the next
        ``extend``."""
        state.length = min(prompt.numel() - 1, state.length)
        state.last_token = int(prompt[state.length])
        state.tree_rows, state.tree_mask = 0, None
        capacity = max_length + MAX_TREE_ROWS
        if capacity > state.cos.shape[0]:
            state.cos, state.sin = self._rotations(capacity)
        if capacity > state.k[0].shape[0]:
            state.k = [grown(cache, 0, state.length, capacity) for cache in state.k]
            state.v = [grown(cache, 0, state.length, capacity) for cache in state.v]
        return state.length + 1

    def read(self, state: DrafterState, features: Tensor, tokens: Tensor) -> Tensor:
        """Consume committed pairs (feature_t [m, d], token_{t+1} int64 [m]); the predicted feature
        [1, d] of the last pair. Temporary rows are dropped first."""
        device = self.target.device
        state.tree_rows, state.tree_mask = 0, None
        out = features
        for f, t in zip(features.split(EXTEND_ROWS), tokens.split(EXTEND_ROWS), strict=True):
            n = t.numel()
            current = torch.cat([torch.tensor([state.last_token]), t[:-1].cpu()])
            positions = torch.arange(state.length, state.length + n, device=device)
            mask = torch.ones(n, n, dtype=torch.bool, device=device).tril_()
            x = self._inputs(f.float() / self.config.feature_scale, t, current)
            out = self._run(state, x, positions, positions, mask)
            state.length += n
            state.last_token = int(t[-1])
        return out[-1:]

    def expand(
        self, state: DrafterState, features: Tensor, tokens: Tensor, parents: Tensor
    ) -> Tensor:
        """Predicted features [w, d] below a frontier: parents' predicted features [w, d], drafted
        tokens and rows of their parents int64 [w] as in ``Frontier``."""
        n, start = tokens.numel(), state.tree_rows
        end = start + n
        tokens, parents = tokens.to(self.target.device), parents.to(self.target.device)
        mask, positions, known = _tree_buffers(state, end, self.target.device)
        known[start:end] = tokens
        if start == 0:
            positions[:end] = state.length
            current = torch.full((n,), state.last_token, device=mask.device)
            mask[:n, :n] = False
        else:
            positions[start:end] = positions[parents] + 1
            mask[start:end, :end] = mask[parents, :end]
            current = known[parents]
        rows = torch.arange(start, end, device=mask.device)
        mask[rows, rows] = True
        x = self._inputs(features, tokens, current)
        state.tree_rows = end
        return self._run(
            state, x, positions[start:end], positions[:end], mask[start:end, :end].contiguous()
        )

    def _inputs(self, features: Tensor, tokens: Tensor, current: Tensor) -> Tensor:
        given = torch.cat([tokens, current]) if self.config.use_current_token else tokens
        embedded = self.target.embed(given).float()
        return ops.drafter_input(
            features.to(embedded.device).float(),
            embedded,
            self.norms,
            self.fc,
            self.gate,
            self.config.eps,
        )

    def _run(
        self, state: DrafterState, x: Tensor, own: Tensor, positions: Tensor, mask: Tensor
    ) -> Tensor:
        c = self.config
        cos, sin = state.cos[own], state.sin[own]
        for weights, k, v in zip(self.layers, state.k, state.v, strict=True):
            x = ops.decoder_layer(
                x,
                weights,
                k,
                v,
                cos,
                sin,
                positions,
                mask,
                state.length,
                c.num_heads,
                c.num_kv_heads,
                c.head_dim,
                c.eps,
                c.attention_scale,
                c.window,
                c.activation,
            )
        return x


def load_eagle(files: DrafterFiles, target: Target) -> EagleDrafter:
    """The drafter that train-drafter made in ``files``, checked against ``target``."""
    config = DrafterConfig.from_values(files.config, f"drafter {files.folder}")
    check_fits(config, target)
    tensors = files.tensors()
    check_tensors(config, tensors, files.folder)
    drafter = EagleDrafter(config, tensors, target)
    drafter.name, drafter.folder = files.name, files.folder
    return drafter


def _tree_buffers(
    state: DrafterState, rows: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The round's mask, positions and tokens of temporary rows, with room for ``rows`` of them here
    and in the cache: wide and deep trees may have more than ``MAX_TREE_ROWS``."""
    mask, positions, tokens = state.tree_mask, state.tree_positions, state.tree_tokens
    if mask is None or positions is None or tokens is None:
        size = MAX_TREE_ROWS
        mask = torch.zeros(size, size, dtype=torch.bool, device=device)
        positions = torch.empty(size, dtype=torch.int64, device=device)
        tokens = torch.empty(size, dtype=torch.int64, device=device)
    if rows > mask.shape[0]:
        more = max(rows - mask.shape[0], mask.shape[0])
        mask = pad(mask, (0, more, 0, more))
        positions, tokens = pad(positions, (0, more)), pad(tokens, (0, more))
    if (missing := state.length + rows - state.k[0].shape[0]) > 0:
        more = max(missing, MAX_TREE_ROWS)
        state.k = [pad(cache, (0, 0, 0, 0, 0, more)) for cache in state.k]
        state.v = [pad(cache, (0, 0, 0, 0, 0, more)) for cache in state.v]
    state.tree_mask, state.tree_positions, state.tree_tokens = mask, positions, tokens
    return mask, positions, tokens


def check_fits(config: DrafterConfig, target: Target) -> None:
    """Refuse a drafter made for another target; says what differs."""
    for what, ours, theirs in (
        ("hidden size", config.hidden_size, target.hidden_size),
        ("vocabulary size", config.vocab_size, target.vocab_size),
        ("LM head hash", config.head_hash, target.head_hash()),
    ):
        if ours != theirs:
            raise DynaSpecError(
                f"the drafter was made for {config.target_name} and does not fit {target.name}: "
                f"{what} {ours} against {theirs}; "
                "train one for this model with dynaspec train-drafter, or use --drafter none"
            )


def check_tensors(config: DrafterConfig, tensors: dict[str, Tensor], folder: Path) -> None:
    """Every tensor that the config asks for, in its shape; nothing else is accepted."""
    expected = expected_shapes(config)
    for name, shape in expected.items():
        if name not in tensors:
            raise DynaSpecError(
                f"drafter {folder}: {WEIGHTS_FILE} lacks {name!r}; the file does not fit its "
                "config.json"
            )
        if tuple(tensors[name].shape) != shape:
            raise DynaSpecError(
                f"drafter {folder}: {name!r} has shape {list(tensors[name].shape)}, config.json "
                f"asks for {list(shape)}"
            )
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise DynaSpecError(f"drafter {folder}: unexpected tensor {unknown[0]!r} in {WEIGHTS_FILE}")


def expected_shapes(config: DrafterConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of every tensor in a drafter's safetensors file."""
    c, d = config, config.hidden_size
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "gate": (d,),
        "fc": (d, c.inputs),
        "feature_norm": (d,),
        "next_norm": (d,),
    }
    if c.use_current_token:
        shapes["current_norm"] = (d,)
    layer: dict[str, tuple[int, ...]] = {
        "input_norm": (d,),
        "qkv": (q + 2 * kv, d),
        "out": (d, q),
        "mlp_norm": (d,),
        "gate_up": (2 * c.intermediate_size, d),
        "down": (d, c.intermediate_size),
    }
    if c.has_qk_norm:
        layer |= {"q_norm": (c.head_dim,), "k_norm": (c.head_dim,)}
    if c.has_qkv_bias:
        layer["qkv_bias"] = (q + 2 * kv,)
    if c.has_post_norms:
        layer |= {"post_attention_norm": (d,), "post_mlp_norm": (d,)}
    for i in range(c.num_layers):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes

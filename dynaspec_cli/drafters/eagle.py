"""EAGLE-style drafter: the next feature from the last one and the new token (EAGLE-1/2, arXiv
2401.15077, 2406.16858).

It has a KV cache of its own over *pairs* (feature at t, token at t+1); pair t has position t.
Committed pairs carry the target's features; below them lie the temporary rows of the tree under
construction, which carry predicted ones and are dropped by the next ``read``. The LM head and the
final norm are the target's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli import ops
from dynaspec_cli.drafters.config import FORMAT, DrafterConfig
from dynaspec_cli.drafters.files import WEIGHTS_FILE, DrafterFiles
from dynaspec_cli.drafters.head import target_head
from dynaspec_cli.drafters.kind import DrafterKind, HeadFacts
from dynaspec_cli.drafters.pairs import EXTEND_ROWS, MAX_TREE_ROWS, PairCache, empty_caches
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.ops.layer import LAYER_WEIGHTS, LayerWeights, dense_layer
from dynaspec_cli.ops.pages import on_huge_pages
from dynaspec_cli.protocols import Committed, DraftRows, DraftTree, Frontier, Target
from dynaspec_cli.target.tokenizer import TextTokenizer

NORMS = ("input_norm", "q_norm", "k_norm", "post_attention_norm", "mlp_norm", "post_mlp_norm")


@dataclass
class DrafterState(PairCache):
    """Request state. ``cos``, ``sin`` [rows, head_dim] of all positions; ``last_token``: of the
    last committed pair; ``tree_tokens``: of the temporary rows; ``predicted`` [w, d]: the last
    pass's features."""

    cos: Tensor = field(default_factory=lambda: torch.empty(0))
    sin: Tensor = field(default_factory=lambda: torch.empty(0))
    last_token: int = 0
    tree_tokens: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
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

    def _layer(self, tensors: dict[str, Tensor], index: int) -> LayerWeights:
        weights = []
        for name in LAYER_WEIGHTS:
            tensor = tensors.get(f"layers.{index}.{name}", torch.empty(0))
            kind = torch.float32 if name in NORMS or name == "qkv_bias" else self.dtype
            weights.append(tensor.to(self.target.device, kind).contiguous())
        on_cpu = self.target.device.type == "cpu"
        return dense_layer(on_huge_pages(weights) if on_cpu else weights)

    @property
    def num_bytes(self) -> int:
        """Bytes of weights that a draft step reads."""
        return (
            sum(layer.num_bytes for layer in self.layers) + self.fc.numel() * self.fc.element_size()
        )

    def describe(self) -> dict[str, Any]:
        return {
            "drafter_kind": self.config.format,
            "drafter_layers": self.config.num_layers,
            "drafter_trained_tokens": self.config.trained_tokens,
        }

    def begin(self, prompt: Tensor, max_length: int) -> DrafterState:
        c, device = self.config, self.target.device
        sizes = (len(self.layers), max_length, c.num_kv_heads, c.head_dim)
        k, v = (empty_caches(*sizes, self.dtype, device) for _ in "kv")
        cos, sin = self._rotations(k[0].shape[0])
        return DrafterState(k, v, cos=cos, sin=sin, last_token=int(prompt[0]))

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
        state.rewind(prompt.numel() - 1)
        state.last_token = int(prompt[state.length])
        rows = max_length + MAX_TREE_ROWS
        if rows > state.cos.shape[0]:
            state.cos, state.sin = self._rotations(rows)
        return state.length + 1

    def read(self, state: DrafterState, features: Tensor, tokens: Tensor) -> Tensor:
        """Consume committed pairs (feature_t [m, d], token_{t+1} int64 [m]); the predicted feature
        [1, d] of the last pair. Temporary rows are dropped first."""
        state.tree_tokens = tokens[:0]
        out = features
        for f, t in zip(features.split(EXTEND_ROWS), tokens.split(EXTEND_ROWS), strict=True):
            rows = state.begin_read(t.numel())
            current = torch.cat([torch.tensor([state.last_token]), t[:-1].cpu()])
            x = self._inputs(self._given(f), t, current)
            out = self._run(state, x, rows.own, rows.positions, rows.mask)
            state.end_read(t.numel())
            state.last_token = int(t[-1])
        return out[-1:]

    def expand(
        self, state: DrafterState, features: Tensor, tokens: Tensor, parents: Tensor
    ) -> Tensor:
        """Predicted features [w, d] below a frontier: parents' predicted features [w, d], drafted
        tokens and rows of their parents int64 [w] as in ``Frontier``."""
        device = self.target.device
        tokens, parents = tokens.to(device), parents.to(device)
        if state.tree_tokens.numel():
            current = state.tree_tokens[parents]
        else:
            current = torch.full((tokens.numel(),), state.last_token, device=device)
        state.tree_tokens = torch.cat([state.tree_tokens.to(device), tokens])
        rows = state.begin_step(parents)
        if self.config.normed_features:
            features = self.target.norm(features)
        x = self._inputs(features, tokens, current)
        return self._run(state, x, rows.own, rows.positions, rows.mask)

    def _given(self, features: Tensor) -> Tensor:
        """The target's features [m, d] as the drafter reads them, float32."""
        if self.config.normed_features:
            return self.target.norm(features).float()
        return features.float() / self.config.feature_scale

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


def load_eagle(
    files: DrafterFiles, target: Target, tokenizer: TextTokenizer | None = None
) -> EagleDrafter:
    """The drafter that train-drafter made in ``files``, checked against ``target``."""
    config = DrafterConfig.from_values(files.config, f"drafter {files.folder}")
    check_fits(config, target)
    tensors = files.tensors()
    check_tensors(config, tensors, files.folder)
    drafter = EagleDrafter(config, tensors, target)
    drafter.name, drafter.folder = files.name, files.folder
    return drafter


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


def _inspect(files: DrafterFiles) -> HeadFacts:
    config = DrafterConfig.from_values(files.config, f"drafter {files.folder}")
    return HeadFacts(config.vocab_size, None)


KIND = DrafterKind(lambda files: files.config.get("format") == FORMAT, load_eagle, _inspect)

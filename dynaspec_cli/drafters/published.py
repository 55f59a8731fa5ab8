"""config.json of a published EAGLE head or speculators folder.

Every key is one of three: it changes the numbers and is used, or it is refused by name; it is known
to change nothing; or it is unknown, and a note says so. Where a key means different things to
different libraries, a note says which meaning was taken, and an option overrides it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynaspec_cli.drafters import options as opt
from dynaspec_cli.drafters.published_rope import Rope, read_rope
from dynaspec_cli.drafters.published_taps import Taps, read_taps
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.ops.reference import LayerShape
from dynaspec_cli.target.native_spec import ACTIVATIONS

EAGLE1 = "eagle-1"
EAGLE3 = "eagle-3"
SPECULATORS = "speculators-eagle-3"

FAMILIES = ("llama", "mistral", "mixtral", "qwen2", "qwen3")
"""Families of a head's layers whose norms, gates and rotation are Llama's. EAGLE calls the same
layer "mixtral" where its target is Mixtral."""

NEUTRAL = frozenset(
    (
        "architectures",
        "attention_bias",
        "attention_dropout",
        "auto_map",
        "bias",
        "bos_token_id",
        "chunk_size_feed_forward",
        "decoder_start_token_id",
        "draft_vocab_size",
        "dtype",
        "embed_requires_grad",
        "eos_token_id",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "is_decoder",
        "is_encoder_decoder",
        "label2id",
        "layer_norm_eps",
        "max_position_embeddings",
        "max_window_layers",
        "model_max_length",
        "num_experts_per_tok",
        "num_hidden_layers",
        "num_local_experts",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "qkv_bias",
        "return_dict",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "speculators_config",
        "speculators_model_type",
        "speculators_version",
        "target_vocab_size",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "unk_token_id",
        "use_bfloat16",
        "use_cache",
    )
)
"""Keys that change no number here: facts of the trainer, or what the tensors say themselves
(biases, layers, draft vocabulary)."""

REFUSED: Mapping[str, Any] = {
    "attention_multiplier": None,
    "attn_logit_softcapping": None,
    "embedding_multiplier": 1.0,
    "final_logit_softcapping": None,
    "layernorm_embedding": False,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "mlp_bias": False,
    "parallel_drafting": False,
    "partial_rotary_factor": 1.0,
    "query_pre_attn_scalar": None,
    "residual_multiplier": 1.0,
    "rope_interleave": False,
    "scale_depth": None,
    "scale_emb": 1.0,
}
"""Keys that change the numbers in ways that have no form here, with the value that changes none."""


@dataclass(frozen=True)
class HeadConfig:
    """``method``: ``EAGLE1`` or ``EAGLE3``; ``layout``: that, or ``SPECULATORS``. Sizes: V =
    ``vocab_size`` of the target, D = ``hidden_size`` of the drafter, d = ``target_hidden_size``.
    ``draft_vocab_size``: rows of its own head, where the config says so. ``layer``: of every layer.
    ``said_bias``: what the config says about the bias of fc (EAGLE-1), of q, k and v. ``notes``:
    what was chosen, for the user."""

    method: str
    layout: str
    vocab_size: int
    hidden_size: int
    target_hidden_size: int
    intermediate_size: int
    draft_vocab_size: int | None
    layer: LayerShape
    rope: Rope
    taps: Taps
    norm_before_residual: bool
    norm_before_fc: bool
    fc_norm: bool
    norm_output: bool
    tie: bool | None
    said_fc_bias: bool | None
    said_qkv_bias: bool | None
    notes: tuple[str, ...]


def read_head_config(
    config: Mapping[str, Any], options: Mapping[str, str], method: str, where: str
) -> HeadConfig:
    """Of the values of a config.json that lies at ``where``. Raises DynaSpecError for what is
    missing, contradictory or has no form here, UsageError for an option."""
    return _Reading(dict(config), options, method, where).head_config()


class _Reading:
    """One reading: which keys were used, and the notes on the way."""

    def __init__(
        self, config: dict[str, Any], options: Mapping[str, str], method: str, where: str
    ) -> None:
        self.options, self.method, self.where = options, method, where
        self.speculators = "speculators_model_type" in config
        self.outer = config
        self.layer: dict[str, Any] = config
        self.eagle: dict[str, Any] = {}
        if self.speculators:
            self.layer = self._object(config, "transformer_layer_config")
        elif config.get("eagle_config") is not None:
            self.eagle = self._object(config, "eagle_config")
        self.used = {"transformer_layer_config", "eagle_config"}
        self.notes: list[str] = []

    def head_config(self) -> HeadConfig:
        self._check_family()
        self._check_aux()
        hidden, heads = self._size("hidden_size"), self._size("num_attention_heads")
        shape = self._layer_shape(hidden, heads)
        own = self._optional_size(self.outer, "draft_vocab_size")
        width = self._optional_size(self.outer, "target_hidden_size")
        config = HeadConfig(
            method=self.method,
            layout=SPECULATORS if self.speculators else self.method,
            vocab_size=self._size("vocab_size"),
            hidden_size=hidden,
            target_hidden_size=width or hidden,
            intermediate_size=self._size("intermediate_size"),
            draft_vocab_size=own,
            layer=shape,
            rope=read_rope(self.layer, self.options, self.used, self.where),
            taps=read_taps(
                self.outer, self.eagle, self.options, self.used, self.speculators, self.where
            ),
            norm_before_residual=self._norm_before_residual(),
            norm_before_fc=self._flag("norm_before_fc"),
            fc_norm=self._flag("fc_norm") or self._flag("use_aux_norm"),
            norm_output=self._norm_output(),
            tie=self._tie(),
            said_fc_bias=self._maybe_flag(self.outer, "bias"),
            said_qkv_bias=self._qkv_bias(),
            notes=(),
        )
        if config.taps.note:
            self.notes.append(config.taps.note)
        self._check_leftovers()
        return replace(config, notes=tuple(self.notes))

    def _layer_shape(self, hidden: int, heads: int) -> LayerShape:
        kv_heads = self._optional_size(self.layer, "num_key_value_heads") or heads
        if heads % kv_heads:
            raise self._fault(
                f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
            )
        head_dim = self._optional_size(self.layer, "head_dim") or hidden // heads
        if head_dim % 2:
            raise self._fault(f"head_dim {head_dim} is no even number")
        self.used |= {"rms_norm_eps", "hidden_act", "hidden_activation"}
        eps = self.layer.get("rms_norm_eps", 1e-6)
        if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 <= eps < 1:
            raise self._fault(f"rms_norm_eps: expected a small number, got {eps!r}")
        activation = self.layer.get("hidden_act") or self.layer.get("hidden_activation") or "silu"
        if activation not in ACTIVATIONS:
            raise self._fault(
                f"hidden_act {activation!r} has no form here; known are {', '.join(ACTIVATIONS)}"
            )
        kind, scale = ACTIVATIONS[activation], head_dim**-0.5
        return LayerShape(heads, kv_heads, head_dim, float(eps), scale, self._window(), kind)

    def _window(self) -> int:
        """Libraries differ in whether they apply a drafter's window, so it is asked for."""
        self.used |= {"sliding_window", "layer_types", "use_sliding_window"}
        given = opt.as_number(self.options, "sliding_window", 0)
        if given is not None:
            return int(given)
        types = self.layer.get("layer_types") or []
        window = self.layer.get("sliding_window")
        if window and "sliding_attention" in types:
            raise self._fault(
                f"its layers are of type sliding_attention with a window of {window} tokens, which "
                f"not every library applies; give {opt.OPTION} sliding_window={window}, or =0 for "
                "none"
            )
        if set(types) - {"full_attention", "sliding_attention"}:
            raise self._fault(f"layer_types {sorted(set(types))} have no form here")
        return 0

    def _check_family(self) -> None:
        self.used.add("model_type")
        family = self.options.get("model_type", self.layer.get("model_type"))
        if family is not None and family not in FAMILIES:
            raise self._fault(
                f"its layers are of an unknown family, {family!r}; known are "
                f"{', '.join(FAMILIES)}; where its layers are like one of these, give "
                f"{opt.OPTION} model_type=NAME"
            )

    def _check_aux(self) -> None:
        self.used.add("use_aux_hidden_state")
        for place in (self.eagle, self.outer):
            if place.get("use_aux_hidden_state") is False:
                raise self._fault(
                    "use_aux_hidden_state is false: a head that reads the last hidden state alone "
                    "has no form here"
                )

    def _norm_before_residual(self) -> bool:
        given = opt.as_bool(self.options, "norm_before_residual")
        said = self._maybe_flag(self.outer, "norm_before_residual")
        if given is not None:
            return given
        if said is None and self.speculators:
            raise self._fault(
                "it does not say norm_before_residual, which the speculators library then takes "
                "for false and vLLM for true; give "
                f"{opt.OPTION} norm_before_residual=true or =false"
            )
        return bool(said)

    def _norm_output(self) -> bool:
        given = opt.as_bool(self.options, "norm_output")
        said = self._flag("norm_output")
        if given is not None:
            return given
        if said and not self.speculators:
            self.notes.append(
                "norm_output: taken as vLLM and SGLang do, the normed state is fed back; SpecForge "
                f"means the norm before lm_head alone ({opt.OPTION} norm_output=false)"
            )
        return said

    def _tie(self) -> bool | None:
        given = opt.as_bool(self.options, "tie_word_embeddings")
        self.used.add("tie_word_embeddings")
        if given is not None:
            return given
        return self._maybe_flag(self.outer, "tie_word_embeddings") or None

    def _qkv_bias(self) -> bool | None:
        said = [self._maybe_flag(self.layer, key) for key in ("qkv_bias", "attention_bias")]
        known = [value for value in said if value is not None]
        return any(known) if known else None

    def _check_leftovers(self) -> None:
        """Keys that nothing read."""
        unknown = []
        for place, prefix in (
            (self.outer, ""),
            (self.layer if self.speculators else {}, "transformer_layer_config."),
            (self.eagle, "eagle_config."),
        ):
            if place.get("quantization_config"):
                raise self._fault(f"{prefix}quantization_config: quantised heads are not read")
            for key, value in place.items():
                if key in REFUSED and value not in (None, REFUSED[key]):
                    raise self._fault(f"{prefix}{key} {value!r} has no form here")
                known = key in self.used or key in NEUTRAL or key in REFUSED
                if not known and not key.startswith("_") and value is not None:
                    unknown.append(prefix + key)
        if unknown:
            self.notes.append(f"config.json: keys that are not known here: {', '.join(unknown)}")

    def _size(self, key: str) -> int:
        found = self._optional_size(self.layer, key)
        if found is None:
            raise self._fault(f"it lacks {key}")
        return found

    def _optional_size(self, place: Mapping[str, Any], key: str) -> int | None:
        self.used.add(key)
        value = place.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self._fault(f"{key}: expected a number of at least 1, got {value!r}")
        return value

    def _flag(self, key: str) -> bool:
        """Of the outer object, or of eagle_config."""
        said = [self._maybe_flag(place, key) for place in (self.outer, self.eagle)]
        return any(said)

    def _maybe_flag(self, place: Mapping[str, Any], key: str) -> bool | None:
        self.used.add(key)
        value = place.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._fault(f"{key}: expected true or false, got {value!r}")
        return value

    def _object(self, place: Mapping[str, Any], key: str) -> dict[str, Any]:
        value = place.get(key)
        if not isinstance(value, dict):
            raise self._fault(f"{key}: expected an object, got {value!r}")
        return value

    def _fault(self, text: str) -> DynaSpecError:
        return DynaSpecError(f"{self.where}: config.json: {text}")

"""The drafter of ``dynaspec train-drafter --for vllm``, computed with vLLM's layers.

    f_t    = the target's hidden state after its final norm, or the f of the draft step before
    h      = gate * f_t + fc [norm(f_t); norm(emb(token_{t+1}))]
    h      = decoder layers, with a norm before attention and MLP and, for some targets, after
    f_{t+1} = the target's final norm of h, which its LM head reads

Every norm is x / rms(x) times the factor that the file holds (of Gemma's too).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.activation import GeluAndMul, SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.llama_eagle import EagleLlamaForCausalLM
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix

from dynaspec_vllm.draft import ShortlistDraft

STACKED = {
    ".q_proj": (".qkv_proj", "q"),
    ".k_proj": (".qkv_proj", "k"),
    ".v_proj": (".qkv_proj", "v"),
    ".gate_proj": (".gate_up_proj", 0),
    ".up_proj": (".gate_up_proj", 1),
}


class TrainedAttention(nn.Module):
    def __init__(self, config: Any, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        ranks = get_tensor_model_parallel_world_size()
        heads = config.num_attention_heads // ranks
        kv_heads = max(1, config.num_key_value_heads // ranks)
        self.head_dim = config.head_dim
        self.sizes = [heads * self.head_dim, kv_heads * self.head_dim, kv_heads * self.head_dim]
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            self.head_dim,
            config.num_attention_heads,
            config.num_key_value_heads,
            bias=config.qkv_bias,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            config.num_attention_heads * self.head_dim,
            config.hidden_size,
            bias=False,
            prefix=f"{prefix}.o_proj",
        )
        self.rotary_emb = get_rope(
            self.head_dim,
            max_position=config.max_position_embeddings,
            rope_parameters=config.rope_parameters,
        )
        self.attn = Attention(
            heads,
            self.head_dim,
            config.attention_scale,
            num_kv_heads=kv_heads,
            cache_config=vllm_config.cache_config,
            prefix=f"{prefix}.attn",
        )
        self.norms = config.qk_norm
        if self.norms:
            self.q_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def forward(self, positions: Tensor, x: Tensor) -> Tensor:
        qkv, _ = self.qkv_proj(x)
        q, k, v = qkv.split(self.sizes, dim=-1)
        if self.norms:
            q = self.q_norm(q.unflatten(-1, (-1, self.head_dim))).flatten(-2)
            k = self.k_norm(k.unflatten(-1, (-1, self.head_dim))).flatten(-2)
        q, k = self.rotary_emb(positions, q, k)
        out, _ = self.o_proj(self.attn(q, k, v))
        return out


class TrainedMLP(nn.Module):
    def __init__(self, config: Any, prefix: str) -> None:
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(
            config.hidden_size,
            [config.intermediate_size] * 2,
            bias=False,
            prefix=f"{prefix}.gate_up_proj",
        )
        self.down_proj = RowParallelLinear(
            config.intermediate_size, config.hidden_size, bias=False, prefix=f"{prefix}.down_proj"
        )
        gelu = config.hidden_act == "gelu_pytorch_tanh"
        self.activation = GeluAndMul(approximate="tanh") if gelu else SiluAndMul()

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.gate_up_proj(x)
        x, _ = self.down_proj(self.activation(x))
        return x


class TrainedLayer(nn.Module):
    def __init__(self, config: Any, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()

        def norm() -> nn.Module:
            return RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

        def after() -> nn.Module:
            return norm() if config.post_norms else nn.Identity()

        self.self_attn = TrainedAttention(config, vllm_config, f"{prefix}.self_attn")
        self.mlp = TrainedMLP(config, f"{prefix}.mlp")
        self.input_norm, self.mlp_norm = norm(), norm()
        self.post_attention_norm, self.post_mlp_norm = after(), after()

    def forward(self, positions: Tensor, x: Tensor) -> Tensor:
        x = x + self.post_attention_norm(self.self_attn(positions, self.input_norm(x)))
        return x + self.post_mlp_norm(self.mlp(self.mlp_norm(x)))


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": -1, "hidden_states": 0})
class TrainedModel(nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", first_layer: int = 0) -> None:
        super().__init__()
        speculative = vllm_config.speculative_config
        assert speculative is not None
        config = speculative.draft_model_config.hf_config
        d, eps = config.hidden_size, config.rms_norm_eps
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, d, prefix=maybe_prefix(prefix, "embed_tokens")
        )
        self.gate = nn.Parameter(torch.empty(d), requires_grad=False)
        self.fc = ReplicatedLinear(
            2 * d,
            d,
            bias=False,
            params_dtype=vllm_config.model_config.dtype,
            prefix=maybe_prefix(prefix, "fc"),
            return_bias=False,
        )
        self.feature_norm, self.next_norm = RMSNorm(d, eps=eps), RMSNorm(d, eps=eps)
        self.layers = nn.ModuleList(
            TrainedLayer(config, vllm_config, maybe_prefix(prefix, f"layers.{first_layer + i}"))
            for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(d, eps=eps)

    def forward(
        self, input_ids: Tensor, positions: Tensor, hidden_states: Tensor
    ) -> tuple[Tensor, Tensor]:
        token = self.next_norm(self.embed_tokens(input_ids))
        x = torch.cat([self.feature_norm(hidden_states), token], dim=-1)
        x = hidden_states * self.gate + self.fc(x)
        for layer in self.layers:
            x = layer(positions, x)
        x = self.norm(x)
        return x, x

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        mapper = WeightsMapper(orig_to_new_stacked=STACKED)
        return AutoWeightsLoader(self).load_weights(weights, mapper=mapper)


class TrainedDrafter(EagleLlamaForCausalLM):
    """Run by vLLM as any EAGLE head, whose methods it inherits, around a model of its own."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        nn.Module.__init__(self)
        speculative = vllm_config.speculative_config
        assert speculative is not None
        self.config = speculative.draft_model_config.hf_config
        # Numbers of attention layers go on where the target's end.
        first = vllm_config.model_config.get_num_layers(vllm_config.parallel_config)
        self.model = TrainedModel(
            vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"), first_layer=first
        )
        self.logits_processor = LogitsProcessor(self.config.vocab_size)


class EagleDynaSpecTrainedForCausalLM(ShortlistDraft, TrainedDrafter):
    form = "dynaspec-eagle-1"

"""Targets and draft folders of random weights, small enough to run anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dynaspec_vllm.spec import KEY, PREFIX

VOCAB, WIDTH, HEAD, LAYERS = 1000, 128, 32, 2
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
TARGET_FACTS = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS}


def random(*shape: int, seed: int, scale: float = 0.08) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def layer(prefix: str, seed: int, reads: int = WIDTH) -> dict[str, Tensor]:
    """A Llama decoder layer."""
    q, kv, inner = 4 * HEAD, 2 * HEAD, LLAMA["intermediate_size"]
    shapes = {
        "self_attn.q_proj": (q, reads),
        "self_attn.k_proj": (kv, reads),
        "self_attn.v_proj": (kv, reads),
        "self_attn.o_proj": (WIDTH, q),
        "mlp.gate_proj": (inner, WIDTH),
        "mlp.up_proj": (inner, WIDTH),
        "mlp.down_proj": (WIDTH, inner),
    }
    found = {
        f"{prefix}{name}.weight": random(*shape, seed=seed + i)
        for i, (name, shape) in enumerate(shapes.items())
    }
    for name in ("input_layernorm", "post_attention_layernorm"):
        found[f"{prefix}{name}.weight"] = torch.ones(WIDTH)
    return found


def target_tensors() -> dict[str, Tensor]:
    """A Llama that does not repeat itself at once, so that its drafts are worth something."""
    found = {
        "model.embed_tokens.weight": random(VOCAB, WIDTH, seed=1, scale=1.0),
        "model.norm.weight": torch.ones(WIDTH),
        "lm_head.weight": random(VOCAB, WIDTH, seed=2, scale=0.3),
    }
    for i in range(LAYERS):
        found |= layer(f"model.layers.{i}.", seed=100 * (i + 1))
    return found


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: t.contiguous() for name, t in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def target(folder: Path) -> Path:
    config = {**LLAMA, "architectures": ["LlamaForCausalLM"], "num_hidden_layers": LAYERS}
    return write(folder, config, target_tensors())


def shortlist(
    form: str,
    head: Tensor,
    core: int = 64,
    recent: int = 64,
    clusters: int = 20,
    taken: int = 4,
    **facts: Any,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """("dynaspec_vllm" of config.json, tensors): the first rows as core, the others in clusters in
    order of a random direction, with their means as router."""
    rows, width = head.shape
    rest = torch.arange(core, rows)
    rest = rest[(head[rest] @ random(width, seed=9)).argsort()]
    size = -(-rest.numel() // clusters) if clusters else 0
    spec = {
        "schema": 1,
        "form": form,
        "vocab_size": VOCAB,
        "rows": rows,
        "target_name": "tiny",
        "target": TARGET_FACTS,
        "core": core,
        "recent": recent,
        "clusters": clusters,
        "cluster_size": size,
        "taken": taken,
        **facts,
    }
    tensors = {"core": torch.arange(core)}
    if taken:
        padded = torch.full((clusters * size,), -1)
        padded[: rest.numel()] = rest
        tensors["clusters"] = padded.view(clusters, size)
        means = [head[c[c >= 0]].mean(0) for c in tensors["clusters"]]
        tensors |= {"router": torch.stack(means), "router_bias": torch.zeros(clusters)}
    return spec, {PREFIX + name: tensor for name, tensor in tensors.items()}


def language_model(folder: Path, **options: Any) -> Path:
    """The target itself as a drafter."""
    tensors = target_tensors()
    options.setdefault("target", {})
    spec, mine = shortlist("language-model", tensors["lm_head.weight"], **options)
    config = {**LLAMA, "architectures": ["DynaSpecLlamaForCausalLM"], KEY: spec}
    return write(folder, {**config, "num_hidden_layers": LAYERS}, tensors | mine)


def eagle1(folder: Path, fc_bias: bool = False, **options: Any) -> Path:
    spec, mine = shortlist("eagle-1", target_tensors()["lm_head.weight"], **options)
    tensors = layer("layers.0.", seed=500)
    del tensors["layers.0.input_layernorm.weight"]
    tensors["fc.weight"] = random(WIDTH, 2 * WIDTH, seed=600)
    if fc_bias:
        tensors["fc.bias"] = random(WIDTH, seed=601)
    config = {**LLAMA, "architectures": ["EagleDynaSpecForCausalLM"], KEY: spec}
    return write(folder, {**config, "num_hidden_layers": 1, "fc_bias": fc_bias}, tensors | mine)


def eagle3(folder: Path, rows: int = 300, **options: Any) -> Path:
    head = random(rows, WIDTH, seed=700, scale=0.3)
    options = {"clusters": 10, "core": 40, **options}
    spec, mine = shortlist("eagle-3", head, **options)
    tensors = {
        name.replace("layers.0.", "midlayer."): tensor
        for name, tensor in layer("layers.0.", seed=500, reads=2 * WIDTH).items()
    }
    tensors |= {
        "midlayer.hidden_norm.weight": torch.ones(WIDTH),
        "norm.weight": torch.ones(WIDTH),
        "fc.weight": random(WIDTH, 2 * WIDTH, seed=600),
        "lm_head.weight": head,
        "d2t": torch.arange(rows) * 3 - torch.arange(rows),
        "embed_tokens.weight": target_tensors()["model.embed_tokens.weight"],
    }
    config = {
        **LLAMA,
        "architectures": ["Eagle3DynaSpecForCausalLM"],
        "num_hidden_layers": 1,
        "draft_vocab_size": rows,
        "eagle_aux_hidden_state_layer_ids": [0, 1],
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1]},
        KEY: spec,
    }
    return write(folder, config, tensors | mine)


def trained(folder: Path, norms: bool = False, **options: Any) -> Path:
    """In the form of ``train-drafter --for vllm``; ``norms``: with all that a Gemma has."""
    spec, mine = shortlist("dynaspec-eagle-1", target_tensors()["lm_head.weight"], **options)
    old = layer("layers.0.", seed=500)
    tensors = {
        name.replace("input_layernorm", "input_norm").replace(
            "post_attention_layernorm", "mlp_norm"
        ): t
        for name, t in old.items()
    }
    tensors |= {
        "gate": torch.full((WIDTH,), 0.7),
        "fc.weight": random(WIDTH, 2 * WIDTH, seed=600),
        **{f"{name}.weight": torch.ones(WIDTH) for name in ("feature_norm", "next_norm", "norm")},
    }
    if norms:
        tensors |= {
            **{f"layers.0.self_attn.{n}_norm.weight": torch.ones(HEAD) for n in "qk"},
            **{f"layers.0.post_{n}_norm.weight": torch.ones(WIDTH) for n in ("attention", "mlp")},
        }
    for i, name in enumerate(sorted(tensors)):
        if "norm" in name:
            tensors[name] = 1 + random(*tensors[name].shape, seed=800 + i, scale=0.2)
    config = {
        **LLAMA,
        "architectures": ["EagleDynaSpecTrainedForCausalLM"],
        "num_hidden_layers": 1,
        "attention_scale": HEAD**-0.5,
        "qkv_bias": False,
        "qk_norm": norms,
        "post_norms": norms,
        "hidden_act": "gelu_pytorch_tanh" if norms else "silu",
        KEY: spec,
    }
    return write(folder, config, tensors | mine)

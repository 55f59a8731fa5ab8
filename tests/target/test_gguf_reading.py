"""GGUF files against the models of ``transformers`` that they were written from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_writing import Arrays, quantised, write_gguf
from tiny_families import COMMON, VOCAB

from dynaspec_cli.checkpoints.fingerprint import head_hash
from dynaspec_cli.target.gguf_native import open_native
from dynaspec_cli.target.native_target import NativeTarget, load_native

IDS = torch.randint(3, VOCAB, (40,), generator=torch.Generator().manual_seed(0))


def load(path: Path, dtype: torch.dtype = torch.float32) -> NativeTarget:
    found = open_native(path)
    assert found is not None
    return load_native(found.weights, "tiny", found.spec, dtype, found.weights.head_hash())


def logits(target: Any) -> torch.Tensor:
    result: torch.Tensor = target.prefill(target.begin(64), IDS).logits()
    return result


def expected(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(input_ids=IDS[None], use_cache=False).logits[0]
    return result


def agrees(path: Path, model: Any) -> None:
    torch.testing.assert_close(logits(load(path)), expected(model), rtol=1e-4, atol=1e-4)


def window_keys(prefix: str, period: int | list[bool]) -> dict[str, Any]:
    return {
        f"{prefix}.attention.sliding_window": 8,
        f"{prefix}.attention.sliding_window_pattern": period,
    }


EXTRA: dict[str, dict[str, Any]] = {
    "gemma3": {
        **window_keys("gemma3", [True, False, True]),
        "gemma3.final_logit_softcapping": 4.0,
        "gemma3.attention.scale": 24**-0.5,
    },
    "gemma2": {
        "gemma2.attention.sliding_window": 8,
        "gemma2.attn_logit_softcapping": 2.0,
        "gemma2.final_logit_softcapping": 4.0,
        "gemma2.attention.scale": 24**-0.5,
    },
    "mistral": {"llama.attention.sliding_window": 8},
    "llama": {},
}


@pytest.mark.parametrize("family", EXTRA)
def test_families(family: str, hf_model: Callable[[str], Any], tmp_path: Path) -> None:
    def edit(keys: dict[str, Any], arrays: Arrays) -> None:
        keys.update(EXTRA[family])

    model = hf_model(family)
    path = write_gguf(tmp_path / "m.gguf", model, edit)
    agrees(path, model)
    head = model.get_output_embeddings().weight
    assert load(path).head_hash() == head_hash(head)


def made(config: Any) -> Any:
    """A tiny model whose norms and biases matter."""
    from tiny_families import randomise
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(config).eval()
        randomise(model)
    return model


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_qwen(family: str, tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen3Config

    common = {**COMMON, "num_hidden_layers": 2, "use_sliding_window": False}
    if family == "qwen2":
        config: Any = Qwen2Config(**{**common, "head_dim": 8}, tie_word_embeddings=True)
    else:
        config = Qwen3Config(**common, tie_word_embeddings=False)
    model = made(config)
    agrees(write_gguf(tmp_path / "m.gguf", model), model)


def llama(rope: dict[str, Any] | None = None, **more: Any) -> Any:
    from transformers import LlamaConfig

    common = {**COMMON, "num_hidden_layers": 2, "tie_word_embeddings": True, **more}
    if rope is not None:
        common["rope_parameters"] = {"rope_theta": 10000.0, **rope}
    return made(LlamaConfig(**common))


def test_biases_of_a_llama(tmp_path: Path) -> None:
    model = llama(attention_bias=True)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.bias)

    def edit(keys: dict[str, Any], arrays: Arrays) -> None:
        for name in [n for n in arrays if n.endswith("attn_output.bias")]:
            del arrays[name]

    agrees(write_gguf(tmp_path / "m.gguf", model, edit), model)


SCALINGS = {
    "linear": (
        {"rope_type": "linear", "factor": 4.0},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "old linear": ({"rope_type": "linear", "factor": 2.0}, {"rope.scale_linear": 2.0}),
    "yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
        },
    ),
    "yarn, its own betas": (
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "attention_factor": 1.5 * (0.1 * np.log(4.0) + 1),
        },
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": 1.5,
            "rope.scaling.yarn_beta_fast": 16.0,
            "rope.scaling.yarn_beta_slow": 2.0,
        },
    ),
    "none": ({"rope_type": "default"}, {"rope.scaling.type": "none"}),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_rope_scaling(name: str, tmp_path: Path) -> None:
    rope, keys_of_it = SCALINGS[name]
    model = llama({k: float(v) if k != "rope_type" else v for k, v in rope.items()})

    def edit(keys: dict[str, Any], arrays: Arrays) -> None:
        keys.update({f"llama.{k}": v for k, v in keys_of_it.items()})

    agrees(write_gguf(tmp_path / "m.gguf", model, edit), model)


def test_rope_factors_of_a_tensor(hf_model: Callable[[str], Any], tmp_path: Path) -> None:
    """Llama 3.1's scaling stands in the tensor alone."""
    model = hf_model("llama3")
    scaled = model.model.rotary_emb.inv_freq.numpy()
    plain = 1.0 / 10000.0 ** (np.arange(0, 16, 2, dtype=np.float32) / 16)

    def edit(keys: dict[str, Any], arrays: Arrays) -> None:
        arrays["rope_freqs.weight"] = plain / scaled

    agrees(write_gguf(tmp_path / "m.gguf", model, edit), model)


def test_a_stored_head_goes_before_the_embeddings(tmp_path: Path) -> None:
    model = llama()
    stored = np.random.default_rng(0).standard_normal((VOCAB, 32)).astype(np.float32)

    def edit(keys: dict[str, Any], arrays: Arrays) -> None:
        arrays["output.weight"] = stored

    target = load(write_gguf(tmp_path / "m.gguf", model, edit))
    assert torch.equal(target.head_weight().data, torch.from_numpy(stored))
    assert target.head_hash() == head_hash(torch.from_numpy(stored))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16"])
def test_blocks_are_dequantised_and_turned(kind: str, tmp_path: Path) -> None:
    """Quantised rows of q and k are whole: they are put in our order as they are."""
    import gguf

    model = llama()
    blocks: dict[str, tuple[str, np.ndarray]] = {}

    def edit(keys: dict[str, Any], arrays: Arrays) -> None:
        for name in ("blk.0.attn_q.weight", "blk.1.attn_k.weight", "token_embd.weight"):
            arrays[name] = blocks[name] = quantised(arrays[name], kind)  # type: ignore[assignment]

    target = load(write_gguf(tmp_path / "m.gguf", model, edit))
    kept = {
        name: torch.from_numpy(
            gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind]).astype(np.float32)
        )
        for name, (_, rows) in blocks.items()
    }
    with torch.no_grad():
        layers = model.model.layers
        turned = kept["blk.0.attn_q.weight"].view(4, 8, 2, 32).transpose(1, 2).reshape(64, 32)
        layers[0].self_attn.q_proj.weight.copy_(turned)
        turned = kept["blk.1.attn_k.weight"].view(2, 8, 2, 32).transpose(1, 2).reshape(32, 32)
        layers[1].self_attn.k_proj.weight.copy_(turned)
        model.model.embed_tokens.weight.copy_(kept["token_embd.weight"])
    torch.testing.assert_close(logits(target), expected(model), rtol=1e-4, atol=1e-4)


def test_raw_blocks_are_the_files_own(tmp_path: Path) -> None:
    model = llama()
    wanted: dict[str, np.ndarray] = {}

    def edit(keys: dict[str, Any], arrays: Arrays) -> None:
        for name in ("blk.0.attn_q.weight", "blk.0.attn_v.weight"):
            arrays[name] = quantised(arrays[name], "Q8_0")  # type: ignore[assignment]
            wanted[name] = arrays[name][1]  # type: ignore[index]

    found = open_native(write_gguf(tmp_path / "m.gguf", model, edit))
    assert found is not None
    v = found.weights.blocks("model.layers.0.self_attn.v_proj.weight")
    assert (v.block_type, v.shape, v.raw.shape) == ("Q8_0", (32, 32), (32, 34))
    assert np.array_equal(v.raw, wanted["blk.0.attn_v.weight"])
    assert not v.raw.flags.writeable
    q = found.weights.blocks("model.layers.0.self_attn.q_proj.weight")
    order = np.arange(64).reshape(4, 8, 2).transpose(0, 2, 1).reshape(-1)
    assert np.array_equal(q.raw, wanted["blk.0.attn_q.weight"][order])


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_split_file_from_any_shard(shard: int, tmp_path: Path) -> None:
    model = llama()
    whole = logits(load(write_gguf(tmp_path / "whole.gguf", model)))
    write_gguf(tmp_path / "m.gguf", model, split_max_tensors=9)
    files = sorted(tmp_path.glob("m-*-of-*.gguf"))
    assert len(files) == 3
    assert torch.equal(logits(load(files[shard])), whole)


def test_pieces_that_cut_a_tensor(tiny_gguf: Path, tmp_path: Path) -> None:
    from dynaspec_cli.gguf_files.model import open_gguf

    data = tiny_gguf.read_bytes()
    whole = open_gguf((tiny_gguf,)).tensors
    cuts = [0, len(data) - 41_003, len(data) - 20_002, len(data) - 20_001, len(data)]
    paths = [tmp_path / str(i) for i in range(len(cuts) - 1)]
    for path, lo, hi in zip(paths, cuts, cuts[1:], strict=False):
        path.write_bytes(data[lo:hi])
    cut = open_gguf(paths).tensors
    assert list(cut) == list(whole)
    rng = np.random.default_rng(0)
    crossing = 0
    for name in whole:
        ours, wanted = cut[name], whole[name].raw
        assert np.array_equal(ours.raw, wanted), name
        crossing += len(ours.parts) > 1
        rows = rng.integers(0, len(wanted), 7)
        assert np.array_equal(ours.take(rows).raw, wanted[rows]), name
        assert np.array_equal(ours.floats(slice(1, None)), whole[name].floats(slice(1, None)))
        cut.forget(name)  # gives memory back, no bytes
        assert np.array_equal(ours.raw, wanted), name
    assert crossing


def test_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    model = llama()
    path = write_gguf(tmp_path / "m.gguf", model)
    embeddings = model.get_input_embeddings().weight.detach()
    assert torch.equal(load(path, torch.bfloat16).head_weight().data, embeddings.bfloat16())


@pytest.mark.parametrize("name", ["gemma3", "gemma2", "mistral", "factors", "biases"])
def test_conversions_are_models_of_transformers(
    name: str, hf_model: Callable[[str], Any], tmp_path: Path, cache_dir: Path
) -> None:
    """What CUDA, training and the peers load."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dynaspec_cli.target.events import ignore_progress
    from dynaspec_cli.target.gguf_cache import converted
    from dynaspec_cli.target.load import stored_head_hash
    from dynaspec_cli.target.tokenizer import load_tokenizer

    def edit(keys: dict[str, Any], arrays: Arrays) -> None:
        keys.update(EXTRA.get(name, {}))
        if name == "factors":
            scaled = model.model.rotary_emb.inv_freq.numpy()
            plain = 1.0 / 10000.0 ** (np.arange(0, 16, 2, dtype=np.float32) / 16)
            arrays["rope_freqs.weight"] = plain / scaled
        for bias in [n for n in arrays if n.endswith("attn_output.bias")]:
            del arrays[bias]

    if name == "biases":
        model = llama(attention_bias=True)
        for layer in model.model.layers:
            torch.nn.init.zeros_(layer.self_attn.o_proj.bias)
    else:
        model = hf_model("llama3" if name == "factors" else name)
    path = write_gguf(tmp_path / "m.gguf", model, edit)
    folder = converted(path, "tiny", torch.float32, ignore_progress)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.testing.assert_close(expected(again), expected(model), rtol=1e-4, atol=1e-4)
    assert stored_head_hash(folder) == load(path).head_hash()
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    assert theirs("abcab")["input_ids"] == ours.encode("abcab")
    assert (ours.eos_ids, ours.bos_id) == ((1,), 0)

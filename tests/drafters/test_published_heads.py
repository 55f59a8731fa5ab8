"""What has no vectors of a reference: checked against an independent forward (plain_heads.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_heads import PlainHead, head_shapes, random_tensors
from safetensors.torch import save_file
from torch import Tensor

from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.drafters.registry import load_folder
from dynaspec_cli.protocols import Committed, Frontier
from dynaspec_cli.target.load import load_target

CPU = torch.device("cpu")
LAYERS, WIDTH, VOCAB = 8, 32, 90
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 24}


def make_target(folder: Path, family: str) -> Any:
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config

    kinds: dict[str, Any] = {
        "llama": LlamaConfig,
        "qwen3": Qwen3Config,
        "gemma3": Gemma3TextConfig,
    }
    config = kinds[family](
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        initializer_range=0.3,
        tie_word_embeddings=family == "gemma3",
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return load_target(folder, family, torch.float32, CPU)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Any] = {}

    def make(family: str) -> Any:
        if family not in made:
            made[family] = make_target(tmp_path_factory.mktemp(family), family)
        return made[family]

    return make


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    return folder


def seen_states(target: Any, drafter: Any, prompt: Tensor) -> tuple[Any, Tensor]:
    output = target.prefill(target.begin(64, drafter.taps), prompt)
    return output, (target.norm(output.features) if output.taps is None else output.taps)


def close(ours: Tensor, theirs: Tensor) -> None:
    """As the vectors of golden_cases.py; rows grow in a head that has no norms."""
    scale = max(1.0, float(theirs.abs().max()) / 10)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4 * scale)


def check(target: Any, drafter: Any, plain: PlainHead) -> None:
    """A prompt in two parts, then a tree with siblings of unequal depth, row by row."""
    prompt = torch.tensor([5, 17, 40, 41, 3, 88, 12])
    following = torch.tensor([17, 40, 41, 3, 88, 12, 60])
    output, seen = seen_states(target, drafter, prompt)
    state = drafter.begin(prompt, 64)
    drafter.extend(state, Committed(output, torch.arange(4), following[:4]))
    rows = drafter.extend(state, Committed(output, torch.arange(4, 7), following[4:]))
    n = prompt.numel()
    states, positions = plain.states(seen), torch.arange(n)
    x = plain.rows(states, following, positions, torch.ones(n, n, dtype=torch.bool).tril())
    weight, vocab = drafter.head.weight.float(), drafter.head.vocab
    ours = rows.hidden @ weight.t()
    theirs = plain.logits(x[-1:])
    close(ours, theirs)
    assert vocab is None or vocab.ids.numel() == theirs.shape[1]
    # (tokens, parents as in Frontier, source) of three frontiers
    drafted = [([7, 9], [-1, -1], [0, 0]), ([30, 31, 32], [0, 1, 1], [0, 1, 1]), ([50], [3], [1])]
    tokens, above, depth = list(following), [], []
    states, rows_seen = states, torch.ones(n, n, dtype=torch.bool).tril()
    fed: list[Tensor] = []
    for level, (ids, parents, source) in enumerate(drafted):
        given = Frontier(torch.tensor(ids), torch.tensor(parents), torch.tensor(source))
        hidden = drafter.step(state, given).hidden
        for token, parent in zip(ids, parents, strict=True):
            tokens.append(torch.tensor(token))
            above.append(parent)
            depth.append(level)
            previous = x[-1] if parent < 0 else fed[parent]
            states = torch.cat([states, previous[None]])
            size = rows_seen.shape[0]
            grown = torch.zeros(size + 1, size + 1, dtype=torch.bool)
            grown[:size, :size] = rows_seen
            grown[size, :n] = True
            if parent >= 0:
                grown[size] |= grown[n + parent]
            grown[size, size] = True
            rows_seen = grown
        at = torch.cat([positions, n + torch.tensor(depth)])
        all_rows = plain.rows(states, torch.stack(tokens), at, rows_seen)
        for i in range(len(ids)):
            fed.append(all_rows[rows_seen.shape[0] - len(ids) + i])
        ours = hidden @ weight.t()
        theirs = plain.logits(all_rows[-len(ids) :])
        close(ours, theirs)


def eagle1(**extra: Any) -> dict[str, Any]:
    return {"hidden_size": WIDTH, "vocab_size": VOCAB, "rms_norm_eps": 1e-5, **HEADS, **extra}


def tables(target: Any) -> tuple[Tensor, Tensor]:
    return target.embedding_rows(torch.arange(VOCAB)), target.head_weight().float()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("layers", [1, 2])
def test_eagle1_with_qkv_biases_and_layers(
    targets: Any, tmp_path: Path, family: str, layers: int
) -> None:
    target = targets(family)
    shapes = head_shapes(False, WIDTH, WIDTH, VOCAB, layers) | {"fc.bias": (WIDTH,)}
    for i in range(layers):
        shapes |= {
            f"layers.{i}.self_attn.{p}_proj.bias": (size,)
            for p, size in zip("qkv", (32, 16, 16), strict=True)
        }
    config, tensors = eagle1(qkv_bias=True, num_hidden_layers=36), random_tensors(shapes)
    drafter = load_folder(DrafterFiles(write(tmp_path / "d", config, tensors), "d"), target)
    check(target, drafter, PlainHead(config, tensors, *tables(target)))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("layers", [1, 3])
def test_eagle3_narrow(targets: Any, tmp_path: Path, family: str, layers: int) -> None:
    """A drafter half as wide as its target, with embeddings and a vocabulary of its own."""
    target, width, rows = targets(family), 16, 40
    shapes = head_shapes(True, width, WIDTH, rows, layers) | {"embed_tokens.weight": (VOCAB, width)}
    tensors = random_tensors(shapes)
    ids = torch.arange(rows) * 2 + 3
    tensors |= {"d2t": ids - torch.arange(rows), "t2d": torch.zeros(VOCAB, dtype=torch.bool)}
    tensors["t2d"][ids] = True
    config = eagle1(hidden_size=width, target_hidden_size=WIDTH, draft_vocab_size=rows)
    drafter = load_folder(DrafterFiles(write(tmp_path / "d", config, tensors), "d"), target)
    assert drafter.head.vocab.ids.equal(ids)
    check(
        target,
        drafter,
        PlainHead(config, tensors, tensors["embed_tokens.weight"], tensors["lm_head.weight"]),
    )


ROPES = {
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
    "linear": {"type": "linear", "factor": 3.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
}


def scaled(kind: str, parameters: dict[str, Any], theta: float, dim: int) -> tuple[Tensor, float]:
    """Frequencies of the published formulas (Llama 3.1's code; YaRN, arXiv 2309.00071)."""
    import math

    inv = theta ** -(torch.arange(0, dim, 2).float() / dim)
    factor = parameters["factor"]
    if kind == "linear":
        return inv / factor, 1.0
    original = parameters["original_max_position_embeddings"]
    if kind == "llama3":
        low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
        out = []
        for f in inv.tolist():
            turns = original * f / (2 * math.pi)
            smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
            out.append((1 - smooth) * f / factor + smooth * f)
        return torch.tensor(out), 1.0

    def at(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low_end, high_end = max(math.floor(at(32)), 0), min(math.ceil(at(1)), dim - 1)
    ramp = ((torch.arange(dim // 2) - low_end) / max(high_end - low_end, 0.001)).clamp(0, 1)
    return inv / factor * ramp + inv * (1 - ramp), 0.1 * math.log(factor) + 1


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters", "nested"])
@pytest.mark.parametrize("kind", ROPES)
def test_scaled_rope_in_the_drafter(targets: Any, tmp_path: Path, kind: str, spelling: str) -> None:
    target, theta = targets("qwen3"), 300.0
    tensors = random_tensors(head_shapes(True, WIDTH, WIDTH, VOCAB))
    config = eagle1(draft_vocab_size=None, max_position_embeddings=64)
    if spelling == "rope_scaling":
        config |= {"rope_scaling": ROPES[kind], "rope_theta": theta}
    elif spelling == "nested":
        config["rope_parameters"] = {"full_attention": {**ROPES[kind], "rope_theta": theta}}
    else:
        config["rope_parameters"] = {**ROPES[kind], "rope_theta": theta}
    drafter = load_folder(DrafterFiles(write(tmp_path / "d", config, tensors), "d"), target)
    embedding, _ = tables(target)
    turned = scaled(kind, ROPES[kind], theta, 8)
    check(
        target, drafter, PlainHead(config, tensors, embedding, tensors["lm_head.weight"], *turned)
    )


def test_own_embedding_biases_and_norms_of_a_speculators_head(targets: Any, tmp_path: Path) -> None:
    """Qwen3 layer, biases of q, k, v and o, and a window, which must be asked for."""
    target = targets("qwen3")
    shapes = head_shapes(True, WIDTH, WIDTH, VOCAB) | {
        "embed_tokens.weight": (VOCAB, WIDTH),
        "midlayer.self_attn.q_norm.weight": (8,),
        "midlayer.self_attn.k_norm.weight": (8,),
    }
    for p, size in zip("qkvo", (32, 16, 16, WIDTH), strict=True):
        shapes[f"midlayer.self_attn.{p}_proj.bias"] = (size,)
    tensors = random_tensors(shapes)
    layer = eagle1(
        model_type="qwen3",
        attention_bias=True,
        layer_types=["sliding_attention"],
        sliding_window=4,
        rope_theta=5000.0,
    )
    config = {
        "speculators_model_type": "eagle3",
        "norm_before_residual": True,
        "draft_vocab_size": VOCAB,
        "transformer_layer_config": layer,
    }
    folder = write(
        tmp_path / "d", config, {k.replace("midlayer", "layers.0"): v for k, v in tensors.items()}
    )
    for window in (4, 0):
        files = DrafterFiles(folder, "d", {"sliding_window": str(window)})
        plain = PlainHead(
            config,
            tensors,
            tensors["embed_tokens.weight"],
            tensors["lm_head.weight"],
            window=window,
        )
        check(target, load_folder(files, target), plain)


@pytest.mark.parametrize("head", ["tied to own embeddings", "tied to the target's", "the target's"])
def test_eagle3_without_lm_head(targets: Any, tmp_path: Path, head: str) -> None:
    target = targets("llama")
    shapes = head_shapes(True, WIDTH, WIDTH, VOCAB)
    del shapes["lm_head.weight"]
    if "own" in head:
        shapes["embed_tokens.weight"] = (VOCAB, WIDTH)
    tensors = random_tensors(shapes)
    config = eagle1(tie_word_embeddings="tied" in head)
    drafter = load_folder(DrafterFiles(write(tmp_path / "d", config, tensors), "d"), target)
    embedding, targets_head = tables(target)
    embedding = tensors.get("embed_tokens.weight", embedding)
    assert drafter.head.own == ("tied" in head)
    plain = PlainHead(config, tensors, embedding, embedding if "tied" in head else targets_head)
    check(target, drafter, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_dtypes_are_close(targets: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    """The head is cast to the target's dtype, whatever its file holds."""
    exact = targets("llama")
    from transformers import AutoModelForCausalLM  # noqa: F401 - loads the folder's classes

    folder = tmp_path / "t"
    make_target(folder, "llama")
    target = load_target(folder, "llama", dtype, CPU)
    tensors = random_tensors(head_shapes(True, WIDTH, WIDTH, VOCAB))
    stored = {name: t.half() for name, t in tensors.items()}
    path = write(tmp_path / "d", eagle1(), stored)
    rows = []
    for one in (exact, target):
        drafter = load_folder(DrafterFiles(path, "d"), one)
        prompt = torch.tensor([5, 17, 40, 41])
        output, _ = seen_states(one, drafter, prompt)
        state = drafter.begin(prompt, 32)
        committed = Committed(output, torch.arange(4), torch.tensor([17, 40, 41, 2]))
        rows.append(drafter.extend(state, committed).hidden)
        step = Frontier(torch.tensor([9]), torch.tensor([-1]), torch.tensor([0]))
        rows.append(drafter.step(state, step).hidden)
    for a, b in ((rows[0], rows[2]), (rows[1], rows[3])):
        assert float((a - b).norm() / a.norm()) < 0.06


def test_embeddings_like_the_targets_are_shared(targets: Any, tmp_path: Path) -> None:
    target = targets("llama")
    tensors = random_tensors(head_shapes(False, WIDTH, WIDTH, VOCAB))
    for table, own in ((tables(target)[0].clone(), False), (torch.randn(VOCAB, WIDTH), True)):
        tensors["embed_tokens.weight"] = table
        drafter = load_folder(DrafterFiles(write(tmp_path / "d", eagle1(), tensors), "d"), target)
        assert (drafter.own_embedding is not None) == own
        assert drafter.describe()["drafter_embeddings"] == ("own" if own else "the target's")

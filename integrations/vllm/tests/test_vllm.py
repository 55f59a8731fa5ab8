"""In vLLM itself, on a CPU: what it writes with a draft folder is what it writes without, and bad
folders are refused. Random weights of a few thousand parameters; every engine is a process."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import folders
import pytest
import torch
from engine import run, speculative
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.vllm

LONG = 40
"""Tokens that all prompts begin with: a block of the cache, and some."""


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return folders.target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def prompts():
    draw = random.Random(0)

    def ids(count: int) -> list[int]:
        return [draw.randrange(3, folders.VOCAB) for _ in range(count)]

    common = ids(LONG)
    return [common + ids(draw.randrange(5, 60)) for _ in range(8)]


@pytest.fixture(scope="module")
def alone(target, prompts, tmp_path_factory):
    """Ids without speculation."""
    found = run(tmp_path_factory.mktemp("alone"), model=str(target), prompts=prompts)
    assert "error" not in found, found["error"][-3000:]
    assert found["tau"] is None
    return found["ids"]


CASES = [
    ("language_model", {}, {}),
    ("language_model", {"taken": 0}, {}),
    ("language_model", {}, {"tensor_parallel_size": 2}),
    ("language_model", {}, {"enable_prefix_caching": True, "rounds": 2}),
    ("eagle1", {}, {}),
    ("eagle1", {"fc_bias": True}, {"enable_prefix_caching": True, "rounds": 2}),
    ("trained", {}, {}),
    ("trained", {"norms": True}, {"tensor_parallel_size": 2}),
    ("eagle3", {}, {}),
    ("eagle3", {}, {"tensor_parallel_size": 2, "enable_prefix_caching": True, "rounds": 2}),
]


@pytest.mark.parametrize(("kind", "options", "engine"), CASES, ids=lambda v: str(v) or "-")
def test_greedy_ids_are_those_without_speculation(
    kind, options, engine, target, prompts, alone, tmp_path
):
    folder = getattr(folders, kind)(tmp_path / "draft", **options)
    found = run(
        tmp_path,
        model=str(target),
        prompts=prompts,
        speculative_config=speculative(kind, folder),
        **engine,
    )
    assert "error" not in found, found["error"][-3000:]
    assert found["drafts"] > 0
    assert found["ids"] == alone
    if engine.get("enable_prefix_caching"):
        assert found["cached"] > 0  # EAGLE gives a block up, so how many hangs on the method
    if kind == "language_model":
        assert found["tau"] > 1.2  # it drafts for itself, from a part of its own head


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, 1e-6)


def plain_trained(t: dict[str, torch.Tensor], embedding, ids, features) -> torch.Tensor:
    """models/trained.py for one sequence from its beginning, with all norms, written out."""
    token = rms(embedding[ids], t["next_norm.weight"])
    x = torch.cat([rms(features, t["feature_norm.weight"]), token], 1)
    x = features * t["gate"] + x @ t["fc.weight"].t()
    p, a = "layers.0.", "layers.0.self_attn."
    h = rms(x, t[p + "input_norm.weight"])
    length, size = len(ids), folders.HEAD
    angle = torch.arange(length)[:, None] * 10000.0 ** -(torch.arange(0, size, 2) / size)
    angle = torch.cat([angle, angle], 1)[:, None]

    def heads(name: str, norm: bool) -> torch.Tensor:
        y = (h @ t[f"{a}{name}_proj.weight"].t()).view(length, -1, size)
        if not norm:
            return y
        y = rms(y, t[f"{a}{name}_norm.weight"])
        turned = torch.cat([-y[..., size // 2 :], y[..., : size // 2]], -1)
        return y * angle.cos() + turned * angle.sin()

    q, k, v = heads("q", True), heads("k", True), heads("v", False)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = torch.einsum("ihd,jhd->hij", q, k) * size**-0.5
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    out = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).flatten(1)
    x = x + rms(out @ t[a + "o_proj.weight"].t(), t[p + "post_attention_norm.weight"])
    h = rms(x, t[p + "mlp_norm.weight"])
    gate, up = (h @ t[f"{p}mlp.{n}_proj.weight"].t() for n in ("gate", "up"))
    m = torch.nn.functional.gelu(gate, approximate="tanh") * up
    x = x + rms(m @ t[p + "mlp.down_proj.weight"].t(), t[p + "post_mlp_norm.weight"])
    return rms(x, t["norm.weight"])


def test_the_trained_form_is_its_formula(target, prompts, tmp_path):
    folder = folders.trained(tmp_path / "draft", norms=True)
    found = run(
        tmp_path,
        model=str(target),
        prompts=prompts[:3],
        new_tokens=4,
        record=str(tmp_path / "pass.pt"),
        speculative_config=speculative("trained", folder),
    )
    assert "error" not in found, found["error"][-3000:]
    seen = torch.load(tmp_path / "pass.pt")
    tensors = load_file(folder / "model.safetensors")
    embedding = folders.target_tensors()["model.embed_tokens.weight"]
    starts = (seen["positions"] == 0).nonzero()[:, 0].tolist()
    lengths = [len(prompt) for prompt in prompts[:3]]
    for start, length in zip(starts, lengths, strict=False):
        rows = slice(start, start + length)
        ids = seen["input_ids"][rows].long()
        assert ids[:-1].tolist() == prompts[starts.index(start)][1:]
        plain = plain_trained(tensors, embedding, ids, seen["hidden_states"][rows])
        torch.testing.assert_close(seen["out"][rows], plain, rtol=1e-3, atol=1e-3)


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["dynaspec_vllm"] |= values
    path.write_text(json.dumps(config))


def change_tensors(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda folder: change_config(folder, target={"num_hidden_layers": 32}),
            "made for tiny (num_hidden_layers 32), but the target has num_hidden_layers 2",
        ),
        (
            lambda folder: change_tensors(folder, lambda t: t.pop("layers.0.mlp.up_proj.weight")),
            "its weights lack 'model.layers",
        ),
        (
            lambda folder: change_tensors(
                folder, lambda t: t["shortlist.core"].copy_(torch.arange(64) + 990)
            ),
            "which is outside the 1000 rows",
        ),
    ],
    ids=["another target", "a missing tensor", "ids out of range"],
)
def test_a_bad_folder_is_refused(spoil, says, target, prompts, tmp_path):
    folder = folders.eagle1(tmp_path / "draft")
    spoil(folder)
    found = run(
        tmp_path,
        model=str(target),
        prompts=prompts,
        speculative_config=speculative("eagle1", folder),
    )
    assert says in found.get("error", "")


def test_drafts_are_the_likeliest_tokens_alone(target, prompts, tmp_path):
    """Drawn ones would come from the whole vocabulary."""
    config = speculative(
        "eagle1", folders.eagle1(tmp_path / "draft"), draft_sample_method="probabilistic"
    )
    found = run(tmp_path, model=str(target), prompts=prompts, speculative_config=config)
    assert '"draft_sample_method" other than greedy' in found.get("error", "")


def test_the_option_is_asked_for(target, prompts, tmp_path):
    config = speculative(
        "eagle1", folders.eagle1(tmp_path / "draft"), use_local_argmax_reduction=None
    )
    found = run(tmp_path, model=str(target), prompts=prompts, speculative_config=config)
    assert 'without "use_local_argmax_reduction": true' in found.get("error", "")

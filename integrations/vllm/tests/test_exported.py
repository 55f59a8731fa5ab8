"""Folders that ``dynaspec export-vllm`` writes, in vLLM: heads in their authors' form, and a
language model. DYNASPEC_COMMAND names the command ("dynaspec", or a path to it), which lives in an
environment of its own."""

from __future__ import annotations

import json
import os
import random
import shlex
import subprocess

import folders
import pytest
import torch
from engine import run, speculative
from safetensors.torch import load_file

COMMAND = os.environ.get("DYNASPEC_COMMAND")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(COMMAND is None, reason="DYNASPEC_COMMAND is not set"),
]

PLAIN = {key: folders.LLAMA[key] for key in ("hidden_size", "vocab_size", "rope_theta")} | {
    key: folders.LLAMA[key]
    for key in ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
}
"""What the config.json of an author's head says."""


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """With a tokenizer, which a language model as a drafter must share."""
    from tokenizers import Tokenizer, models

    folder = folders.target(tmp_path_factory.mktemp("target"))
    words = models.WordLevel({f"w{i}": i for i in range(folders.VOCAB)}, unk_token="w0")
    Tokenizer(words).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def prompts():
    draw = random.Random(3)
    return [[draw.randrange(3, folders.VOCAB) for _ in range(9 + 4 * i)] for i in range(8)]


@pytest.fixture(scope="module")
def alone(target, prompts, tmp_path_factory):
    found = run(tmp_path_factory.mktemp("alone"), model=str(target), prompts=prompts)
    assert "error" not in found, found["error"][-3000:]
    return found["ids"]


def published(kind, folder, tmp_path, **options):
    """A head's folder as authors write it: without the shortlist and what vLLM wants to know."""
    made = getattr(folders, kind)(tmp_path / "made", **options)
    tensors = load_file(made / "model.safetensors")
    tensors = {k: t for k, t in tensors.items() if not k.startswith(folders.PREFIX)}
    config = dict(PLAIN)
    if kind == "eagle3":
        rows = tensors["lm_head.weight"].shape[0]
        config["draft_vocab_size"] = rows
        tensors["t2d"] = torch.zeros(folders.VOCAB, dtype=torch.bool)
        tensors["t2d"][torch.arange(rows) + tensors["d2t"]] = True
    return folders.write(folder, config, tensors)


@pytest.mark.parametrize(
    ("kind", "options", "engine"),
    [
        ("eagle1", {}, {}),
        ("eagle1", {"fc_bias": True}, {"tensor_parallel_size": 2}),
        ("eagle3", {}, {}),
        ("eagle3", {}, {"tensor_parallel_size": 2}),
        ("language_model", {}, {}),
    ],
    ids=lambda value: str(value) or "-",
)
def test_ids_are_those_without_speculation(kind, options, engine, target, prompts, alone, tmp_path):
    source = target
    if kind != "language_model":
        source = published(kind, tmp_path / "head", tmp_path, **options)
    ranked = tmp_path / "ranked.json"
    ranked.write_text(json.dumps(random.Random(1).sample(range(folders.VOCAB), 500)))
    out = tmp_path / "draft"
    given = ["--model", target, "--drafter", source, "--shortlist", ranked, "--out", out]
    given += ["--core", 48, "--recent", 64, "--clusters", 4, "--cluster-size", 16, "--json"]
    if kind == "eagle3":
        given += ["--drafter-option", "taps=0,1"]
    assert COMMAND is not None
    done = subprocess.run(
        [*shlex.split(COMMAND), "export-vllm", *map(str, given)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["rows_scored"] < report["rows"]
    assert report["speculative_config"] == speculative(kind, out)
    spec = json.loads((out / "config.json").read_text())[folders.KEY]
    assert spec["rows"] == (
        300 if kind == "eagle3" else folders.VOCAB
    )  # its own, where it has some
    found = run(
        tmp_path,
        model=str(target),
        prompts=prompts,
        speculative_config=report["speculative_config"],
        **engine,
    )
    assert "error" not in found, found["error"][-3000:]
    assert found["drafts"] > 0
    assert found["ids"] == alone
    if kind == "language_model":
        assert found["tau"] > 1.2  # the target itself, by a part of its head

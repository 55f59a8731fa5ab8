"""A target over two gloo processes generates what it does in one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from dynaspec_cli.target.load import load

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "drafters"))
from plain_heads import bundle_for, head_shapes, random_tensors  # noqa: E402
from test_published_heads import WIDTH, eagle1, write  # noqa: E402

from .cases import DRAFTERS, SAMPLINGS, SHORTLISTS, TREES, everything  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(
    tiny_model_dir: Path, tiny_drafter_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    target, _ = load(str(tiny_model_dir), "float32", "cpu")
    bundle = tmp_path_factory.mktemp("bundle") / "b"
    bundle_for(target).save_pretrained(bundle)
    tensors = random_tensors(head_shapes(False, WIDTH, WIDTH, target.vocab_size, 1))
    published = tmp_path_factory.mktemp("published") / "head"
    write(published, eagle1(vocab_size=target.vocab_size), tensors)
    return {
        "published": str(published),
        "trained": str(tiny_drafter_dir),
        "language-model": str(tiny_model_dir),
        "bundle": str(bundle),
    }


def run(start: Callable[..., Any], model: Path, folders: dict[str, str], out: Path) -> Any:
    script = HERE / "in_two_processes.py"
    process = start(2, script, model, json.dumps(folders), out)
    said = process.communicate(timeout=500)
    assert process.returncode == 0, said
    return json.loads(out.read_text())


def test_what_one_process_gives_two_give(
    torchrun: Callable[..., subprocess.Popen[str]],
    tiny_model_dir: Path,
    folders: dict[str, str],
    tmp_path: Path,
) -> None:
    target, tokenizer = load(str(tiny_model_dir), "float32", "cpu", 1)
    one = json.loads(everything(target, tokenizer, folders))
    two = run(torchrun, tiny_model_dir, folders, tmp_path / "out.json")
    for name, values in one["numbers"].items():
        assert torch.allclose(
            torch.tensor(values), torch.tensor(two["numbers"][name]), atol=2e-4
        ), name
    assert two["turns"] == one["turns"]
    assert two["tokens"] == one["tokens"]
    cases = {tuple(case.split()) for case in one["tokens"]}
    assert {case[0] for case in cases} == set(DRAFTERS)
    for shortlist, tree, i in product(SHORTLISTS, TREES, range(len(SAMPLINGS))):
        assert ("trained", shortlist, tree, str(i)) in cases

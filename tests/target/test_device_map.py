"""``--device-map auto``: accelerate places the layers; the tokens are those of one device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from dynaspec_cli.config import GenerationConfig, SamplingConfig, ShortlistConfig, TreeConfig
from dynaspec_cli.drafters.load import load_drafter
from dynaspec_cli.drafters.lookup.drafter import LookupDrafter
from dynaspec_cli.engine.api import Engine
from dynaspec_cli.engine.events import DoneEvent
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.main import cli
from dynaspec_cli.target import device_map
from dynaspec_cli.target.load import choose_device, load

sys.path.insert(0, str(Path(__file__).parents[1] / "drafters"))
from plain_heads import head_shapes, random_tensors
from test_published_heads import WIDTH, eagle1, write


def answers(target: Any, tokenizer: Any, drafter: str, lookup: bool) -> list[Any]:
    """Token ids, greedy and sampled, and of a second turn with kept caches."""
    found = load_drafter(drafter, target, tokenizer)
    engine = Engine(target, tokenizer, found, lookup=LookupDrafter() if lookup else None)
    results: list[Any] = []
    for temperature in (0.0, 0.9):
        talk, ids = engine.conversation(), engine.encode("The capital of France is")
        for turn in range(2):
            config = GenerationConfig(
                12,
                sampling=SamplingConfig(temperature=temperature, seed=2 + turn),
                tree=TreeConfig("dyspec", size=6, depth=3),
                shortlist=ShortlistConfig("nanospec", 64),
            )
            *_, done = talk.generate(ids, config)
            assert isinstance(done, DoneEvent)
            results.append(done.result.token_ids)
            ids = [*ids, *done.result.token_ids, 17]
    return results


@pytest.mark.parametrize(
    "kind", ["none", "lookup", "trained", "published", "language-model", "trained+lookup"]
)
def test_tokens_are_those_of_one_device(
    kind: str, tiny_model_dir: Path, tiny_drafter_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    one, tokenizer = load(str(tiny_model_dir), "float32", "cpu")
    name, _, beside = kind.partition("+")
    if name == "published":
        tensors = random_tensors(head_shapes(False, WIDTH, WIDTH, one.vocab_size, 1))
        name = str(write(tmp_path / "head", eagle1(vocab_size=one.vocab_size), tensors))
    folders = {"trained": tiny_drafter_dir, "language-model": tiny_model_dir}
    name = str(folders.get(name, name))
    target, _ = load(str(tiny_model_dir), "float32", "map")
    assert target.kernels.startswith("transformers (device map: ")
    assert answers(target, tokenizer, name, bool(beside)) == answers(
        one, tokenizer, name, bool(beside)
    )


def test_compared_with_plain_decoding(tiny_model_dir: Path, tiny_drafter_dir: Path) -> None:
    pytest.importorskip("accelerate")
    target, tokenizer = load(str(tiny_model_dir), "float32", "map")
    engine = Engine(target, tokenizer, load_drafter(str(tiny_drafter_dir), target, tokenizer))
    config = GenerationConfig(
        16, tree=TreeConfig("dyspec", size=6), shortlist=ShortlistConfig("nanospec", 64)
    )
    result = engine.complete("The capital of France is", config)
    comparison = engine.compare("The capital of France is", result, config).comparison
    assert comparison is not None
    assert comparison.identical


def test_what_cannot_be_is_said(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--dtype packed: not with --device-map auto"):
        load(str(tiny_model_dir), "packed", "map")
    with pytest.raises(UsageError, match="--device-map: for generate"):
        choose_device("map")
    found = CliRunner().invoke(cli, ["generate", "--device-map", "auto", "--device", "cpu", "a"])
    assert found.exit_code == 2
    assert "expected no --device beside it, got cpu" in found.output

    class Offloaded:
        def named_parameters(self) -> Any:
            return [("a.weight", torch.empty(1)), ("b.weight", torch.empty(1, device="meta"))]

    monkeypatch.setattr(device_map, "pretrained", lambda *a, **k: Offloaded())
    monkeypatch.setattr(device_map, "find_spec", lambda name: object())
    with pytest.raises(DynaSpecError, match=r"no room for 1 of the tensors of .*\(b\.weight\)"):
        load(str(tiny_model_dir), "float32", "map")
    monkeypatch.setattr(device_map, "find_spec", lambda name: None)
    with pytest.raises(DynaSpecError, match="--device-map auto needs accelerate; pip install"):
        load(str(tiny_model_dir), "float32", "map")

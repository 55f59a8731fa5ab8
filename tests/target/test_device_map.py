"""``--device-map auto``: accelerate places the layers; the tokens are those of one device."""

from __future__ import annotations

import json
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
from every_setting import every_setting
from plain_heads import bundle_for, head_shapes, random_tensors
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


@pytest.mark.slow
def test_every_shortlist_and_tree(
    tiny_model_dir: Path, tiny_drafter_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    one, tokenizer = load(str(tiny_model_dir), "float32", "cpu")
    spread, _ = load(str(tiny_model_dir), "float32", "map")
    bundle_for(one).save_pretrained(tmp_path / "bundle")
    engines = [
        Engine(target, tokenizer, load_drafter(str(tiny_drafter_dir), target, tokenizer))
        for target in (one, spread)
    ]
    for config in every_setting(tmp_path / "bundle"):
        own, found = (engine.complete("The capital of", config) for engine in engines)
        assert found.token_ids == own.token_ids


@pytest.mark.parametrize("way", ["chat", "many prompts"])
def test_commands(
    way: str, chat_model_dir: Path, tiny_drafter_dir: Path, tmp_path: Path, program: Any
) -> None:
    pytest.importorskip("accelerate")
    (tmp_path / "in.jsonl").write_text('{"id": 1, "prompt": "ab ab"}\n', encoding="utf-8")

    def said(*options: Any) -> Any:
        model = ("--model", chat_model_dir, "--dtype", "float32", "--drafter", tiny_drafter_dir)
        sampling = ("--max-new-tokens", 8, "--temperature", 0.7, "--seed", 3, "--tree-size", 6)
        common = (*model, *sampling, *options)
        if way == "chat":
            found = program("chat", *common, "--json", stdin="Hello!\nAnd then?\n")
            assert found.returncode == 0, found.stderr
            return json.loads(found.stdout)["messages"]
        out = tmp_path / f"{len(options)}.jsonl"
        found = program("generate", *common, "--prompt-file", tmp_path / "in.jsonl", "--out", out)
        assert found.returncode == 0, found.stderr
        return json.loads(out.read_text(encoding="utf-8"))["token_ids"]

    assert said("--device-map", "auto") == said()


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

"""What doctor counts beside the model, what it says where the head is not known yet, and on a GPU
without kernels of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.text import Text

from dynaspec_cli import ops
from dynaspec_cli.config import MOST_NODES
from dynaspec_cli.doctor import memory, needs, system
from dynaspec_cli.doctor.drafter import inspect_drafter
from dynaspec_cli.doctor.memory import ModelSizes
from dynaspec_cli.doctor.needs import Needs
from dynaspec_cli.drafters import load
from dynaspec_cli.ops import extension
from dynaspec_cli.ops.extension import Extension
from dynaspec_cli.target.resolve import ModelSource
from dynaspec_cli.ui import diagnosis

SHIPPED, CONFIG = load._packaged()[0]
SIZES = ModelSizes(10**6, CONFIG.vocab_size, CONFIG.hidden_size, kv_width=64, num_layers=2)
HEAD_BYTES = CONFIG.vocab_size * CONFIG.hidden_size * 2
DRAFTER_BYTES = (SHIPPED / "model.safetensors").stat().st_size


@dataclass(frozen=True)
class FakeHead:
    hash: str | None
    vocab_size: int = CONFIG.vocab_size
    hidden_size: int = CONFIG.hidden_size

    def head_hash(self) -> str | None:
        return self.hash


OURS, OTHER, UNKNOWN = FakeHead(CONFIG.head_hash), FakeHead("another"), FakeHead(None)


def of_head(head: FakeHead, drafter: str = "auto", available: int = 10**12) -> dict:
    return Needs("bfloat16", 100, available, drafter).of_head(SIZES, head)


def counted(found: dict) -> tuple[int, int]:
    parts = found["memory"]["parts_bytes"]
    return parts["drafter"], parts["shortlist_head"]


def test_the_shipped_drafter_and_its_reordered_head_are_counted_by_the_heads_hash() -> None:
    found = of_head(OURS)
    assert counted(found) == (DRAFTER_BYTES, HEAD_BYTES)
    assert found["drafter"]["folder"] == str(SHIPPED)
    assert "note" not in found["memory"]
    assert of_head(OTHER)["drafter"] is None
    assert counted(of_head(OTHER)) == (0, 0)
    assert counted(of_head(OURS, "none")) == (0, 0)


def test_without_a_bundle_the_shortlist_copies_no_head(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(77))
    assert counted(of_head(OTHER, str(tmp_path))) == (77, 0)
    assert counted(of_head(OURS, str(tmp_path))) == (77, HEAD_BYTES)


def test_a_shortlist_that_finds_its_rows_copies_no_head() -> None:
    found = Needs("bfloat16", 100, 10**12, "auto", gathers=True).of_head(SIZES, OURS)
    assert counted(found) == (DRAFTER_BYTES, 0)


def test_a_language_model_has_a_cache_of_its_own(tiny_model_dir: Path) -> None:
    """Two layers of 2 KV heads of width 8, 100 tokens of context and a tree, in bf16; and its
    tokenizer, of 400 tokens."""
    shapes = memory.safetensors_shapes(tiny_model_dir).values()
    weights = sum(torch.Size(shape).numel() for shape in shapes)
    rows = 100 + MOST_NODES + 1
    expected = 2 * (weights + 2 * 2 * 2 * 8 * rows) + 400 * memory.TOKEN_BYTES
    for value in (str(tiny_model_dir), f"{tiny_model_dir}+lookup"):
        assert counted(of_head(OTHER, value)) == (expected, 0)
    assert counted(of_head(OTHER, "lookup")) == (0, 0)
    found = inspect_drafter(tiny_model_dir)
    assert (found["format"], found["head_rows"]) == ("language-model", 400)
    assert found["can_raise_coverage"] is True


@pytest.mark.parametrize(("missing", "fits"), [(0, True), (1, None), (DRAFTER_BYTES, None)])
def test_of_a_head_without_a_hash_the_answer_holds_either_way(missing: int, fits: object) -> None:
    most = of_head(UNKNOWN)["memory"]["total_bytes"]
    assert most == of_head(OURS)["memory"]["total_bytes"]
    found = of_head(UNKNOWN, available=most - missing)
    assert found["memory"]["fits"] is fits
    assert "shipped drafter" in found["memory"]["note"]
    assert "drafter" not in found
    too_much = of_head(UNKNOWN, available=most - DRAFTER_BYTES - HEAD_BYTES - 1)
    assert too_much["memory"]["fits"] is False


def test_of_a_gguf_file_that_tells_no_shape_only_a_no_is_certain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.gguf").write_bytes(bytes(9))
    monkeypatch.setattr(memory, "gguf_sizes", lambda gguf: 500)
    for available, fits in ((999, False), (10**9, None), (None, None)):
        found = needs.Needs("bfloat16", 10, available, "auto").of_gguf(
            ModelSource("x", gguf=tmp_path / "x.gguf")
        )
        assert (found["fits"], found["total_bytes"], found["gguf_bytes"]) == (fits, None, 9)
        assert found["parts_bytes"] == {"weights": 1000}
        assert "nothing but the weights" in found["note"]
        shown = dict(diagnosis._memory_rows(found))
        assert ("weights alone" in shown) is (fits is False)
        assert "in all" not in shown


def fake_extension(monkeypatch: pytest.MonkeyPatch, has_cuda: bool) -> None:
    module = SimpleNamespace(
        has_cuda=lambda: has_cuda, torch_version=lambda: "9.9", available_isas=lambda: "scalar"
    )
    for place in (extension, system):
        monkeypatch.setattr(place, "EXTENSION", Extension(module, "cpu-avx2", "CPU kernels, ..."))


def test_kernels_are_those_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda:0")
    fake_extension(monkeypatch, has_cuda=False)
    facts = system.system_facts(cuda)
    assert (facts["backend"], facts["fallback"]) == ("torch", True)
    assert facts["backend_reason"].startswith("the extension has no kernels for cuda; to build")
    assert system.system_facts(torch.device("cpu"))["backend"] == "cpu-avx2"
    assert ops.backend_reason() == "CPU kernels, ..."
    fake_extension(monkeypatch, has_cuda=True)
    facts = system.system_facts(cuda)
    assert (facts["backend"], facts["fallback"]) == ("cuda", False)
    assert facts["backend_reason"] == "CUDA kernels, built with torch 9.9"


def test_the_install_hint_keeps_its_brackets() -> None:
    facts = system.system_facts(torch.device("cpu")) | {"device": "cpu", "dtype": "float32"}
    facts["default_model"] = {"name": "m", "installed": False}
    facts["cpu"] = "a [bold] one"
    shown = {name: Text.from_markup(value).plain for name, value in diagnosis._system_rows(facts)}
    assert (
        shown["default model"]
        == "m: not installed (pip install --no-build-isolation '.[demo]' in a checkout of "
        "dynaspec)"
    )
    assert "a [bold] one" in shown["CPU"]

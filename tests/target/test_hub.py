"""Hub names with a quantisation: the right file of a repository, without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.resolve import resolve_model


class FakeHub:
    """A repository ``org/m-GGUF`` of empty files."""

    def __init__(self, root: Path, files: Sequence[str]) -> None:
        self.root = root
        self.listing = list(files)
        self.asked: list[list[str]] = []

    def files(self, name: str) -> list[str]:
        assert name == "org/m-GGUF"
        return self.listing

    def folder(self, name: str) -> Path:
        return self.download(name, [path for path in self.listing if path.endswith(".json")])

    def download(self, name: str, files: Sequence[str]) -> Path:
        self.asked.append(list(files))
        for path in self.listing:
            if path in files:
                (self.root / path).parent.mkdir(parents=True, exist_ok=True)
                (self.root / path).write_bytes(b"GGUF")
        return self.root


FILES = (
    "README.md",
    "m-Q4_K_M.gguf",
    "m-Q4_K_S.gguf",
    "m.q8_0.gguf",
    "m-IQ4_XS.gguf",
    "m-bf16.gguf",
    "mmproj-m-f16.gguf",
    "Q6_K/m-Q6_K-00001-of-00002.gguf",
    "Q6_K/m-Q6_K-00002-of-00002.gguf",
)


@pytest.mark.parametrize(
    ("quantisation", "file"),
    [
        ("Q4_K_M", "m-Q4_K_M.gguf"),
        ("q4_k_m", "m-Q4_K_M.gguf"),
        ("Q4_K_S", "m-Q4_K_S.gguf"),
        ("Q8_0", "m.q8_0.gguf"),
        ("IQ4_XS", "m-IQ4_XS.gguf"),
        ("BF16", "m-bf16.gguf"),
    ],
)
def test_the_file_of_a_quantisation(quantisation: str, file: str, tmp_path: Path) -> None:
    hub = FakeHub(tmp_path, FILES)
    source = resolve_model(f"org/m-GGUF:{quantisation}", hub=hub)
    assert source.gguf == tmp_path / file
    assert source.name == f"org/m-GGUF:{quantisation}"
    assert hub.asked == [[file]]


def test_all_shards_are_fetched(tmp_path: Path) -> None:
    hub = FakeHub(tmp_path, FILES)
    source = resolve_model("org/m-GGUF:Q6_K", hub=hub)
    assert source.gguf == tmp_path / "Q6_K/m-Q6_K-00001-of-00002.gguf"
    assert hub.asked == [[f"Q6_K/m-Q6_K-0000{i}-of-00002.gguf" for i in (1, 2)]]


def refused(hub: FakeHub, model: str, message: str) -> None:
    with pytest.raises(DynaSpecError, match=message) as caught:
        resolve_model(model, hub=hub)
    assert "\n" not in str(caught.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    hub = FakeHub(tmp_path, FILES)
    refused(
        hub, "org/m-GGUF:Q2_K", r"org/m-GGUF:Q2_K: no such file .* .there are BF16, IQ4_XS, Q4_K_M"
    )
    refused(hub, "org/m-GGUF:F16", r"no such file there")  # the projector is no model
    refused(FakeHub(tmp_path, ["config.json"]), "org/m-GGUF:Q4_0", "holds no GGUF files")


def test_two_models_in_a_repository(tmp_path: Path) -> None:
    hub = FakeHub(tmp_path, ["a-Q4_0.gguf", "b-Q4_0.gguf"])
    refused(hub, "org/m-GGUF:Q4_0", r"2 models \(a-Q4_0, b-Q4_0\)")


def test_a_repository_of_files_without_a_quantisation(tmp_path: Path) -> None:
    hub = FakeHub(tmp_path, FILES)
    refused(
        hub, "org/m-GGUF", r"a repository of GGUF files; give one of its files, as org/m-GGUF:BF16"
    )


def test_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's own cache answers; what is not there is said."""
    snapshot = tmp_path / "models--org--m-GGUF" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "m-Q4_0.gguf").write_bytes(b"GGUF")
    (tmp_path / "models--org--m-GGUF" / "refs").mkdir()
    (tmp_path / "models--org--m-GGUF" / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    source = resolve_model("org/m-GGUF:Q4_0")
    assert source.gguf == snapshot / "m-Q4_0.gguf"
    with pytest.raises(DynaSpecError, match=r"Q8_0: no such file there; .* \(there are Q4_0\)"):
        resolve_model("org/m-GGUF:Q8_0")
    with pytest.raises(DynaSpecError, match="not in the hub's cache; HF_HUB_OFFLINE is set"):
        resolve_model("org/other-GGUF:Q8_0")


def test_a_model_comes_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Second copies of its weights, other formats and Python files stay on the hub."""
    wanted = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    wanted += ["model.safetensors.index.json", "tokenizer.json", "chat_template.jinja"]
    others = ["original/consolidated.00.pth", "original/params.json", "original/x.safetensors"]
    others += ["consolidated.safetensors", "pytorch_model.bin", "onnx/config.json", "modeling.py"]

    def snapshot(name: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        found = filter_repo_objects(
            wanted + others, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        assert sorted(found) == sorted(wanted)
        for path in wanted:
            (tmp_path / path).write_bytes(b"")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert resolve_model("org/m").folder == tmp_path

"""The hub: what is fetched, what is said where it cannot be, and what is pushed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from golden_cases import KEPT, Case
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file

from dynaspec_cli.checkpoints import hub
from dynaspec_cli.checkpoints.bundle import ShortlistBundle
from dynaspec_cli.drafters.checkpoint import DrafterCheckpoint, model_card
from dynaspec_cli.drafters.load import load_drafter
from dynaspec_cli.errors import DynaSpecError

EAGLE3 = KEPT / "eagle3-llama"


class Hub:
    """A repository of files; what was fetched of it."""

    def __init__(self, folder: Path, files: list[str]) -> None:
        self.folder, self.files, self.fetched = folder, files, []
        folder.mkdir(exist_ok=True)

    def snapshot_download(self, name: str, allow_patterns: Any, ignore_patterns: Any) -> str:
        wanted = filter_repo_objects(
            self.files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        for file in wanted:
            if file not in self.fetched:
                self.fetched.append(file)
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            source = EAGLE3 / file
            (self.folder / file).write_bytes(source.read_bytes() if source.is_file() else b"x")
        return str(self.folder)


BESIDE = ["original/consolidated.00.pth", "original/params.json", "consolidated.safetensors"]


@pytest.mark.parametrize(
    ("files", "fetched"),
    [
        (
            ["config.json", "model.safetensors", "pytorch_model.bin", "README.md", "eagle3.py"],
            {"config.json", "model.safetensors", "README.md"},
        ),
        (["config.json", "pytorch_model.bin"], {"config.json", "pytorch_model.bin"}),
        (
            ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"],
            {"config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"},
        ),
    ],
)
def test_weights_are_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], fetched: set[str]
) -> None:
    """One form of them; second copies, folders below and Python files stay away."""
    repository = Hub(tmp_path / "hub", files + BESIDE)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", repository.snapshot_download)
    hub.fetch_drafter("org/head", "--drafter org/head")
    assert set(repository.fetched) == fetched


def test_a_head_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Hub(tmp_path / "hub", ["config.json", "model.safetensors", "eagle3.py"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", repository.snapshot_download)
    drafter = load_drafter("org/head", Case(EAGLE3).target)
    assert drafter is not None
    assert drafter.name == "org/head"
    assert drafter.describe()["drafter_kind"] == "eagle-3"
    found = DrafterCheckpoint.from_pretrained("org/head")
    assert found.kind == "eagle-3"


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception) -> str:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(DynaSpecError) as caught:
        load_drafter("org/head", Case(EAGLE3).target)
    message = str(caught.value)
    assert message.startswith("--drafter org/head: ")
    assert "\n" not in message
    return message


def response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://hub.example/x"))


def test_why_the_hub_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gated = errors.GatedRepoError("gated", response=response(403))
    assert "accept its terms there and log in" in refuse(monkeypatch, gated)
    missing = errors.RepositoryNotFoundError("missing", response=response(404))
    assert "no such repository" in refuse(monkeypatch, missing)
    lost = errors.LocalEntryNotFoundError("no connection\nand more")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert "the hub cannot be reached (no connection)" in refuse(monkeypatch, lost)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, so nothing is fetched" in refuse(monkeypatch, lost)


def test_offline_is_honoured_and_names_are_checked() -> None:
    """With huggingface_hub itself, which tests run offline."""
    target = Case(EAGLE3).target
    with pytest.raises(DynaSpecError, match="HF_HUB_OFFLINE is set"):
        load_drafter("org/never-fetched-head", target)
    with pytest.raises(DynaSpecError, match="no valid hub name"):
        load_drafter("a/b/c", target)
    with pytest.raises(DynaSpecError, match="HF_HUB_OFFLINE is set, so nothing is sent"):
        DrafterCheckpoint.from_pretrained(EAGLE3).push_to_hub("org/head")


class Api:
    """What was pushed."""

    pushed: dict[str, Any]

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> Any:
        assert exist_ok
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{name}")

    def upload_folder(self, repo_id: str, folder_path: Path, **rest: Any) -> None:
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        Api.pushed = {"repo_id": repo_id, "files": files, **rest}


def test_push_and_load_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    checkpoint = DrafterCheckpoint.from_pretrained(EAGLE3)
    assert checkpoint.push_to_hub("org/head", private=True).endswith("org/head")
    files = Api.pushed["files"]
    assert set(files) == {"config.json", "model.safetensors", "README.md"}
    assert Api.pushed["commit_message"] == "eagle-3 drafter"
    card = files["README.md"].decode()
    assert card == model_card(checkpoint)
    assert card.startswith("---\nlibrary_name: dynaspec\n")
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    again = DrafterCheckpoint.from_pretrained(tmp_path)
    assert again.config == checkpoint.config
    stored = load_file(EAGLE3 / "model.safetensors")
    assert all(again.tensors[name].equal(tensor) for name, tensor in stored.items())


def test_a_card_names_the_target_where_the_hub_knows_it() -> None:
    checkpoint = DrafterCheckpoint.from_pretrained(KEPT / "speculators-eagle3.1-qwen3")
    verifier = checkpoint.config["speculators_config"]["verifier"]
    verifier["name_or_path"] = "org/target"
    assert "base_model: org/target\n" in model_card(checkpoint)
    verifier["name_or_path"] = "/home/somebody/checkpoints/target"
    assert "base_model" not in model_card(checkpoint)


def test_bundles_are_pushed_too(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plain_heads import bundle_for

    from dynaspec_cli.target.load import load

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    bundle = bundle_for(load(str(tiny_model_dir), "float32", "cpu")[0])
    assert isinstance(bundle, ShortlistBundle)
    bundle.push_to_hub("org/bundle")
    assert {"config.json", "clusters.safetensors", "router.safetensors", "README.md"} == set(
        Api.pushed["files"]
    )

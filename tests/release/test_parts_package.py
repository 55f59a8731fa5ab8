"""A package that adds a shortlist, a weight format, a drafter and a target: installed, listed, run
together, and taken in by the suites that go over the registries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from .installing_packages import ROOT, install, python


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install("parts_package", tmp_path_factory.mktemp("parts"))


def generate(installed: Path, *args: str | Path) -> dict:
    done = python(
        installed, "-m", "dynaspec_cli", "generate", "The quick brown", "--dtype", "float32",
        "--max-new-tokens", "24", "--compare", "--json", *args,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["identical"]
    return result


def test_the_command_line_lists_shortlist_and_weight_format(installed: Path) -> None:
    shown = python(installed, "-m", "dynaspec_cli", "generate", "--help")
    assert shown.returncode == 0, shown.stderr
    text = "".join(shown.stdout.split())
    assert "|dynaspec|first|PATH]" in text
    assert "|q4_0|signs]" in text
    wrong = python(installed, "-m", "dynaspec_cli", "generate", "x", "--draft-head", "sings")
    assert wrong.returncode == 2
    assert "did you mean signs?" in wrong.stderr


def test_a_shortlist_over_a_head_in_a_weight_format(
    installed: Path, tiny_model_dir: Path, tiny_drafter_dir: Path
) -> None:
    result = generate(
        installed, "--model", tiny_model_dir, "--drafter", tiny_drafter_dir, "--shortlist",
        "first", "--shortlist-size", "200", "--draft-head", "signs", "--tree-size", "8",
    )  # fmt: skip
    settings = result["settings"]
    assert (settings["shortlist"], settings["draft_head"]) == ("first", "signs")
    assert result["mean_shortlist_size"] == 200
    assert result["num_draft_tokens"] > 0


@pytest.fixture(scope="module")
def bigram(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A model's folder and in it a drafter's: its table is the model's own best tokens."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("bigram") / "model"
    shutil.copytree(tiny_model_dir, folder)
    vocab = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    config = {"model_type": "bigram", "eos_token_id": 1, "bos_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(vocab, 16, generator=generator) for name in ("embedding", "head")}
    save_file(weights, folder / "model.safetensors")
    drafter = folder / "drafter"
    drafter.mkdir()
    (drafter / "config.json").write_text('{"table": "follows"}', encoding="utf-8")
    logits = weights["embedding"] @ weights["head"].t()
    best = torch.topk(logits, 3).indices.contiguous()
    save_file({"next": best}, drafter / "model.safetensors")
    return folder


def test_a_target_and_a_drafter(installed: Path, bigram: Path) -> None:
    result = generate(
        installed, "--model", bigram, "--drafter", bigram / "drafter", "--tree-size", "8"
    )
    settings = result["settings"]
    assert (settings["target_kernels"], settings["drafter_kind"]) == ("bigram", "follows")
    assert result["mean_acceptance_length"] > 2  # the table knows the target's choices


def test_a_target_with_lookup_and_sampling(installed: Path, bigram: Path) -> None:
    done = python(
        installed, "-m", "dynaspec_cli", "generate", "The quick", "--model", bigram, "--drafter",
        f"{bigram / 'drafter'}+lookup", "--temperature", "1", "--max-new-tokens", "16", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["new_tokens"] > 0


def test_what_no_kind_takes_stays_with_the_built_in_ones(
    installed: Path, tiny_model_dir: Path
) -> None:
    result = generate(installed, "--model", tiny_model_dir, "--drafter", "lookup")
    assert result["settings"]["target_kernels"].startswith("native")


def test_the_suites_over_the_registries_take_them_in(installed: Path) -> None:
    done = python(
        installed, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "first or signs",
        ROOT / "tests" / "shortlist" / "test_policies.py",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout

"""``build-clusters`` on a tiny model, from corpus to a bundle that the command line can use."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner

from dynaspec_cli.checkpoints.bundle import ShortlistBundle
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.main import cli
from dynaspec_cli.training.router_build import BuildConfig
from dynaspec_cli.training.router_run import run

WORDS = ["the", "capital", "of", "France", "is", "Paris", "example", "quick", "fox", "dog", "123"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    g = torch.Generator().manual_seed(0)
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    lines = []
    for _ in range(120):
        picked = torch.randint(0, len(WORDS), (60,), generator=g).tolist()
        lines.append(json.dumps({"text": " ".join(WORDS[i] for i in picked), "task": "words"}))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def settings(corpus, out, **changes):
    base = BuildConfig(
        out, (str(corpus),), clusters=20, shortlist_size=80, shards=2, steps=30, hidden=16,
        shard_tokens=1024,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def built(config, model):
    return run(config, str(model), "float32", "cpu", None, lambda stage, share: None)


@pytest.mark.parametrize("router", ["mlp", "centroid"])
def test_a_bundle_is_built_saved_and_measured(tiny_model_dir, corpus, tmp_path, router):
    out = tmp_path / "bundle"
    result = built(settings(corpus, out, router=router), tiny_model_dir)
    bundle = ShortlistBundle.from_pretrained(out)
    assert bundle.config.router == router
    assert bundle.config.num_clusters == 20
    assert bundle.config.shortlist_size == 80
    assert sorted(bundle.cluster_tokens.tolist()) == list(range(bundle.config.vocab_size))
    counted = bundle.config.training["distinct_tokens"]
    assert 10 < counted < bundle.config.vocab_size
    rows = {(r.policy, r.size): r for r in result.coverage}
    assert {p for p, _ in rows} == {"nanospec", "fr-spec", "pa-fr", "vocabtrim", "dynaspec"}
    for (policy, size), row in rows.items():
        assert 0 <= row.coverage <= 1
        assert 0 < row.mean_size <= size, policy
        assert len(row.by_position) == 3


def test_frequency_is_the_corpus_order_and_held_out_texts_do_not_count(
    tiny_model_dir, corpus, tmp_path
):
    from dynaspec_cli.target.tokenizer import load_tokenizer
    from dynaspec_cli.training.corpus import read_corpus

    out = tmp_path / "bundle"
    result = built(settings(corpus, out, method="fr-spec"), tiny_model_dir)
    encode = load_tokenizer(tiny_model_dir).encode
    kept = [t for t in read_corpus([corpus]) if not t.held_out()]
    assert len(kept) < 120
    counts = torch.bincount(torch.tensor([i for t in kept for i in encode(t.text)]), minlength=400)
    order = result.bundle.frequency.long()
    assert order[:2].tolist() == [0, 1]  # BOS and EOS lead, however rare
    assert torch.equal(counts[order[2:]], counts[2:].sort(descending=True).values)
    assert {r.policy for r in result.coverage} == {"nanospec", "fr-spec", "pa-fr"}


def test_a_killed_build_goes_on_to_the_same_result(tiny_model_dir, corpus, tmp_path, monkeypatch):
    from dynaspec_cli.training import router as training

    whole = built(settings(corpus, tmp_path / "whole"), tiny_model_dir)
    saved = training._save

    def save_and_die(path, module, optimizer, step, loss_sum):
        saved(path, module, optimizer, step, loss_sum)
        if step == 3:
            raise KeyboardInterrupt

    killed = settings(corpus, tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(training, "_save", save_and_die)
        patch.setattr(training, "SAVE_EVERY", 3)
        with pytest.raises(KeyboardInterrupt):
            built(killed, tiny_model_dir)
    resumed = built(dataclasses.replace(killed, resume=True), tiny_model_dir)
    assert torch.equal(resumed.bundle.cluster_tokens, whole.bundle.cluster_tokens)
    for name, value in whole.bundle.router.items():
        assert torch.equal(resumed.bundle.router[name], value), name
    assert [r.as_dict() for r in resumed.coverage] == [r.as_dict() for r in whole.coverage]


def test_resuming_takes_the_text_that_there_was_time_for(
    tiny_model_dir, corpus, tmp_path, monkeypatch
):
    """The rest of the build depends on the number of shards; another would begin it anew."""
    from dynaspec_cli.training import router_build

    def interrupt(*_):
        raise KeyboardInterrupt

    config = settings(corpus, tmp_path / "timed", minutes=0.02)
    with monkeypatch.context() as patch:
        patch.setattr(
            router_build, "_clusters", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            built(config, tiny_model_dir)
    shards = tmp_path / "timed" / ".build" / "shards"
    before = sorted(p.name for p in shards.glob("*.safetensors"))
    built(dataclasses.replace(config, resume=True, minutes=0.1), tiny_model_dir)
    assert sorted(p.name for p in shards.glob("*.safetensors")) == before


def test_a_folder_that_is_no_build_is_left_alone(tiny_model_dir, corpus, tmp_path):
    out = tmp_path / "model"
    out.mkdir()
    (out / "config.json").write_text("{}")
    for resume in (False, True):
        with pytest.raises(DynaSpecError, match="not empty; give an empty or new folder"):
            built(settings(corpus, out, resume=resume), tiny_model_dir)
    assert [p.name for p in out.iterdir()] == ["config.json"]


def test_a_changed_corpus_is_refused(tiny_model_dir, corpus, tmp_path):
    text = tmp_path / "grows.jsonl"
    text.write_text(corpus.read_text())
    config = settings(text, tmp_path / "bundle", router="centroid")
    built(config, tiny_model_dir)
    lines = text.read_text().splitlines()
    text.write_text("\n".join(lines[: len(lines) // 2]))
    with pytest.raises(DynaSpecError, match="holds text of another model, --dtype, corpus"):
        built(dataclasses.replace(config, resume=True), tiny_model_dir)


def test_a_folder_with_content_needs_resume_and_the_same_settings(tiny_model_dir, corpus, tmp_path):
    out = tmp_path / "bundle"
    built(settings(corpus, out, method="fr-spec"), tiny_model_dir)
    with pytest.raises(DynaSpecError, match="--resume"):
        built(settings(corpus, out, method="fr-spec"), tiny_model_dir)
    with pytest.raises(DynaSpecError, match="another model, corpus or seed"):
        built(settings(corpus, out, method="fr-spec", resume=True, seed=1), tiny_model_dir)


def test_impossible_settings_are_refused(tiny_model_dir, corpus, tmp_path):
    out = tmp_path / "bundle"
    with pytest.raises(UsageError, match=r"--clusters: expected 1 to 400 .*got 401"):
        built(settings(corpus, out, clusters=401), tiny_model_dir)
    with pytest.raises(UsageError, match=r"--shortlist-size.*400"):
        built(settings(corpus, out, shortlist_size=401), tiny_model_dir)
    for changes in ({"minutes": 0.0}, {"shortlist_size": 0}, {"clusters": 0}):
        with pytest.raises(UsageError):
            settings(corpus, out, **changes)
    assert not out.exists()


def test_the_command_prints_one_json_object_and_one_line_errors(tiny_model_dir, corpus, tmp_path):
    out = tmp_path / "bundle"
    arguments = [
        "--model", str(tiny_model_dir), "--out", str(out), "--corpus", str(corpus),
        "--method", "pa-fr", "--shortlist-size", "50", "--dtype", "float32", "--quiet", "--json",
    ]  # fmt: skip
    result = CliRunner().invoke(cli, ["build-clusters", *arguments])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["schema"] == 1
    assert report["method"] == "pa-fr"
    assert {"policy", "size", "mean_size", "coverage", "by_position"} == set(report["coverage"][0])
    empty = tmp_path / "empty.txt"
    empty.touch()
    arguments[5] = str(empty)
    arguments[3] = str(tmp_path / "other")
    failed = CliRunner().invoke(cli, ["build-clusters", *arguments])
    assert failed.exit_code == 1
    assert "empty" in failed.stderr
    assert failed.stderr.count("\n") == 1

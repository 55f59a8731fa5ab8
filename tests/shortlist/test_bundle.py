"""Bundles: round trip, and refusal of what does not fit, with what differs."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from dynaspec_cli.checkpoints.bundle import CONFIG_FILE, ROUTER_FILE, ShortlistBundle
from dynaspec_cli.config import ShortlistConfig
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.shortlist import registry
from shortlist.tiny import TinyTarget, tiny_bundle


@pytest.mark.parametrize("router", ["mlp", "token", "centroid", "output", "none"])
def test_a_saved_bundle_loads_alike(tmp_path, router):
    target = TinyTarget(97)
    bundle = tiny_bundle(target, router=router)
    bundle.save_pretrained(tmp_path / "out")
    found = ShortlistBundle.from_pretrained(tmp_path / "out")
    assert found.config == bundle.config
    for name in ("frequency", "generated", "cluster_tokens", "cluster_offsets"):
        assert torch.equal(getattr(found, name).long(), getattr(bundle, name).long())
    assert (found.router is None) == (router == "none")
    for name, value in (bundle.router or {}).items():
        assert torch.equal(found.router[name], value)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: tiny" in card
    assert bundle.config.head_hash in card
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_saving_again_replaces_the_bundle_and_leaves_no_old_router(tmp_path):
    target = TinyTarget(97)
    tiny_bundle(target).save_pretrained(tmp_path / "out")
    tiny_bundle(target, router="none").save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out" / ROUTER_FILE).exists()
    ShortlistBundle.from_pretrained(tmp_path / "out")


def test_a_folder_that_is_no_bundle_is_not_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DynaSpecError, match="is no bundle"):
        tiny_bundle(TinyTarget(97)).save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (TinyTarget(96), "vocabulary size 97.*vocabulary size 96"),
        (TinyTarget(97, 16), "hidden size 8.*hidden size 16"),
        (TinyTarget(97, 8, seed=1), "another head.*build-clusters"),
    ],
)
def test_another_target_is_refused_with_what_differs(tmp_path, other, message):
    tiny_bundle(TinyTarget(97)).save_pretrained(tmp_path / "out")
    for method in (str(tmp_path / "out"),):
        with pytest.raises(DynaSpecError, match=message) as caught:
            registry.create(ShortlistConfig(method), other)
        assert "\n" not in str(caught.value)
    with pytest.raises(DynaSpecError, match=message):
        registry.create(ShortlistConfig("fr-spec", 5), other, tiny_bundle(TinyTarget(97)))


def test_a_bundle_folder_is_a_shortlist_of_its_method_and_size(tmp_path):
    target = TinyTarget(97)
    tiny_bundle(target).save_pretrained(tmp_path / "out")
    shortlist = registry.create(ShortlistConfig(str(tmp_path / "out")), target)
    assert shortlist.name == "dynaspec"
    assert sum(shortlist.budgets) <= 32 * len(shortlist.budgets)
    with pytest.raises(UsageError, match="--shortlist-size"):
        registry.create(ShortlistConfig(str(tmp_path / "out"), 98), target)


def test_a_bundle_serves_the_other_methods_by_name(tmp_path):
    target = TinyTarget(97)
    tiny_bundle(target).save_pretrained(tmp_path / "out")
    for method in ("fr-spec", "vocabtrim", "pa-fr", "dynaspec"):
        shortlist = registry.create(ShortlistConfig(f"{method}={tmp_path / 'out'}", 11), target)
        assert (shortlist.name, shortlist.size) == (method, 11)
    for wrong in (f"nanospec={tmp_path / 'out'}", f"fr-spec={tmp_path / 'nowhere'}"):
        with pytest.raises(UsageError, match="NAME=FOLDER"):
            registry.create(ShortlistConfig(wrong, 11), target)


def damage(folder, **changes):
    path = folder / CONFIG_FILE
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_clusters": 3}, "3 clusters"),
        ({"router": "magic"}, "router: expected"),
        ({"method": "magic"}, "method: expected"),
        ({"schema": 99}, "schema 99"),
        ({"vocab_size": 50}, "outside the target's vocabulary of 50"),
        ({"surprise": 1}, "not the configuration"),
        ({"router": "mlp"}, "mlp router needs"),
    ],
)
def test_a_damaged_configuration_is_refused(tmp_path, changes, message):
    tiny_bundle(TinyTarget(97), router="centroid").save_pretrained(tmp_path / "out")
    damage(tmp_path / "out", **changes)
    with pytest.raises(DynaSpecError, match=message):
        ShortlistBundle.from_pretrained(tmp_path / "out")


def test_damaged_files_and_pickles_are_refused(tmp_path):
    folder = tmp_path / "out"
    tiny_bundle(TinyTarget(97)).save_pretrained(folder)
    clusters = folder / "clusters.safetensors"
    whole = clusters.read_bytes()
    clusters.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DynaSpecError, match="not a readable safetensors"):
        ShortlistBundle.from_pretrained(folder)
    clusters.unlink()
    torch.save({"a": torch.zeros(1)}, folder / "clusters.bin")
    with pytest.raises(DynaSpecError, match="pickle and is never loaded"):
        ShortlistBundle.from_pretrained(folder)
    with pytest.raises(DynaSpecError, match="no shortlist bundle"):
        registry.create(ShortlistConfig(str(tmp_path)), TinyTarget(97))


def test_inconsistent_parts_are_refused_where_they_are_made():
    bundle = tiny_bundle(TinyTarget(97))
    with pytest.raises(DynaSpecError, match="occurs 2 times"):
        dataclasses.replace(bundle, frequency=torch.zeros(2, dtype=torch.int32))
    with pytest.raises(DynaSpecError, match="must rise"):
        dataclasses.replace(bundle, cluster_offsets=torch.tensor([0, 50, 40, 60, 97]))
    with pytest.raises(DynaSpecError, match="come together"):
        dataclasses.replace(bundle, cluster_offsets=None)
    weights = dict(bundle.router or {})
    weights["w2"] = weights["w2"][:2]
    with pytest.raises(DynaSpecError, match="scores 2 clusters"):
        dataclasses.replace(bundle, router=weights)


def test_a_method_that_the_bundle_lacks_is_named():
    target = TinyTarget(97)
    bundle = dataclasses.replace(tiny_bundle(target), generated=None)
    with pytest.raises(DynaSpecError, match="--method vocabtrim"):
        registry.create(ShortlistConfig("vocabtrim", 5), target, bundle)
    bare = dataclasses.replace(
        bundle,
        config=dataclasses.replace(bundle.config, router="none", num_clusters=0),
        cluster_tokens=None,
        cluster_offsets=None,
        router=None,
    )
    with pytest.raises(DynaSpecError, match="--method dynaspec"):
        registry.create(ShortlistConfig("dynaspec", 5), target, bare)
    short = dataclasses.replace(bundle, frequency=torch.arange(10))
    with pytest.raises(UsageError, match="ranks 10 tokens"):
        registry.create(ShortlistConfig("fr-spec", 11), target, short)

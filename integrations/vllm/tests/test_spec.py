"""Bad draft folders: each is refused in one line that says what to do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from folders import TARGET_FACTS, VOCAB, WIDTH, shortlist, target_tensors

from dynaspec_vllm.errors import DraftFolderError
from dynaspec_vllm.spec import KEY, PREFIX, DraftSpec

HEAD = target_tensors()["lm_head.weight"]


def made(**changes):
    spec, tensors = shortlist("eagle-1", HEAD)
    return {**spec, **changes}, {k.removeprefix(PREFIX): t for k, t in tensors.items()}


def test_a_good_folder_is_read_from_json_and_from_a_config():
    spec, tensors = made()
    for config in ({KEY: spec}, SimpleNamespace(**{KEY: spec})):
        read = DraftSpec.of(config)
        read.check_tensors(tensors, WIDTH)
        read.check_target(SimpleNamespace(vocab_size=VOCAB, **TARGET_FACTS))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schema": 2}, "schema 2"),
        ({"form": "medusa"}, "form: expected one of"),
        ({"core": 0}, "core: expected 1 to"),
        ({"core": 1.5}, "core: expected a number"),
        ({"rows": VOCAB + 1}, "rows: expected 1 to"),
        ({"taken": 21}, "taken: expected at most the 20 clusters"),
        ({"cluster_size": 0}, "clusters are empty"),
        ({"shiny": 1}, "'shiny' is not known"),
        ({"target": 3}, "target: expected an object"),
    ],
)
def test_a_bad_config_is_refused(changes, says):
    with pytest.raises(DraftFolderError, match=says) as error:
        DraftSpec.of({KEY: made(**changes)[0]})
    assert "\n" not in str(error.value)


def test_a_folder_without_a_shortlist_is_refused():
    with pytest.raises(DraftFolderError, match="none of export-vllm's"):
        DraftSpec.of({"architectures": ["EagleDynaSpecForCausalLM"]})
    spec = {name: value for name, value in made()[0].items() if name not in ("core", "recent")}
    with pytest.raises(DraftFolderError, match="lacks core, recent"):
        DraftSpec.of({KEY: spec})


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "num_hidden_layers"])
def test_another_target_is_refused(name):
    spec = DraftSpec.of({KEY: made()[0]})
    facts = {"vocab_size": VOCAB, **TARGET_FACTS}
    with pytest.raises(DraftFolderError, match=f"made for tiny .{name}"):
        spec.check_target(SimpleNamespace(**(facts | {name: facts[name] + 1})))


def drop(name):
    return lambda tensors: tensors.pop(name)


def put(name, value):
    return lambda tensors: tensors.__setitem__(name, value)


def set_row(name, at, value):
    return lambda tensors: tensors[name].__setitem__(at, value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop("core"), "lack 'shortlist.core'"),
        (drop("clusters"), "lack 'shortlist.clusters'"),
        (drop("router_bias"), "lack 'shortlist.router_bias'"),
        (put("router", torch.zeros(20, WIDTH + 1)), "'shortlist.router' has shape"),
        (put("more", torch.zeros(1)), "unexpected tensor 'shortlist.more'"),
        (put("core", torch.zeros(64)), "holds torch.float32, expected integers"),
        (set_row("core", 3, VOCAB), f"the id {VOCAB}, which is outside the {VOCAB} rows"),
        (set_row("core", 3, -1), "the id -1"),
        (set_row("core", 3, 4), "holds an id twice"),
        (set_row("clusters", (2, 5), VOCAB + 7), f"the id {VOCAB + 7}"),
        (set_row("clusters", 2, -1), "a cluster has no tokens"),
    ],
)
def test_bad_tensors_are_refused(change, says):
    spec, tensors = made()
    change(tensors)
    with pytest.raises(DraftFolderError, match=says) as error:
        DraftSpec.of({KEY: spec}).check_tensors(tensors, WIDTH)
    assert "\n" not in str(error.value)

"""What is generated in one process and in two: drafter x shortlist x tree x sampling."""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch

from dynaspec_cli.config import GenerationConfig, SamplingConfig, ShortlistConfig, TreeConfig
from dynaspec_cli.drafters.load import load_drafter
from dynaspec_cli.drafters.lookup.drafter import LookupDrafter
from dynaspec_cli.engine.api import Engine
from dynaspec_cli.engine.events import DoneEvent
from dynaspec_cli.protocols import DraftTree

sys.path.insert(0, str(Path(__file__).parents[1] / "drafters"))
from every_setting import SHORTLISTS, TREES
from every_setting import shortlist as of_size_64

PROMPT = "The capital of France is"
DRAFTERS = ("none", "lookup", "trained", "published", "language-model", "trained+lookup")
SAMPLINGS = (
    SamplingConfig(),
    SamplingConfig(temperature=0.9, seed=3),
    SamplingConfig(temperature=1.2, top_k=40, top_p=0.9, min_p=0.01, seed=4),
)


def tokens(target: Any, tokenizer: Any, folders: dict[str, str]) -> dict[str, list[int]]:
    """Token ids by case. ``folders``: drafters by name, and the shortlists' "bundle"."""
    found: dict[str, list[int]] = {}
    for name in DRAFTERS:
        own, _, beside = name.partition("+")
        drafter = load_drafter(folders.get(own, own), target, tokenizer)
        engine = Engine(target, tokenizer, drafter, lookup=LookupDrafter() if beside else None)
        headed = drafter is not None and drafter.head is not None
        shortlists = SHORTLISTS if headed else ("auto",)
        for shortlist, tree, (i, sampling) in product(shortlists, TREES, enumerate(SAMPLINGS)):
            # Every pair of these with the trained drafter; elsewhere each tree with one shortlist.
            pick = SHORTLISTS[(TREES.index(tree) + i) % len(SHORTLISTS)]
            if headed and name != "trained" and shortlist != pick:
                continue
            if name == "none" and tree != "chain":
                continue
            config = GenerationConfig(
                14,
                sampling=sampling,
                tree=TreeConfig(tree, size=6, depth=3, width=3),
                shortlist=of_size_64(shortlist, folders["bundle"]) if headed else ShortlistConfig(),
            )
            result = engine.complete(PROMPT, config)
            found[f"{name} {shortlist} {tree} {i}"] = list(result.token_ids)
            if name == "language-model" and i == 0:
                assert result.num_accepted_draft_tokens > 0
    return found


def turns(target: Any, tokenizer: Any, folders: dict[str, str]) -> list[list[int]]:
    """Two requests that share a beginning, with kept caches."""
    drafter = load_drafter(folders["trained"], target, tokenizer)
    talk = Engine(target, tokenizer, drafter).conversation()
    ids, found = tokenizer.encode(PROMPT), []
    config = GenerationConfig(
        8,
        sampling=SamplingConfig(temperature=0.8, seed=1),
        tree=TreeConfig("dyspec", size=6, depth=3),
        shortlist=ShortlistConfig("nanospec", 64),
    )
    for _ in range(3):
        *_, done = talk.generate(ids, config)
        assert isinstance(done, DoneEvent)
        ids = [*ids, *done.result.token_ids, 17, 23]
        found.append(list(done.result.token_ids))
    return found


def numbers(target: Any) -> dict[str, Any]:
    """What a drafter reads of the target: features, taps, embeddings, logits of single tokens."""
    ids = torch.tensor([5, 17, 40, 399, 200])
    state = target.begin(12, (0, 1, 2))
    output = target.prefill(state, ids)
    tree = DraftTree(torch.tensor([7, 8, 9, 10]), torch.tensor([-1, 0, 0, 2]))
    verified = target.verify(state, tree)
    target.commit(state, torch.tensor([0, 2]))
    again = target.verify(state, DraftTree(torch.tensor([3]), torch.tensor([-1])))
    return {
        "features": output.features.float().tolist(),
        "taps": output.taps.float().tolist(),
        "logits": verified.logits().tolist(),
        "after a commit": again.logits().tolist(),
        "leaders": again.leaders(4).tolist(),
        "single": verified.logits_at(torch.tensor([0, 1, 3]), torch.tensor([0, 200, 399])).tolist(),
        "embedded": target.embed(ids).float().tolist(),
        "rows": target.embedding_rows(ids).float().tolist(),
        "head": target.head_weight().float().tolist(),
    }


def everything(target: Any, tokenizer: Any, folders: dict[str, str]) -> str:
    """As JSON."""
    return json.dumps(
        {
            "numbers": numbers(target),
            "tokens": tokens(target, tokenizer, folders),
            "turns": turns(target, tokenizer, folders),
        }
    )

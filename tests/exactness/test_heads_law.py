"""A published EAGLE-3 head with a vocabulary of its own in the real decode loop: the law of the
text is the target's.

The head's rows are half of the vocabulary, so the other half is reached through the residual alone.
Its LM head is fitted to the target's logits after the likely texts, so that drafts are accepted
often and rejected often.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_engine_law import FAMILY, PROMPT, SAMPLER, generate, joint_law

from dynaspec_cli.config import SamplingConfig, ShortlistConfig, TreeConfig
from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.drafters.registry import load_folder
from dynaspec_cli.protocols import Frontier, Target
from dynaspec_cli.shortlist import registry as shortlists
from dynaspec_cli.target.load import load
from dynaspec_cli.tree.registry import TREES

SAMPLING_TREES = [name for name in TREES if name != "auto"]
SHORTLISTS = ("full", "nanospec", "map")
RUNS = 1500


@pytest.fixture(scope="module")
def target(tiny_model_dir: Path) -> Target:
    return load(str(tiny_model_dir), "float32", "cpu")[0]


@pytest.fixture(scope="module")
def drafter(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("eagle3")
    d, generator = target.hidden_size, torch.Generator().manual_seed(0)
    ids = torch.randperm(target.vocab_size, generator=generator)[:200].sort().values
    mask = torch.zeros(target.vocab_size, dtype=torch.bool)
    mask[ids] = True
    layer = {
        "fc.weight": (d, d),
        "midlayer.self_attn.q_proj.weight": (d, 2 * d),
        "midlayer.self_attn.k_proj.weight": (d // 2, 2 * d),
        "midlayer.self_attn.v_proj.weight": (d // 2, 2 * d),
        "midlayer.self_attn.o_proj.weight": (d, d),
        "midlayer.mlp.gate_proj.weight": (4 * d, d),
        "midlayer.mlp.up_proj.weight": (4 * d, d),
        "midlayer.mlp.down_proj.weight": (d, 4 * d),
        "lm_head.weight": (200, d),
    }
    norms = ("hidden_norm", "input_layernorm", "post_attention_layernorm")
    tensors = {
        name: torch.randn(shape, generator=generator) * 1.5 / shape[1] ** 0.5
        for name, shape in layer.items()
    }
    tensors |= {f"midlayer.{name}.weight": torch.ones(d) for name in norms}
    tensors |= {"norm.weight": torch.ones(d), "d2t": ids - torch.arange(200), "t2d": mask}
    config = {
        "hidden_size": d,
        "intermediate_size": 4 * d,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": target.vocab_size,
        "draft_vocab_size": 200,
    }
    (folder / "config.json").write_text(json.dumps(config))

    def loaded() -> Any:
        return load_folder(DrafterFiles(folder, "eagle3", {"taps": "2"}), target)

    save_file(tensors, folder / "model.safetensors")
    tensors["lm_head.weight"] = fitted(target, loaded(), ids)
    save_file(tensors, folder / "model.safetensors")
    return loaded()


def fitted(target: Target, drafter: Any, ids: torch.Tensor) -> torch.Tensor:
    """Head rows by least squares: from the head's hidden rows to the target's logits of its tokens,
    for the texts that the law's first two tokens can begin with, read or drafted."""
    rows, logits = [], []
    for first in likely(target, PROMPT):
        state, root = read(target, drafter, (*PROMPT, first))
        rows.append(root)
        logits.append(after(target, (*PROMPT, first))[ids])
        for second in likely(target, (*PROMPT, first)):
            text = (*PROMPT, first, second)
            state, _ = read(target, drafter, text[:-1])
            below = Frontier(torch.tensor([second]), torch.tensor([-1]), torch.tensor([0]))
            rows += [drafter.step(state, below).hidden[0], read(target, drafter, text)[1]]
            logits += [after(target, text)[ids]] * 2
    y = torch.stack(logits)
    y = y - y.mean(1, keepdim=True)
    return torch.linalg.lstsq(torch.stack(rows), y).solution.t().contiguous()


def after(target: Target, text: tuple[int, ...]) -> torch.Tensor:
    """The target's logits [V] after a text."""
    return target.prefill(target.begin(16), torch.tensor(text)).logits()[-1]


def likely(target: Target, text: tuple[int, ...]) -> list[int]:
    return after(target, text).topk(SAMPLER.top_k).indices.tolist()


def read(target: Target, drafter: Any, text: tuple[int, ...]) -> tuple[Any, torch.Tensor]:
    """(request state, what the head reads for the token after) of a text whose last token the
    target has not read."""
    ids = torch.tensor(text)
    output = target.prefill(target.begin(16, drafter.taps), ids[:-1])
    state = drafter.begin(ids, 16)
    states = drafter.states(output, torch.arange(ids.numel() - 1))
    return state, drafter.read(state, states, ids[1:])[-1]


@pytest.fixture(scope="module")
def shortlist_of(target: Target, drafter: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """By name; "map" has three quarters of the vocabulary, of which the head has a half."""
    path = tmp_path_factory.mktemp("maps") / "map.json"
    ids = torch.randperm(target.vocab_size, generator=torch.Generator().manual_seed(1))[:300]
    path.write_text(json.dumps(ids.tolist()), encoding="utf-8")

    def make(name: str) -> Any:
        config = {
            "full": ShortlistConfig("full"),
            "nanospec": ShortlistConfig("nanospec", 48),
            "map": ShortlistConfig(str(path)),
        }[name]
        return shortlists.create(config, target, head=drafter.head, depth=3)

    return make


@pytest.mark.parametrize("shortlist", SHORTLISTS)
@pytest.mark.parametrize("tree", TREES)
def test_greedy_tokens_are_those_of_plain_decoding(
    target: Target, drafter: Any, shortlist_of: Any, tree: str, shortlist: str
) -> None:
    greedy, config = SamplingConfig(0.0), TreeConfig(tree, size=8, depth=4, width=3)
    plain, _ = generate(target, None, None, config, greedy, 32)
    chosen = shortlist_of(shortlist)
    assert generate(target, drafter, chosen, config, greedy, 32)[0] == plain


@pytest.mark.slow
@pytest.mark.parametrize("shortlist", SHORTLISTS)
@pytest.mark.parametrize("tree", SAMPLING_TREES)
def test_sampled_law_of_three_tokens(
    target: Target, drafter: Any, shortlist_of: Any, tree: str, shortlist: str
) -> None:
    """Pearson's test over joint sequences, one family-wise error for all trees and shortlists."""
    law, counts, accepted = joint_law(target, 3), Counter[tuple[int, ...]](), 0
    choice = shortlist_of(shortlist)
    config = TreeConfig(tree, size=6, depth=3, width=2)
    for seed in range(RUNS):
        sampling = SamplingConfig(SAMPLER.temperature, SAMPLER.top_k, SAMPLER.top_p, 0.0, seed)
        tokens, hits = generate(target, drafter, choice, config, sampling, 3)
        counts[tokens] += 1
        accepted += hits
    assert set(counts) <= set(law)
    assert accepted > (0.02 if shortlist == "nanospec" else 0.1) * RUNS
    cells = [(counts[key], RUNS * p) for key, p in law.items() if RUNS * p >= 5]
    seen, expected = (sum(column) for column in zip(*cells, strict=True))
    if RUNS - expected >= 5:
        cells.append((RUNS - seen, RUNS - expected))
    statistic = sum((n - e) ** 2 / e for n, e in cells)
    tail = torch.special.gammaincc(
        torch.tensor((len(cells) - 1) / 2, dtype=torch.float64),
        torch.tensor(statistic / 2, dtype=torch.float64),
    )
    assert float(tail) > FAMILY / (len(SAMPLING_TREES) * len(SHORTLISTS))

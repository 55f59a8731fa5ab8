"""The drafter's cached, tree-shaped inference against the training module's unrolled forward."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dynaspec_cli.drafters.config import DrafterConfig
from dynaspec_cli.drafters.eagle import EagleDrafter, expected_shapes, load_eagle
from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.training.model import DrafterModule

D, V = 16, 50


class FakeTarget:
    """Only what a drafter asks of a target."""

    name = "fake"
    vocab_size, hidden_size = V, D
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self) -> None:
        self.table = torch.randn(V, D, generator=torch.Generator().manual_seed(5))

    def embed(self, ids):
        return self.table[ids]

    def norm(self, features):
        return torch.nn.functional.rms_norm(features, (D,), self.table[0], 1e-6)

    def head_weight(self):
        return self.table

    def head_hash(self):
        return "h"


def make_config(**changes) -> DrafterConfig:
    base = DrafterConfig(
        target_name="fake",
        head_hash="h",
        vocab_size=V,
        hidden_size=D,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=24,
        activation="gelu_tanh",
        eps=1e-6,
        attention_scale=8**-0.5,
        rope_theta=10000.0,
        window=0,
        feature_scale=4.0,
        has_qk_norm=True,
        has_qkv_bias=False,
        has_post_norms=True,
    )
    return dataclasses.replace(base, **changes)


def make_module(config: DrafterConfig) -> DrafterModule:
    torch.manual_seed(3)
    module = DrafterModule(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return module


VARIANTS = [
    {},
    {"use_current_token": False},
    {"use_current_token": False, "normed_features": True},
    {"has_post_norms": False, "has_qk_norm": False, "has_qkv_bias": True, "activation": "silu"},
    {"num_layers": 1, "window": 5},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_chain_of_draft_steps_equals_unrolled_training(changes):
    config = make_config(**changes)
    module, target = make_module(config), FakeTarget()
    drafter = EagleDrafter(config, dict(module.state_dict()), target)
    length, unroll = 9, 4
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, V, (length + 1,), generator=generator)
    features = torch.randn(length, D, generator=generator) * config.feature_scale
    with torch.no_grad():
        normed = config.normed_features
        f = (target.norm(features) if normed else features / config.feature_scale)[None]
        following, current = target.embed(tokens[1:])[None], target.embed(tokens[:-1])[None]
        pass_on = target.norm if normed else None
        outputs = module(f, following, current, unroll, pass_on=pass_on)
        for root in range(2, length - unroll + 1):
            state = drafter.begin(tokens, length)
            predicted = drafter.read(state, features[: root + 1], tokens[1 : root + 2])
            torch.testing.assert_close(predicted[0], outputs[0][0, root], rtol=1e-4, atol=1e-5)
            for s in range(1, unroll):
                parent = torch.tensor([-1 if s == 1 else s - 2])
                token = tokens[root + s + 1 : root + s + 2]
                predicted = drafter.expand(state, predicted, token, parent)
                torch.testing.assert_close(
                    predicted[0], outputs[s][0, root + s], rtol=1e-4, atol=1e-5
                )


def test_tree_rows_equal_their_own_chains_and_extend_forgets_them():
    config = make_config()
    target = FakeTarget()
    drafter = EagleDrafter(config, dict(make_module(config).state_dict()), target)
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, V, (8,), generator=generator)
    features = torch.randn(7, D, generator=generator)

    def start():
        state = drafter.begin(tokens, 32)
        return state, drafter.read(state, features[:5], tokens[1:6])

    state, root = start()
    level1 = drafter.expand(
        state, root.expand(3, -1), torch.tensor([4, 7, 9]), torch.tensor([-1, -1, -1])
    )
    level2 = drafter.expand(state, level1[[2, 0]], torch.tensor([1, 2]), torch.tensor([2, 0]))
    for row, path in ((0, (9, 1)), (1, (4, 2))):
        chain, out = start()
        out = drafter.expand(chain, out, torch.tensor([path[0]]), torch.tensor([-1]))
        out = drafter.expand(chain, out, torch.tensor([path[1]]), torch.tensor([0]))
        torch.testing.assert_close(out[0], level2[row], rtol=1e-5, atol=1e-6)
    after = drafter.read(state, features[5:], tokens[6:])
    fresh = drafter.begin(tokens, 32)
    torch.testing.assert_close(
        after, drafter.read(fresh, features, tokens[1:]), rtol=1e-5, atol=1e-6
    )


def save(folder: Path, config: DrafterConfig, module: DrafterModule) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config.to_json())
    save_file(
        {k: v.contiguous() for k, v in module.state_dict().items()}, folder / "model.safetensors"
    )


def test_load_round_trip_and_shapes(tmp_path):
    config = make_config()
    module = make_module(config)
    assert {k: tuple(v.shape) for k, v in module.state_dict().items()} == expected_shapes(config)
    save(tmp_path / "d", config, module)
    assert load_eagle(DrafterFiles(tmp_path / "d", "test"), FakeTarget()).config == config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"head_hash": "other"}, "LM head hash"),
        ({"vocab_size": 51}, "vocabulary size"),
        ({"hidden_size": 32}, "hidden size"),
    ],
)
def test_a_drafter_for_another_target_is_refused(tmp_path, changes, says):
    config = make_config(**changes)
    save(tmp_path / "d", config, make_module(config))
    with pytest.raises(DynaSpecError, match=f"does not fit fake: {says}"):
        load_eagle(DrafterFiles(tmp_path / "d", "test"), FakeTarget())


def test_bad_files(tmp_path):
    config = make_config()
    with pytest.raises(DynaSpecError, match=r"no config\.json"):
        load_eagle(DrafterFiles(tmp_path, "test"), FakeTarget())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DynaSpecError, match="not valid JSON"):
        load_eagle(DrafterFiles(tmp_path, "test"), FakeTarget())
    (tmp_path / "config.json").write_text(config.to_json())
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(
        DynaSpecError, match=r"pytorch_model\.bin: refused, it is no pickle of named tensors"
    ):
        load_eagle(DrafterFiles(tmp_path, "test"), FakeTarget())
    (tmp_path / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(DynaSpecError, match="not a readable safetensors"):
        load_eagle(DrafterFiles(tmp_path, "test"), FakeTarget())
    save(tmp_path, config, make_module(make_config(num_layers=1)))
    (tmp_path / "config.json").write_text(config.to_json())
    with pytest.raises(DynaSpecError, match=r"lacks 'layers\.1"):
        load_eagle(DrafterFiles(tmp_path, "test"), FakeTarget())


def test_room_for_temporary_rows_grows(monkeypatch):
    config = make_config()
    target = FakeTarget()
    drafter = EagleDrafter(config, dict(make_module(config).state_dict()), target)
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(0, V, (6,), generator=generator)
    features = torch.randn(5, D, generator=generator)
    frontiers = [torch.randint(0, V, (4,), generator=generator) for _ in range(5)]

    def rounds():
        state = drafter.begin(tokens, 8)
        out = drafter.read(state, features, tokens[1:]).expand(4, -1)
        found = []
        for level, drafted in enumerate(frontiers):
            parents = torch.arange(4) + 4 * (level - 1) if level else torch.full((4,), -1)
            out = drafter.expand(state, out, drafted, parents)
            found.append(out)
        return torch.cat(found)

    roomy = rounds()
    monkeypatch.setattr("dynaspec_cli.drafters.pairs.MAX_TREE_ROWS", 6)
    assert torch.equal(rounds(), roomy)

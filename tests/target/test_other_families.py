"""Caps, scales, windows and positions of families by the transformers path; most have no native
layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import DraftTree

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def config(family: str) -> Any:
    import transformers as t

    if family == "gemma2":  # caps attention scores (no SDPA) and logits
        caps = {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 3.0}
        return t.Gemma2Config(**SMALL, **caps, head_dim=8, sliding_window=8)
    if family == "mistral":  # one window for all layers, no layer types
        return t.MistralConfig(**SMALL, sliding_window=8)
    if family == "granite":  # divides its logits
        return t.GraniteConfig(**SMALL, logits_scaling=3.0, embedding_multiplier=2.0)
    if family == "cohere":  # multiplies its logits, layers in parallel
        return t.CohereConfig(**SMALL, logit_scale=0.3)
    if family == "gpt_oss":  # attention sinks, experts, eager attention
        return t.GptOssConfig(**SMALL, head_dim=8, num_local_experts=4, sliding_window=8)
    return t.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64)


def saved(family_config: Any, folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(family_config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", ["gemma2", "mistral", "granite", "cohere", "gpt_oss", "gpt2"])
def test_tree_rows_equal_their_paths(family: str, tmp_path: Path) -> None:
    from dynaspec_cli.target.load import load_target, load_transformers
    from dynaspec_cli.target.native_spec import FAMILY_KEYS

    model = saved(config(family), tmp_path)
    cpu = torch.device("cpu")
    if family in FAMILY_KEYS:
        target = load_transformers(tmp_path, family, torch.float32, cpu)
    else:
        target = load_target(tmp_path, family, torch.float32, cpu)
        assert target.kernels == f"transformers (model type {family} has no native layers)"
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 97, (18,), generator=generator)
    tokens = torch.randint(3, 97, (12,), generator=generator)
    parents = [-1, 0, 0, 1, 1, 2, 3, 3, 5, 6, 8, 10]
    state = target.begin(40)
    target.prefill(state, ids)
    output = target.verify(state, DraftTree(tokens, torch.tensor(parents)))
    logits, best = output.logits(), output.argmax()
    for row in range(12):
        path = [row]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        with torch.inference_mode():
            text = torch.cat([ids, tokens[path]])[None]
            expected = model(input_ids=text, use_cache=False).logits[0, -1]
        torch.testing.assert_close(logits[row], expected, atol=1e-4, rtol=1e-4)
        assert int(best[row]) == int(expected.argmax())
    assert torch.equal(output.leaders(2), logits.topk(2, -1).indices)


def test_a_family_that_cannot_be_verified_is_refused(tmp_path: Path) -> None:
    from transformers import BloomConfig

    from dynaspec_cli.target.load import load_target

    saved(BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4), tmp_path)
    with pytest.raises(DynaSpecError, match=r"'bloom' cannot verify a draft tree here \(it has no"):
        load_target(tmp_path, "bloom", torch.float32, torch.device("cpu"))


def test_a_family_that_masks_by_itself_is_refused(tmp_path: Path) -> None:
    """GPT-Neo's local layers mask by the row in the cache: past its window a branching tree would
    be verified wrongly, which a check on a few tokens cannot see."""
    from transformers import GPTNeoConfig

    from dynaspec_cli.target.load import load_target

    small = {"vocab_size": 97, "hidden_size": 32, "num_layers": 2, "num_heads": 4}
    saved(GPTNeoConfig(attention_types=[[["global", "local"], 1]], **small), tmp_path)
    with pytest.raises(DynaSpecError, match="its layers apply a window of their own"):
        load_target(tmp_path, "neo", torch.float32, torch.device("cpu"))


def test_a_model_with_wrong_numbers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check at load sees what the class does not know of: here a scale it is made to forget."""
    from dynaspec_cli.target import transformers_target
    from dynaspec_cli.target.load import load_target

    saved(config("granite"), tmp_path)
    monkeypatch.setattr(transformers_target, "_logit_transform", lambda _: (1.0, None))
    with pytest.raises(DynaSpecError, match="its logits differ by"):
        load_target(tmp_path, "granite", torch.float32, torch.device("cpu"))
    monkeypatch.undo()
    monkeypatch.setattr(
        transformers_target,
        "tree_mask",
        lambda parents: (torch.ones(3, 3).tril() > 0, torch.arange(3)),
    )
    with pytest.raises(DynaSpecError, match="its logits differ by"):
        load_target(tmp_path, "granite", torch.float32, torch.device("cpu"))

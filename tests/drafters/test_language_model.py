"""A language model as drafter: its rows are those of the plain text, its cache follows what the
target accepts, and what does not fit is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dynaspec_cli.config import GenerationConfig, SamplingConfig, ShortlistConfig, TreeConfig
from dynaspec_cli.drafters import language_model
from dynaspec_cli.drafters.language_model import LanguageModelDrafter
from dynaspec_cli.drafters.load import load_drafter
from dynaspec_cli.engine.api import Engine
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import Committed, DraftRows, Frontier, Target
from dynaspec_cli.target.load import load, load_transformers
from dynaspec_cli.target.tokenizer import TextTokenizer

PROMPT = [5, 17, 40, 41]
TREE = TreeConfig("eagle2", size=10, depth=4, width=3)
PATHS = ("native", "transformers")


def greedy(tokens: int, shortlist: str = "full", tree: TreeConfig = TREE) -> GenerationConfig:
    return GenerationConfig(
        tokens, sampling=SamplingConfig(0.0), tree=tree, shortlist=ShortlistConfig(shortlist)
    )


@pytest.fixture(scope="module")
def loaded(tiny_model_dir: Path) -> tuple[Target, TextTokenizer]:
    return load(str(tiny_model_dir), "float32", "cpu")


@pytest.fixture(scope="module")
def smaller(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder with another random model of the same tokenizer; arguments change its config."""

    def make(family: str = "llama", **changes: Any) -> Path:
        from transformers import AutoConfig, AutoModelForCausalLM

        folder = tmp_path_factory.mktemp("small-lm")
        sizes: dict[str, Any] = {
            "vocab_size": 400,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 256,
            "initializer_range": 0.3,
            "tie_word_embeddings": True,
        }
        config = AutoConfig.for_model(family, **sizes | changes)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_model_dir / name, folder / name)
        return folder

    return make


class Checked(LanguageModelDrafter):
    """Compares every row with a plain pass of its model over that row's context."""

    def __init__(self, model: Any, target: Target) -> None:
        super().__init__(model, target)
        self.rows_run = self.rows_checked = 0
        verify = model.verify

        def counted(state: Any, tree: Any, start: int = 0) -> Any:
            self.rows_run += tree.tokens.numel() - start
            return verify(state, tree, start)

        model.verify = counted

    def begin(self, prompt: Any, max_length: int) -> Any:
        self.context = (int(prompt[0]),)
        return super().begin(prompt, max_length)

    def extend(self, state: Any, committed: Committed) -> DraftRows:
        self.context += tuple(committed.tokens.tolist())
        self.nodes: list[tuple[int, ...]] = []
        rows = super().extend(state, committed)
        self.check(rows, [self.context])
        return rows

    def step(self, state: Any, frontier: Frontier) -> DraftRows:
        below = [
            (*(self.context if parent < 0 else self.nodes[parent]), token)
            for token, parent in zip(
                frontier.tokens.tolist(), frontier.parents.tolist(), strict=True
            )
        ]
        self.nodes += below
        rows = super().step(state, frontier)
        self.check(rows, below)
        return rows

    def check(self, rows: DraftRows, contexts: list[tuple[int, ...]]) -> None:
        assert rows.hidden.shape[0] == len(contexts)
        for row, context in zip(rows.hidden, contexts, strict=True):
            plain = self.model.prefill(self.model.begin(len(context)), torch.tensor(context))
            expected = self.model.norm(plain.features[-1:])[0] * self.model.head.multiplier
            if self.model.bit_exact:
                assert torch.equal(row, expected)
            torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)
            self.rows_checked += 1


def by_path(folder: Path, path: str) -> Any:
    if path == "native":
        return load(str(folder), "float32", "cpu")[0]
    return load_transformers(folder, "small", torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("who", ["itself", "another"])
def test_rows_are_those_of_plain_text(
    loaded: tuple[Target, TextTokenizer],
    tiny_model_dir: Path,
    smaller: Callable[..., Path],
    path: str,
    who: str,
) -> None:
    """Trees of several depths over a long text: every row of every pass. A model that drafts for
    itself has every draft accepted and runs each token once."""
    target, tokenizer = loaded
    model = by_path(tiny_model_dir if who == "itself" else smaller(), path)
    drafter = Checked(model, target)
    engine = Engine(target, tokenizer, drafter)
    config = greedy(60)
    plain = engine.complete(PROMPT, config, speculative=False)
    result = engine.complete(PROMPT, config)
    assert result.token_ids == plain.token_ids
    assert drafter.rows_checked > 3 * result.num_spec_steps
    if who == "itself":
        assert result.mean_acceptance_length > 3.5
        # A round runs the bonus token, and the last accepted node that no step had run.
        steps = drafter.rows_run - result.num_draft_tokens - len(PROMPT)
        assert steps < 3 * result.num_spec_steps


def test_a_chain_of_its_own_drafts_is_accepted_whole(
    loaded: tuple[Target, TextTokenizer], tiny_model_dir: Path
) -> None:
    target, tokenizer = loaded
    drafter = load_drafter(str(tiny_model_dir), target, tokenizer)
    engine = Engine(target, tokenizer, drafter)
    tree = TreeConfig("chain", size=5, depth=5, width=1)
    config = greedy(61, "full", tree)
    result = engine.complete(PROMPT, config)
    assert result.mean_acceptance_length == 6.0
    assert result.settings["drafter_kind"] == "language-model"
    assert result.settings["drafter_head"] == "own, 400 of 400 tokens"


@pytest.mark.parametrize("rows", [370, 464])
def test_vocabularies_of_unequal_rows(
    loaded: tuple[Target, TextTokenizer], smaller: Callable[..., Path], rows: int
) -> None:
    """The common rows are drafted from; a token without a row in the drafter is read all the
    same."""
    target, tokenizer = loaded
    drafter = load_drafter(str(smaller(vocab_size=rows)), target, tokenizer)
    assert drafter is not None
    assert drafter.head is not None
    assert drafter.head.weight.rows == min(rows, 400)
    engine = Engine(target, tokenizer, drafter)
    for shortlist in ("full", "nanospec"):
        config = greedy(40, shortlist)
        prompt = [*PROMPT, 399, 380]
        plain = engine.complete(prompt, config, speculative=False)
        assert engine.complete(prompt, config).token_ids == plain.token_ids


def test_text_beyond_the_drafters_context(
    loaded: tuple[Target, TextTokenizer], smaller: Callable[..., Path]
) -> None:
    """A prompt longer than its context, and text that outgrows it."""
    target, tokenizer = loaded
    drafter = load_drafter(str(smaller(max_position_embeddings=40)), target, tokenizer)
    engine = Engine(target, tokenizer, drafter)
    config = greedy(90)
    for prompt in (PROMPT, [i % 300 + 2 for i in range(70)]):
        plain = engine.complete(prompt, config, speculative=False)
        assert engine.complete(prompt, config).token_ids == plain.token_ids


def test_logits_of_families_with_a_factor(
    loaded: tuple[Target, TextTokenizer], smaller: Callable[..., Path]
) -> None:
    """Granite divides its logits: the rows that shortlists score carry the factor."""
    target, tokenizer = loaded
    folder = smaller("granite", logits_scaling=4.0)
    drafter = load_drafter(str(folder), target, tokenizer)
    assert isinstance(drafter, LanguageModelDrafter)
    state = drafter.begin(torch.tensor(PROMPT), 20)
    output: Any = None
    rows = drafter.extend(state, Committed(output, torch.arange(3), torch.tensor(PROMPT[1:])))
    model = drafter.model
    plain = model.prefill(model.begin(8), torch.tensor(PROMPT)).logits()[-1:]
    torch.testing.assert_close(
        drafter.head.weight.linear(rows.hidden.float()), plain, atol=1e-5, rtol=1e-4
    )


def test_a_head_with_a_bias_is_refused(
    loaded: tuple[Target, TextTokenizer], smaller: Callable[..., Path]
) -> None:
    target, tokenizer = loaded
    folder = smaller("phi", tie_word_embeddings=False, num_key_value_heads=2)
    with pytest.raises(DynaSpecError, match="LM head has a bias"):
        load_drafter(str(folder), target, tokenizer)


def changed_tokenizer(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    change(data)
    file.write_text(json.dumps(data), encoding="utf-8")
    return folder


def _swap_tokens(data: dict[str, Any]) -> None:
    vocab = data["model"]["vocab"]
    a, b = (next(t for t, i in vocab.items() if i == number) for number in (30, 50))
    vocab[a], vocab[b] = 50, 30


def _rename_special(data: dict[str, Any]) -> None:
    vocab = data["model"]["vocab"]
    vocab["<|end|>"] = vocab.pop("<|eos|>")
    data["added_tokens"][1]["content"] = "<|end|>"


def _drop_merges(data: dict[str, Any]) -> None:
    data["model"]["merges"] = data["model"]["merges"][:20]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (_swap_tokens, "token 30 is '.+' and '.+'"),
        (_rename_special, "token 1 is '<\\|end\\|>' and '<\\|eos\\|>'"),
        (_drop_merges, ".+ becomes \\[.+\\] and \\[.+\\] from its token"),
    ],
)
def test_another_tokenizer_is_refused_with_the_first_difference(
    loaded: tuple[Target, TextTokenizer],
    smaller: Callable[..., Path],
    change: Callable[[dict[str, Any]], None],
    difference: str,
) -> None:
    target, tokenizer = loaded
    folder = changed_tokenizer(smaller(), change)
    with pytest.raises(DynaSpecError, match=f"its tokenizer is not that of .*: {difference}"):
        load_drafter(str(folder), target, tokenizer)


def test_added_tokens_of_one_side_are_no_difference(
    loaded: tuple[Target, TextTokenizer], smaller: Callable[..., Path]
) -> None:
    target, tokenizer = loaded

    def add(data: dict[str, Any]) -> None:
        data["added_tokens"].append({**data["added_tokens"][1], "id": 400, "content": "<|pad|>"})

    folder = changed_tokenizer(smaller(vocab_size=401), add)
    assert load_drafter(str(folder), target, tokenizer) is not None


def test_damaged_weights_are_refused(
    loaded: tuple[Target, TextTokenizer], smaller: Callable[..., Path]
) -> None:
    from safetensors.torch import load_file, save_file

    target, tokenizer = loaded
    folder = smaller()
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DynaSpecError, match="down_proj"):
        load_drafter(str(folder), target, tokenizer)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DynaSpecError, match="no weights there"):
        load_drafter(str(folder), target, tokenizer)


@pytest.mark.parametrize("fault", ["commit", "parents"])
def test_a_mistake_in_the_bookkeeping_is_seen(
    loaded: tuple[Target, TextTokenizer],
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """Rows that are committed out of place, and nodes that hang below the wrong one."""
    target, tokenizer = loaded
    drafter = Checked(by_path(tiny_model_dir, "native"), target)
    if fault == "commit":
        monkeypatch.setattr(language_model.LanguageModelDrafter, "_commit", lambda *_: 0)
    else:
        own = language_model.LanguageModelDrafter.step

        def step(self: Any, state: Any, frontier: Frontier) -> DraftRows:
            parents = (frontier.parents - 1).clamp(min=-1)
            return own(self, state, Frontier(frontier.tokens, parents, frontier.source))

        monkeypatch.setattr(language_model.LanguageModelDrafter, "step", step)
    engine = Engine(target, tokenizer, drafter)
    config = greedy(40)
    with pytest.raises(AssertionError):
        engine.complete(PROMPT, config)

"""The real engine and the transformers peers on a tiny model, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dynaspec_cli.bench.engine_method import EngineCodec, EngineMethod, EngineReference
from dynaspec_cli.bench.peers import llama_cpp as llama_cpp_peer
from dynaspec_cli.bench.peers.llama_cpp import LlamaCppPeer
from dynaspec_cli.bench.peers.setting import PeerSetting
from dynaspec_cli.bench.peers.transformers import TransformersModel, TransformersPeer
from dynaspec_cli.bench.spec import parse_spec
from dynaspec_cli.config import SamplingConfig, ShortlistConfig, TreeConfig
from dynaspec_cli.engine.api import Engine
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.main import cli

PROMPTS = [
    {"id": "a", "task": "qa", "turns": ["The capital of France is"]},
    {"id": "b", "task": "qa", "turns": ["def add(a, b):", "print"]},
    {"id": "c", "task": "qa", "turns": ["left out by --limit"]},
    {"id": "d", "task": "code", "turns": ["return a + b"]},
    {"id": "e", "task": "code", "turns": ["Это просто"]},
]
SPECS = ("ar", "full+eagle2@4", "nanospec@48+chain@3", "transformers", "transformers-lookup")


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tiny_drafter_dir: Path
) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("bench")
    suite = folder / "mini.jsonl"
    suite.write_text(
        "\n".join(json.dumps(p, ensure_ascii=False) for p in PROMPTS), encoding="utf-8"
    )
    (folder / "map.json").write_text(json.dumps(list(range(2, 202))))
    specs = (*SPECS, f"{folder}/map.json@100+eagle2@4")
    args = ["bench", "--model", str(tiny_model_dir), "--drafter", str(tiny_drafter_dir)]
    args += ["--dtype", "float32", "--suite", str(suite), "--limit", "2", "--max-new-tokens", "12"]
    args += [word for spec in specs for word in ("--method", spec)]
    args += ["--check-exact", "--json", "--out", str(folder / "out"), "--threads", "1"]
    result = CliRunner().invoke(cli, args, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout), folder / "out"


def test_every_arm_answers_like_the_target(results: Any) -> None:
    summary, _ = results
    for row in summary["overall"]:
        assert row["prompts"] == 4
        assert row["tokens_per_second"] > 0
        if row["method"] != "ar":
            assert (row["identical"], row["ties"], row["mismatches"]) == (4, 0, 0), row["method"]


def test_traces_reach_the_summary(results: Any) -> None:
    summary, out = results
    rows = {r["method"]: r for r in summary["overall"]}
    full, nano = rows["full+eagle2@4"], rows["nanospec@48+chain@3"]
    assert (full["coverage"], full["mean_shortlist_size"]) == (1.0, 400.0)
    assert nano["mean_shortlist_size"] <= 48
    assert 0 < nano["coverage"] < 1
    fixed = next(row for name, row in rows.items() if "map.json" in name)
    assert fixed["mean_shortlist_size"] == 100
    assert 0 < fixed["coverage"] < 1
    assert 0 < fixed["recovery"] <= 1.5
    assert nano["recovery"] is None
    assert full["num_draft_tokens"] == 4 * full["num_spec_steps"]
    assert full["phase_ms"]["verify"] > 0
    assert full["coverage_by_script"]["code"]["positions"] > 0
    assert rows["ar"]["num_spec_steps"] == 0
    assert rows["transformers"]["mean_acceptance_length"] is None
    # Every arm's decode tokens follow one rule: the ids after the first pass.
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    for sample in samples:
        for turn in sample["turns"]:
            if sample["method"] != "transformers-lookup":
                assert turn["first_tokens"] == 1
            settled = sum(step["accepted"] + 1 for step in turn["steps"])
            if sample["method"] == "full+eagle2@4":
                assert settled >= len(turn["token_ids"]) - 1
    assert {len(s["turns"]) for s in samples if s["id"] == "b"} == {2}


def test_settings_name_the_parts(results: Any) -> None:
    summary, out = results
    settings = summary["settings"]
    assert settings["dtype"] == "float32"
    assert settings["tie_bound"] == 1e-3
    assert len(settings["head_hash"]) >= 16
    artifacts = json.loads((out / "provenance.json").read_text())["artifacts"]
    assert any(name.endswith("model.safetensors") for name in artifacts)


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path, tiny_drafter_dir: Path) -> Engine:
    return Engine.load(str(tiny_model_dir), dtype="float32", drafter=str(tiny_drafter_dir))


def test_reference_gaps_are_those_of_the_model(engine: Engine, tiny_model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    context = [0, 50, 60, 70]
    with torch.inference_mode():
        logits = model(torch.tensor([context])).logits[0, -1]
    ordered = logits.sort(descending=True).values
    gap, gaps = EngineReference(engine).gaps(context, [3, 9])
    assert gap == pytest.approx(float(ordered[0] - ordered[1]), abs=1e-4)
    assert gaps == pytest.approx([float(ordered[0] - logits[i]) for i in (3, 9)], abs=1e-4)


def test_a_method_without_drafter_is_refused(engine: Engine) -> None:
    bare = Engine(engine.target, engine.tokenizer, None)
    with pytest.raises(DynaSpecError, match="no drafter"):
        EngineMethod(parse_spec("full+eagle2"), bare, SamplingConfig(), TreeConfig())
    EngineMethod(parse_spec("ar"), bare, SamplingConfig(), TreeConfig())


def test_sampled_answers_repeat_with_their_seed(engine: Engine) -> None:
    sampling = SamplingConfig(temperature=1.0, seed=99)
    method = EngineMethod(parse_spec("full+eagle2@4"), engine, sampling, TreeConfig())
    a, b, c = (method.run([0, 50, 60], 12, seed).token_ids for seed in (1, 1, 2))
    assert a == b != c


def test_a_draft_head_in_another_format_leaves_the_answers(engine: Engine) -> None:
    spec, sampling, tree = parse_spec("full+eagle2@4"), SamplingConfig(), TreeConfig()
    stored = EngineMethod(spec, engine, sampling, tree)
    small = EngineMethod(spec, engine, sampling, tree, draft_head="int8")
    assert small.run([0, 50, 60], 12, 1).token_ids == stored.run([0, 50, 60], 12, 1).token_ids
    shortlist = engine.shortlist(ShortlistConfig("full", head="int8"), tree.depth)
    assert shortlist.head.weight.format == "int8"


def test_codec_starts_texts_and_tells_of_templates(engine: Engine) -> None:
    codec = EngineCodec(engine)
    ids = codec.encode("The capital", start=False)
    assert codec.decode(ids) == "The capital"
    assert codec.encode("The capital", start=True)[-len(ids) :] == ids
    assert not codec.has_chat_template


def test_chat_template_is_found(tiny_model_dir: Path, tmp_path: Path) -> None:
    import shutil

    from dynaspec_cli.target.tokenizer import load_tokenizer

    folder = tmp_path / "chat"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    )
    tokenizer = load_tokenizer(folder)
    assert tokenizer.chat_template is not None
    assert tokenizer.decode(tokenizer.chat([{"role": "user", "content": "hi"}])) == "user:hi;"


def peer_setting(engine: Engine, folder: Path, **changes: Any) -> PeerSetting:
    given: dict[str, Any] = {
        "model": str(folder),
        "dtype": engine.target.dtype,
        "device": engine.target.device,
        "threads": 1,
        "sampling": SamplingConfig(),
        "eos_ids": frozenset(engine.tokenizer.eos_ids),
        "context": 256,
    }
    return PeerSetting(**(given | changes))


def with_assistant(
    engine: Engine, folder: Path, assistant: Path
) -> tuple[TransformersPeer, TransformersPeer]:
    """Plain and assisted ``transformers`` on one model, ready to run."""
    setting = peer_setting(engine, folder, assistant=str(assistant))
    shared = TransformersModel(setting)
    plain = TransformersPeer("transformers", setting, shared)
    assisted = TransformersPeer("transformers-assisted", setting, shared)
    for peer in (plain, assisted):
        peer.prepare()
    return plain, assisted


def test_assisted_peer_counts_what_came_with_the_first_pass(
    engine: Engine, tiny_model_dir: Path
) -> None:
    plain, assisted = with_assistant(engine, tiny_model_dir, tiny_model_dir)
    ids = [0, 50, 60, 70]
    a, b = plain.run(ids, 16, 0), assisted.run(ids, 16, 0)
    assert a.token_ids == b.token_ids
    assert (a.first_tokens, a.decode_tokens) == (1, 15)
    # The assistant is the target itself, so that its whole draft comes with the first pass.
    assert b.first_tokens > 1
    assert b.decode_tokens == 16 - b.first_tokens


def test_an_assistant_may_have_a_vocabulary_of_its_own(
    engine: Engine, tiny_model_dir: Path, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    other = Tokenizer.from_file(str(tiny_model_dir / "tokenizer.json"))
    other.add_tokens(["one more", "and another"])
    config = LlamaConfig(
        vocab_size=other.get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=other).save_pretrained(tmp_path)
    plain, assisted = with_assistant(engine, tiny_model_dir, tmp_path)
    ids = [0, 50, 60, 70]
    assert plain.run(ids, 16, 0).token_ids == assisted.run(ids, 16, 0).token_ids
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(DynaSpecError, match=r"no tokenizer\.json"):
        assisted.prepare()


def test_assisted_peer_needs_an_assistant(engine: Engine, tiny_model_dir: Path) -> None:
    setting = peer_setting(engine, tiny_model_dir)
    with pytest.raises(UsageError, match="--assistant"):
        TransformersPeer("transformers-assisted", setting, TransformersModel(setting))


LLAMA_CPP = ("llama.cpp", "llama.cpp-lookup", "llama.cpp-draft")


@pytest.fixture
def tiny_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes tiny GGUF files of one vocabulary."""
    import sys

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "target"))
    monkeypatch.setenv("DYNASPEC_CACHE_DIR", str(tmp_path / "cache"))
    from tiny_gguf import write_tiny_gguf

    def make(seed: int = 0) -> Path:
        file = tmp_path / f"tiny-{seed}.gguf"
        write_tiny_gguf(file, seed=seed)
        return file

    yield make
    sys.modules.pop("tiny_gguf")


@pytest.mark.parametrize("kind", LLAMA_CPP)
def test_llama_cpp_answers_from_the_same_file(kind: str, tiny_gguf: Any) -> None:
    """Drafts of the model itself and of another are verified alike."""
    pytest.importorskip("llama_cpp")
    file = tiny_gguf()
    engine = Engine.load(str(file), dtype="float32", drafter="none")
    own = EngineMethod(parse_spec("ar"), engine, SamplingConfig(), TreeConfig())
    for assistant in (file, tiny_gguf(1)) if kind == "llama.cpp-draft" else (None,):
        name = None if assistant is None else str(assistant)
        peer = LlamaCppPeer(kind, peer_setting(engine, file, context=128, assistant=name))
        peer.prepare()
        for ids in ([0, 40, 50, 60], [0, 40, 50, 61, 62], [0, 40, 50, 60, 40, 50]):
            theirs, ours = peer.run(ids, 12, 0), own.run(ids, 12, 0)
            assert theirs.token_ids == ours.token_ids
            assert theirs.decode_tokens == len(theirs.token_ids) - 1
        with pytest.raises(DynaSpecError, match="--max-prompt-tokens"):
            peer.run([5] * 120, 12, 0)
        # Longer than one of its batches; beyond the context that the file names, too.
        longer = LlamaCppPeer(kind, peer_setting(engine, file, context=1024, assistant=name))
        longer.prepare()
        assert len(longer.run([i % 90 + 5 for i in range(700)], 12, 0).token_ids) >= 1


def test_llama_cpp_drafts_are_the_assistants(tiny_gguf: Any) -> None:
    """The model as its own assistant is right about every token."""
    pytest.importorskip("llama_cpp")
    file = str(tiny_gguf())
    engine = Engine.load(file, dtype="float32", drafter="none")
    peer = LlamaCppPeer("llama.cpp-draft", peer_setting(engine, file, context=128, assistant=file))
    peer.prepare()
    said = peer.run([0, 40, 50, 60], 20, 0).token_ids
    context = np.array([0, 40, 50, 60, *said[:5]], dtype=np.intc)
    assert peer._model.draft_model(context).tolist() == list(said[5:9])
    nearly_full = np.full(126, 5, dtype=np.intc)
    assert peer._model.draft_model(nearly_full).size == 2


def test_llama_cpp_is_refused_where_it_cannot_run(
    engine: Engine, tiny_model_dir: Path, tiny_gguf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = peer_setting(engine, tiny_model_dir)
    monkeypatch.setattr(llama_cpp_peer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DynaSpecError, match=r"\.\[peers\]"):
        LlamaCppPeer("llama.cpp", setting)
    monkeypatch.setattr(llama_cpp_peer.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(DynaSpecError, match="GGUF file"):
        LlamaCppPeer("llama.cpp-lookup", setting)
    setting = peer_setting(engine, tiny_gguf())
    with pytest.raises(UsageError, match=r"llama\.cpp-draft: expected --assistant FILE\.gguf"):
        LlamaCppPeer("llama.cpp-draft", setting)
    setting = peer_setting(engine, tiny_gguf(), assistant=str(tiny_model_dir))
    with pytest.raises(DynaSpecError, match="expected --assistant to be a model that comes as a"):
        LlamaCppPeer("llama.cpp-draft", setting)

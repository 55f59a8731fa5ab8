"""Shared fixtures: small tokenizers and a tiny random model, made once a session, no network."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dynaspec_cli

PACKAGE = str(Path(dynaspec_cli.__file__).parents[1])
"""Where the package under test lies: a checkout beside it may hold another."""

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A run in the background of a shell ignores Ctrl-C, and so would the children that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_progress_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test looks at stderr, a slow machine must not add a line of progress to it."""
    monkeypatch.setattr("dynaspec_cli.ui.lines.PATIENCE_S", 3600.0)


_TEXT = (
    "The capital of France is Paris. The quick brown fox jumps over the lazy dog. "
    "Die Straße ist naß, größer wird's nicht. Это просто пример текста. 这是一个例子。 "
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))  # 3\n 👩‍💻 and 🇫🇷 हिन्दी में"
)

_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> Any:
    """Byte-level BPE (GPT-2, Llama 3, Qwen) of 400 tokens: most non-ASCII characters are split."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|bos|>", "<|eos|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    return tokenizer


@pytest.fixture(scope="session")
def byte_fallback_tokenizer() -> Callable[..., Any]:
    """Word pieces with byte fallback; ``strip=True`` drops the first space as Llama 2 does."""
    from tokenizers import Tokenizer, decoders, models

    def make(strip: bool = False) -> Any:
        words = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
        words += ["▁", "▁the", "▁a", "cat", "s", ".", "1", "é", "👩", "\u200d", "💻", "▁▁", "\n"]
        vocab = {word: i for i, word in enumerate(words)}
        model = models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>")
        tokenizer = Tokenizer(model)
        steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if strip:
            steps.append(decoders.Strip(" ", 1, 0))
        tokenizer.decoder = decoders.Sequence(steps)
        tokenizer.add_special_tokens(["<s>", "</s>"])
        return tokenizer

    return make


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory, byte_level_tokenizer: Any) -> Path:
    """A 2-layer random Llama (vocabulary 400, hidden size 32, context 256) with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    config = LlamaConfig(
        vocab_size=byte_level_tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer, bos_token="<|bos|>", eos_token="<|eos|>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat_model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """``tiny_model_dir`` with a chat template."""
    import shutil

    folder = tmp_path_factory.mktemp("chat") / "tiny"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_drafter_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A random drafter of one layer for ``tiny_model_dir``: hardly accepted, exact all the same."""
    import torch
    from safetensors.torch import save_file

    from dynaspec_cli.drafters.config import DrafterConfig
    from dynaspec_cli.drafters.eagle import expected_shapes
    from dynaspec_cli.target.load import load

    target, _ = load(str(tiny_model_dir), "float32", "cpu")
    config = DrafterConfig(
        target_name=target.name,
        head_hash=target.head_hash(),
        vocab_size=target.vocab_size,
        hidden_size=target.hidden_size,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=48,
        activation="silu",
        eps=1e-6,
        attention_scale=8**-0.5,
        rope_theta=10000.0,
        window=0,
        feature_scale=1.0,
        has_qk_norm=False,
        has_qkv_bias=False,
        has_post_norms=False,
    )
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny-drafter")
    (folder / "config.json").write_text(config.to_json(), encoding="utf-8")
    save_file(
        {n: torch.randn(s, generator=generator) * 0.3 for n, s in expected_shapes(config).items()},
        folder / "model.safetensors",
    )
    return folder


@pytest.fixture(scope="session")
def program() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``program("generate", ...)`` in a process of its own, with the real engine."""

    def start(*args: str | Path, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DYNASPEC_")}
        environment |= {"PYTHONPATH": PACKAGE, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        return subprocess.run(
            [sys.executable, "-P", "-m", "dynaspec_cli", *map(str, args)],
            input=stdin,
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**environment, **env},
            timeout=300,
            check=False,
        )

    return start

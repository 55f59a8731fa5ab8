"""Text to ids: nothing but the text and the BOS token decides them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dynaspec_cli.target.tokenizer import load_tokenizer


def test_settings_of_a_training_run_do_not_cut_or_pad_prompts(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    plain = load_tokenizer(tiny_model_dir)
    folder = tmp_path / "tuned"
    shutil.copytree(tiny_model_dir, folder)
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    data["truncation"] = {
        "direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    data["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<pad>",
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    tuned = load_tokenizer(folder)
    for text in ("a", "A sentence of more than five tokens, by far.", ""):
        assert tuned.encode(text) == plain.encode(text)
        assert tuned.encode(text, special=False) == plain.encode(text, special=False)


TEXTS = ("A sentence, 123!", "naïve 東京 <|bos|> 😀", "")


def test_a_folder_is_read_by_transformers_once(
    tiny_model_dir: Path, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynaspec_cli.target import tokenizer as module

    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    calls: list[Path] = []
    real = module._transformers_tokenizer
    monkeypatch.setattr(
        module, "_transformers_tokenizer", lambda path: calls.append(path) or real(path)
    )
    first, again = load_tokenizer(folder), load_tokenizer(folder)
    assert calls == [folder]
    message = [{"role": "user", "content": "hi"}]
    assert again.chat(message) == first.chat(message)
    assert again.chat_template == first.chat_template
    assert (again.eos_ids, again.bos_id) == (first.eos_ids, first.bos_id)
    assert again.special_ids == first.special_ids
    for text in TEXTS:
        assert again.encode(text) == first.encode(text)
        assert again.decode(first.encode(text)) == first.decode(first.encode(text))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    changed = load_tokenizer(folder)  # any of its files counts
    assert len(calls) == 2
    assert changed.decode(changed.chat(message)) == "hi!"
    for kept in (cache_dir / "tokenizers").iterdir():
        kept.write_text(kept.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    load_tokenizer(folder)
    assert len(calls) == 3


def test_a_cache_that_cannot_be_written_costs_only_time(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DYNASPEC_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert load_tokenizer(tiny_model_dir).encode("a") == load_tokenizer(tiny_model_dir).encode("a")

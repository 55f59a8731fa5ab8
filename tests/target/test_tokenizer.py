"""Text to ids: nothing but the text and the BOS token decides them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

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

"""A small corpus of two tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.jsonl"
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "and", "Paris", "is"]
    generator = torch.Generator().manual_seed(0)
    lines = []
    for i in range(200):
        picks = torch.randint(len(words), (60,), generator=generator).tolist()
        lines.append(json.dumps({"task": "ab"[i % 2], "text": " ".join(words[j] for j in picks)}))
    path.write_text("\n".join(lines))
    return path

"""Prompts of a chat model, in its own template, at lengths that ``train-drafter`` keeps whole.

    python examples/chat_prompts.py MODEL prompts.jsonl chat-prompts.jsonl

Reads what ``prompts_from_texts.py`` writes. ``train-drafter`` cuts a long prompt at its end so that
enough of them are equally long; in a chat template the end is what opens the answer. So the text
inside is cut here instead. One prompt in eight stays as it is: a chat model is also asked to go on
with plain text.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from dynaspec_cli import Engine
from dynaspec_cli.training.prompts import kept_length

LONGEST = 640
PLAIN = 1 / 8


def wrapped(engine: Engine, text: str) -> list[int]:
    return engine.tokenizer.chat([{"role": "user", "content": text}])


def fitting(engine: Engine, text: str) -> str | None:
    """The longest beginning of ``text`` whose conversation has a length that is kept."""
    tokens = engine.tokenizer.encode(text, special=False)
    while tokens:
        length = len(wrapped(engine, text))
        excess = length - kept_length(min(length, LONGEST))
        if excess == 0:
            return text
        tokens = tokens[: -max(1, excess)]
        text = engine.tokenizer.decode(tokens, skip_special=False).rstrip("\ufffd").rstrip()
        tokens = engine.tokenizer.encode(text, special=False)
    return None


def main(model: str, source: str, out: str) -> None:
    engine = Engine.load(model, drafter="none")
    draw = random.Random(7)
    with (
        Path(source).open(encoding="utf-8") as lines,
        Path(out).open("w", encoding="utf-8") as file,
    ):
        for line in lines:
            row = json.loads(line)
            if draw.random() >= PLAIN:
                text = fitting(engine, row["text"].strip())
                if text is None:
                    continue
                ids = wrapped(engine, text)
                row["text"] = engine.tokenizer.decode(ids, skip_special=False)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Prompts as a user would type them, from training texts: what stands before an answer.

    python examples/prompts_from_texts.py prompts.jsonl mix.00.jsonl.gz mix.01.jsonl.gz ...

Reads JSON lines with "text" and "task", writes JSON lines of the same form for ``dynaspec
train-drafter --prompts``. A dialogue gives its first question without the roles, a translation pair
its first line, an article or a page an opening of random length or a request to summarise it, code
a function's head with its docstring. Which prompts are held out ``train-drafter`` decides by a hash
of the prompt itself, so a prompt made of a held-out text may be trained on.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

SENTENCE_END = re.compile(r'[.!?]["”]?\s')
FUNCTION = re.compile(r'((?:^|\n)def [^\n]*\n(?:[^\n]*\n)?\s+"""(?:.|\n){20,400}?""")')
LEAST_CHARACTERS = 20


def opening(text: str, size: int) -> str:
    """About ``size`` characters, to the end of a sentence where one is near."""
    ends = [match.end() for match in SENTENCE_END.finditer(text[:size])]
    if len(text) > size and ends and ends[-1] > size // 2:
        return text[: ends[-1]].rstrip()
    return text[:size]


def question(text: str, draw: random.Random) -> str:
    """Everything before the first answer, the roles taken out."""
    asked = text.split("\nAssistant:")[0].rstrip("\n")
    return re.sub(r"(^|\n\n)User: ", r"\1", asked)


def summary(text: str, draw: random.Random) -> str:
    asked = question(text, draw)
    parts = asked.split("\n\n", 1)
    return "Summarize: " + parts[1] if len(parts) == 2 and draw.random() < 0.6 else asked


def article(text: str, draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.55:
        return "Summarize: " + opening(text, draw.randint(900, 3000))
    if kind < 0.8:
        return opening(text, draw.randint(600, 2600))
    return opening(text, draw.randint(80, 400))


def page(text: str, draw: random.Random) -> str:
    return opening(text, draw.choice([300, 600, 1800]))


def foreign(text: str, draw: random.Random) -> str:
    return opening(text, draw.randint(60, 350))


def pair(text: str, draw: random.Random) -> str:
    return text.split("\n")[0]


def code(text: str, draw: random.Random) -> str:
    function = FUNCTION.search(text)
    if function and draw.random() < 0.6:
        return function.group(1).lstrip("\n") + "\n"
    part = text[: draw.randint(150, 900)]
    return part[: part.rfind("\n")] if "\n" in part[60:] else part


MAKERS: dict[str, Callable[[str, random.Random], str]] = {
    "instruct": question,
    "code_instruct": question,
    "math": question,
    "dialogue": question,
    "qa": question,
    "summarization": summary,
    "translation": pair,
    "prose": article,
    "docs": page,
    "multilingual": foreign,
    "code": code,
}


def prompts(files: list[str], draw: random.Random) -> Iterator[dict[str, str]]:
    for name in files:
        with gzip.open(name, "rt", encoding="utf-8") as lines:
            for line in lines:
                entry = json.loads(line)
                task = entry.get("task", "prose")
                if task not in MAKERS:
                    sys.exit(f"{name}: expected a task of {', '.join(MAKERS)}, got {task!r}")
                prompt = MAKERS[task](entry["text"], draw)
                if len(prompt) >= LEAST_CHARACTERS:
                    yield {"task": task, "text": prompt}


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit("usage: prompts_from_texts.py OUT.jsonl TEXTS.jsonl.gz ...")
    draw = random.Random(5)
    found = list(prompts(sys.argv[2:], draw))
    draw.shuffle(found)
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in found)
    Path(sys.argv[1]).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Wraps the prose of Markdown files: ``python tools/wrap_docs.py [--check] [FILE ...]``.

Paragraphs and list items are filled; tables, code, headings and HTML stay. Without files: those of
``documents``. ``--check`` writes nothing and names what would change.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 110

MADE = ("docs/guide/cli.md", "docs/guide/python.md", "docs/results/*/report.md")
"""Pages that are made from something else."""

_ITEM = re.compile(r"(\s*)([-*+]|\d+[.)]) +")
_LINE = re.compile(r"\s*(\||#+ |</?[a-zA-Z]|<!|!\[|>|\[[^\]]+\]:)")
_MARKER = re.compile(r" (?=(?:[-+*>#]|\d+[.)])(?: |$))")
_HARD = "\u2060"  # stands for a space at which a line must not begin anew


def documents() -> list[Path]:
    """Every Markdown file that people write."""
    made = {path for pattern in MADE for path in ROOT.glob(pattern)}
    folders = [ROOT / name for name in ("docs", "examples", "integrations", "tests")]
    found = [*ROOT.glob("*.md"), *(path for folder in folders for path in folder.rglob("*.md"))]
    return sorted(set(found) - made)


def wrap(text: str) -> str:
    """``text`` with its prose filled to ``WIDTH``."""
    return "\n".join(_wrapped(text.split("\n")))


def _wrapped(lines: list[str]) -> Iterator[str]:
    block: list[str] = []
    fenced = False

    def flush() -> Iterator[str]:
        if block:
            yield from _fill(block)
            block.clear()

    for line in lines:
        if line.lstrip().startswith("```"):
            fenced = not fenced
            yield from flush()
            yield line
        elif fenced or not line.strip() or _LINE.match(line):
            yield from flush()
            yield line
        elif not block and line.startswith("    ") and not _ITEM.match(line):
            yield line  # an indented block of code
        else:
            if _ITEM.match(line):
                yield from flush()
            block.append(line)
    yield from flush()


def _fill(block: list[str]) -> list[str]:
    """A paragraph, or a list item whose further lines stand under its text."""
    item = _ITEM.match(block[0])
    first = item.group(0) if item else re.match(r"\s*", block[0])[0]  # type: ignore[index]
    words = " ".join([block[0][len(first) :], *block[1:]]).split()
    text = _MARKER.sub(_HARD, " ".join(words))
    filled = textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_HARD, " ") for line in filled]


def main(arguments: list[str]) -> int:
    check = "--check" in arguments
    files = [Path(a) for a in arguments if a != "--check"] or documents()
    changed = 0
    for path in files:
        text = path.read_text(encoding="utf-8")
        wrapped = wrap(text)
        if wrapped != text:
            changed += 1
            print(f"{'would wrap' if check else 'wrapped'} {path}")
            if not check:
                path.write_text(wrapped, encoding="utf-8", newline="\n")
    return changed if check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""docs/guide/python.md from docstrings: ``python -m tests.docs.python_reference`` writes it, a test
compares it."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import dynaspec_cli

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "python.md"
WIDTH = 110
HEAD = """# Python

Made from docstrings by `python -m tests.docs.python_reference`; a test checks that it is current.

Everything is imported from `dynaspec_cli`, which imports no PyTorch before the first use.
[`examples/python_api.py`](../../examples/python_api.py) is a whole program:

```python
from dynaspec_cli import Engine, GenerationConfig, SamplingConfig

engine = Engine.load()  # the arguments are the command line's options
config = GenerationConfig(max_new_tokens=64, sampling=SamplingConfig(temperature=0.7))
result = engine.complete("The capital of France is", config)
print(result.text, result.tokens_per_second, result.mean_acceptance_length)
```
"""


def reference() -> str:
    return "\n".join([HEAD, *(_entry(name) for name in dynaspec_cli._PLACES)])


def _entry(name: str) -> str:
    thing = getattr(dynaspec_cli, name)
    parts = [f"## {name}", ""]
    if dataclasses.is_dataclass(thing):
        parts += _code(f"class {name}{_signature(thing)}")
    parts += [_prose(inspect.getdoc(thing) or ""), *_fields(thing)]
    for member, value in vars(thing).items():
        if member.startswith("_") or not _documented(value):
            continue
        function = value.__func__ if isinstance(value, classmethod) else value
        if isinstance(value, property):
            heading = [f"`{name}.{member}`", ""]
        else:
            heading = _code(f"{name}.{member}{_signature(function)}")
        parts += [f"### {member}", "", *heading, _prose(inspect.getdoc(value) or "")]
    return "\n".join(parts)


def _documented(value: Any) -> bool:
    kind = isinstance(value, classmethod | property) or inspect.isfunction(value)
    return kind and bool(inspect.getdoc(value))


def _signature(function: Any) -> str:
    """As written; annotations are texts, since the modules postpone their evaluation."""
    found = inspect.signature(function)
    shown, starred = [], False
    for p in found.parameters.values():
        if p.name in ("self", "cls"):
            continue
        if p.kind is p.KEYWORD_ONLY and not starred:
            shown.append("*")
            starred = True
        default = "" if p.default is p.empty else f" = {_default(p.default)}"
        shown.append(f"{p.name}: {p.annotation}{default}")
    returns = "" if inspect.isclass(function) else f" -> {found.return_annotation}"
    return f"({', '.join(shown)}){returns}"


def _default(value: Any) -> str:
    if "factory" in repr(value):
        return "..."
    return value.__name__ if inspect.isfunction(value) else repr(value)


def _code(text: str) -> list[str]:
    """A signature in a block, broken after its commas where it is long."""
    if len(text) > WIDTH - 10:
        head, _, rest = text.partition("(")
        inner, _, tail = rest.rpartition(")")
        depth, lines, line = 0, [], ""
        for char in inner:
            depth += (char in "([{") - (char in ")]}")
            line += char
            if char == "," and depth == 0:
                lines.append(line.strip())
                line = ""
        lines.append(line.strip() + ",")
        text = f"{head}(\n" + "\n".join(f"    {part}" for part in lines if part) + f"\n){tail}"
    return ["```python", text, "```", ""]


def _fields(thing: Any) -> list[str]:
    """Fields of a dataclass that have a text below them in the source."""
    if not dataclasses.is_dataclass(thing):
        return []
    source = textwrap.dedent(inspect.getsource(thing))
    found = re.findall(r'^    (\w+): [^\n]+\n    """(.+?)"""', source, re.M | re.S)
    rows = [_prose(f"- `{name}`: {' '.join(text.split())}", "  ").rstrip() for name, text in found]
    return ["\n".join(rows) + "\n"] if rows else []


def _prose(text: str, indent: str = "") -> str:
    """Paragraphs in Markdown at the width of the docs; indented blocks stay as they are."""
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    parts = []
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("    "):
            parts.append(f"```python\n{textwrap.dedent(paragraph)}\n```")
        else:
            parts.append(
                textwrap.fill(
                    " ".join(paragraph.split()),
                    WIDTH,
                    subsequent_indent=indent,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8", newline="\n")

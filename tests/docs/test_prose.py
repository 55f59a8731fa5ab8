"""Prose wraps at one width, links lead somewhere, and the README stays short."""

from __future__ import annotations

import ast
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import wrap_docs  # noqa: E402

CODE_WIDTH = 100
SLACK = 10
"""Columns that a line of a docstring may fall short of the next word: people wrap by eye."""

ELSEWHERE = {"docs/gguf.md"}
"""Pages of other projects that docstrings name."""

DOCUMENTS = wrap_docs.documents()


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_no_line_is_ragged(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert wrap_docs.wrap(text) == text, f"run: python tools/wrap_docs.py {name(path)}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_no_line_is_longer_than_the_width(path: Path) -> None:
    """Code in fences too; a row of a table cannot be wrapped."""
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    long = [
        at for at, line in lines if len(line) > wrap_docs.WIDTH and not line.strip().startswith("|")
    ]
    assert not long, f"{name(path)}: lines {long}"


def test_the_wrapper_leaves_alone_what_is_no_prose() -> None:
    text = (
        "# A heading\n\n| a table | with a cell |\n|---|---|\n\n```\ncode   here\n```\n\n"
        "    indented   code\n\n- an item\n  with more\n- another - with a dash\n\n1. first\n"
    )
    expected = text.replace("an item\n  with more", "an item with more")
    assert wrap_docs.wrap(text) == expected
    long = "word " * 40 + "- 3. end"
    lines = wrap_docs.wrap(long).split("\n")
    assert all(len(line) <= wrap_docs.WIDTH for line in lines)
    assert not any(re.match(r"- |\d\. ", line) for line in lines)
    assert wrap_docs.wrap("\n".join(lines)) == "\n".join(lines)
    assert wrap_docs.wrap("a sum is\n< 0.3, or more") == "a sum is < 0.3, or more"
    assert wrap_docs.wrap("text\n<br>\n#hash tag") == "text\n<br>\n#hash tag"


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 110


def anchors(path: Path) -> set[str]:
    """Names of a page's headings, as hosts of Markdown make them."""
    found = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{name(path)} links to {target}"
        if anchor:
            assert anchor in anchors(found), f"{name(path)} links to {target}"


def test_files_that_the_docs_name_exist() -> None:
    """In the docs, in docstrings and in comments."""
    places = [*DOCUMENTS, *(ROOT / "dynaspec_cli").rglob("*.py"), *(ROOT / "csrc").rglob("*.*")]
    for path in places:
        for target in re.findall(r"\bdocs/[\w./-]+\.md", path.read_text(encoding="utf-8")):
            assert target in ELSEWHERE or (ROOT / target).exists(), f"{name(path)} names {target}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for folder in ("guide", "methods", "internals"):
        for page in (ROOT / "docs" / folder).glob("*.md"):
            assert f"({folder}/{page.name})" in index


def docstrings(path: Path) -> Iterator[list[tuple[int, str]]]:
    """Numbered lines of each text that stands for itself: docstrings, and those below fields."""
    lines = path.read_text(encoding="utf-8").split("\n")
    for node in ast.walk(ast.parse("\n".join(lines))):
        body = getattr(node, "body", None)
        for inner in body if isinstance(body, list) else []:
            value = getattr(inner, "value", None)
            if isinstance(inner, ast.Expr) and isinstance(getattr(value, "value", None), str):
                assert inner.end_lineno is not None
                yield [(n, lines[n - 1]) for n in range(inner.lineno, inner.end_lineno + 1)]


def is_prose(line: str) -> bool:
    """No table, item, block of code or heading of one."""
    stripped = line.strip().strip('"')
    columns = "  " in stripped or re.match(r"[|*\[-]|\d+\. ", stripped) or "::" in stripped
    assigns = re.match(r"[\w.-]+ (=|:=) ", stripped)
    return bool(stripped) and not columns and not assigns


def test_no_docstring_is_ragged() -> None:
    ragged = []
    for path in sorted((ROOT / "dynaspec_cli").rglob("*.py")):
        for block in docstrings(path):
            first = len(block[0][1]) - len(block[0][1].lstrip())
            for (number, line), (_, below) in itertools.pairwise(block):
                indents = [len(x) - len(x.lstrip()) for x in (line, below)]
                if not (is_prose(line) and is_prose(below)) or indents != [first, first]:
                    continue  # indented below the docstring: a block of its own
                if len(line) + 1 + len(below.split()[0]) <= CODE_WIDTH - SLACK:
                    ragged.append(f"{name(path)}:{number}")
    assert ragged == []

"""docs/guide/combinations.md: every "yes" names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guide" / "combinations.md").read_text(encoding="utf-8")


def named() -> dict[int, list[tuple[str, str]]]:
    """(file, test) by number."""
    found = {}
    for item in re.split(r"\n(?=\d+\. )", PAGE)[1:]:
        number = int(item.split(".")[0])
        found[number] = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", item)
    return found


def test_the_named_tests_exist() -> None:
    assert len(named()) >= 15
    for number, tests in named().items():
        assert tests, number
        for file, test in tests:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert test in functions, f"{file} has no {test}"


def test_every_cell_is_a_yes_with_a_test_or_a_no() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|")][2:]
    numbers = set()
    for row in rows:
        for cell in row.strip("|").split("|")[1:]:
            cell = cell.strip()
            if cell in ("", "no"):
                continue
            found = re.fullmatch(r"yes \(([\d, ]+)\)", cell)
            assert found, f"{cell!r} in {row}"
            numbers |= {int(number) for number in found[1].split(",")}
    assert numbers == set(named())

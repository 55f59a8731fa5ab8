"""docs/internals/architecture.md is true: its files exist, and import what its arrows say."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "internals" / "architecture.md"
sys.path.insert(0, str(ROOT / "tests" / "unit"))
from test_imports import graph  # noqa: E402


def module(file: str) -> str:
    return "dynaspec_cli." + file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def steps() -> list[tuple[str, list[str]]]:
    """(file, files behind its arrow) of the walk."""
    text = PAGE.read_text(encoding="utf-8").split("## The way of a prompt")[1].split("\n## ")[0]
    found = []
    for item in re.split(r"\n(?=\d+\. )", text)[1:]:
        head = " ".join(item.split()).split(": ")[0]
        origin, _, rest = head.partition(" → ")
        found.append((re.findall(r"`([^`]+)`", origin)[0], re.findall(r"`([^`]+)`", rest)))
    return found


def test_the_way_of_a_prompt() -> None:
    imports = graph()
    walk = steps()
    assert len(walk) >= 12
    for origin, targets in walk:
        assert targets, origin
        for target in targets:
            assert module(target) in imports[module(origin)], f"{origin} does not import {target}"


def test_its_parts_are_connected() -> None:
    """Every file of the walk is reached from main.py, by arrows, a command's name or a protocol."""
    by_name = {"commands/generate.py"}
    by_protocol = {
        "shortlist/dynaspec.py", "tree/dyspec.py", "target/native_target.py", "ops/head.py",
    }  # fmt: skip
    reached = {"main.py", *by_name, *by_protocol}
    for origin, targets in steps():
        assert origin in reached, origin
        reached.update(targets)


def test_the_files_of_the_map_exist() -> None:
    for file in re.findall(r"`([\w/]+\.py|[\w]+/[\w/]*)`", PAGE.read_text(encoding="utf-8")):
        places = (ROOT / "dynaspec_cli" / file, ROOT / file, PAGE.parent / file)
        siblings = (ROOT / "dynaspec_cli").rglob(file) if "/" not in file else ()
        assert any(p.exists() for p in (*places, *siblings)), file

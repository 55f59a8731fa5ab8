"""Code that nothing calls goes: every function, class and method of the package is named somewhere
else in it."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2] / "dynaspec_cli"

CALLED_BY_OTHERS = {
    # click
    "convert", "format_commands", "get_command", "get_metavar", "list_commands",
    "split_envvar_value",
    # transformers' cache
    "get_mask_sizes", "get_max_length", "get_seq_length", "lazy_initialization",
    # torch modules and autograd functions
    "backward", "forward",
}  # fmt: skip


def defined_and_named() -> tuple[Counter[str], Counter[str]]:
    """(names that are defined, identifiers and attribute names that are read) in the package.
    Entries "module:attribute" of registries, and command modules, count as read."""
    defined: Counter[str] = Counter()
    read: Counter[str] = Counter()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                decorated = any("command" in ast.dump(d) for d in node.decorator_list)
                if not (node.name.startswith("__") or decorated):
                    defined[node.name] += 1
            elif isinstance(node, ast.Name):
                read[node.id] += 1
            elif isinstance(node, ast.Attribute):
                read[node.attr] += 1
            elif isinstance(node, ast.alias):
                read[node.name] += 1
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.update(re.findall(r"^[\w.]*:(?:\w+\.)*(\w+)$", node.value))
    return defined, read


def dead() -> set[str]:
    defined, read = defined_and_named()
    return {name for name in defined if not read[name]} - CALLED_BY_OTHERS


def test_nothing_is_dead() -> None:
    assert dead() == set()

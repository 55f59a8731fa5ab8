"""The package's imports form no circle: data flows one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "dynaspec_cli"
ROOT = Path(__file__).parents[2] / PACKAGE


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, modules: set[str]) -> Iterator[str]:
    """The package's modules that a file imports anywhere, in functions too; what only a type
    checker reads does not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in [tree, *ast.walk(tree)]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name for name in submodules if name in modules]
            yield from found
            if len(found) < len(submodules) and node.module in modules:
                yield node.module


def graph() -> dict[str, set[str]]:
    files = {module_name(path): path for path in ROOT.rglob("*.py")}
    return {name: set(imported(path, set(files))) - {name, PACKAGE} for name, path in files.items()}


def circles(edges: dict[str, set[str]]) -> list[frozenset[str]]:
    """Sets of modules that reach each other (strongly connected components of several), by Tarjan's
    algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[frozenset[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            component = frozenset(stack[at:])
            del stack[at:]
            if len(component) > 1:
                found.append(component)

    for name in sorted(edges):
        if name not in index:
            visit(name)
    return found


def test_circles_are_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}
    assert circles(edges) == [frozenset({"b", "c"})]


def test_no_circular_imports() -> None:
    assert circles(graph()) == []


FLOW = ("commands", "ui", "engine", "drafters", "shortlist", "tree", "sampling", "target", "ops")


def test_the_engine_does_not_know_the_command_line() -> None:
    """No module of the engine, or below it, imports what parses or prints."""
    for name, targets in graph().items():
        folder = name.split(".")[1] if "." in name else ""
        if folder in FLOW[2:]:
            above = {t for t in targets if t.split(".")[1] in ("commands", "ui", "bench")}
            assert not above, f"{name} imports {sorted(above)}"


def test_the_kernels_know_nothing_above_them() -> None:
    own = (f"{PACKAGE}.ops", f"{PACKAGE}.errors", f"{PACKAGE}.installing")
    for name, targets in graph().items():
        if name.startswith(own[0]):
            above = {target for target in targets if not target.startswith(own)}
            assert not above, f"{name} imports {sorted(above)}"

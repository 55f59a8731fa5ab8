"""The registry of names: what it lists, loads and refuses, and entries of other packages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.registry import Entry, Registry

GROUP = "dynaspec.tests"
BUILT_IN = {
    "join": Entry("joins paths", "posixpath:join"),
    "nested": Entry("an attribute of an attribute", "pathlib:Path.cwd"),
}

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes a package with entry points visible, as pip would."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(package: str, entries: dict[str, str], summary: str = "", code: str = "") -> None:
        folder = tmp_path / f"{package}-2.5.dist-info"
        folder.mkdir()
        lines = [f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.5"]
        lines += [f"Summary: {summary}"] if summary else []
        (folder / "METADATA").write_text("\n".join(lines) + "\n")
        points = "".join(f"{name} = {value}\n" for name, value in entries.items())
        (folder / "entry_points.txt").write_text(f"[{GROUP}]\n{points}")
        if code:
            (tmp_path / f"{package}.py").write_text(code)

    return make


def registry() -> Registry:
    return Registry("thing", "--thing", GROUP, BUILT_IN)


def test_built_in_entries() -> None:
    things = registry()
    assert things.names() == tuple(things) == ("join", "nested")
    assert things["join"].description == "joins paths"
    assert things["join"].package is None
    assert things.load("join")("a", "b") == "a/b"
    assert things.load("nested")() == Path.cwd()


def test_other_packages_add_entries(install: Install) -> None:
    install("zeta", {"zz": "zeta:make"}, "makes zeds", "def make(): return 7")
    install("alpha", {"aa": "alpha:make"})
    things = registry()
    assert things.names() == ("join", "nested", "aa", "zz")
    assert things["zz"] == Entry("makes zeds", "zeta:make", "zeta 2.5")
    assert things["aa"].description == "from alpha 2.5"
    assert things.load("zz")() == 7


def test_kinds_of_other_packages_are_asked_first(install: Install) -> None:
    install("zeta", {"zz": "zeta:make"})
    install("alpha", {"aa": "alpha:make"})
    assert registry().others_first() == ("aa", "zz", "join", "nested")


def test_listing_imports_nothing(install: Install) -> None:
    install("loud", {"loud": "loud:make"}, code="raise RuntimeError('imported')")
    things = registry()
    assert "loud" in things
    assert things.check("loud").package == "loud 2.5"
    assert "loud" not in sys.modules


@pytest.mark.parametrize(
    ("target", "code", "message"),
    [
        ("gone:make", "", "ModuleNotFoundError: No module named 'gone'"),
        ("halfway:absent", "make = 1", "AttributeError: .*absent"),
        ("halfway:make", "import no_such_thing", "ModuleNotFoundError: .*no_such_thing"),
        ("halfway:make", "1 / 0", "ZeroDivisionError: "),
        ("halfway", "", "ImportError: expected module:attribute, got 'halfway'"),
    ],
)
def test_an_entry_that_cannot_be_imported(
    install: Install, monkeypatch: pytest.MonkeyPatch, target: str, code: str, message: str
) -> None:
    monkeypatch.delitem(sys.modules, "halfway", raising=False)
    install("halfway", {"bad": target}, code=code)
    with pytest.raises(DynaSpecError, match=message) as caught:
        registry().load("bad")
    assert str(caught.value).startswith(f"--thing bad: halfway 2.5 gives this thing as {target}")
    assert registry().load("join")  # others are not touched


def test_our_own_faults_are_not_blamed_on_a_package() -> None:
    things = Registry("thing", "--thing", GROUP, {"bad": Entry("", "no_such_module:make")})
    with pytest.raises(ModuleNotFoundError):
        things.load("bad")


@pytest.mark.parametrize(
    ("name", "end"),
    [("oak", "got 'oak'"), ("jion", "got 'jion'; did you mean join?"), ("", "got ''")],
)
def test_unknown_names(name: str, end: str) -> None:
    for attempt in (registry().check, registry().load):
        with pytest.raises(UsageError) as caught:
            attempt(name)
        assert str(caught.value) == f"--thing: expected a thing of join, nested, {end}"
    with pytest.raises(UsageError, match=r"^--method x: expected a thing of"):
        registry().check("oak", "--method x")


def test_a_name_that_two_packages_give(install: Install) -> None:
    install("one", {"same": "one:make", "own": "posixpath:join"})
    install("two", {"same": "two:make", "join": "two:make"})
    things = registry()
    assert things.names() == ("join", "nested", "own", "same")
    with pytest.raises(DynaSpecError, match=r"one 2.5 and two 2.5 each give a thing called 'same'"):
        things.load("same")
    with pytest.raises(DynaSpecError, match=r"dynaspec itself and two 2.5 each give a thing"):
        things.check("join")
    assert things.load("own")("a", "b") == "a/b"


def test_needs_no_torch() -> None:
    code = "import sys, dynaspec_cli.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

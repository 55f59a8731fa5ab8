"""Things that are chosen by name, of which other packages can add more.

A registry lists names without importing what they stand for: an entry holds "module:attribute", and
``load`` imports it. So the command line knows every choice without importing PyTorch. Another
package adds an entry by an entry point of the registry's group in its own pyproject.toml::

    [project.entry-points."dynaspec.trees"]
    comb = "my_package.comb:create"
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import Any, Generic, NoReturn, TypeVar

from dynaspec_cli.errors import DynaSpecError, UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """``description``: one line for help texts. ``target``: "module:attribute" of what the name
    stands for. ``package``: who added it, "NAME VERSION"; None: built in."""

    description: str
    target: str
    package: str | None = None

    @property
    def owner(self) -> str:
        return "dynaspec itself" if self.package is None else self.package


class Registry(Mapping[str, Entry], Generic[T]):
    """The entries called ``option``'s values: those that are built in, in their order, then other
    packages', by name. ``T`` is what an entry's target is: for trees a factory.

    ``kind``: what one entry is, for messages; ``option``: the command line's option for it;
    ``group``: the entry point group. A name that two packages give can be listed but not used.
    """

    def __init__(self, kind: str, option: str, group: str, built_in: Mapping[str, Entry]) -> None:
        self.kind, self.option, self.group = kind, option, group
        self._built_in = dict(built_in)

    @cached_property
    def _offers(self) -> dict[str, list[Entry]]:
        """All entries of a name, whoever gives them; found once, at the first question."""
        offers = {name: [entry] for name, entry in self._built_in.items()}
        for point in sorted(metadata.entry_points(group=self.group), key=lambda p: p.name):
            offers.setdefault(point.name, []).append(_foreign(point))
        return offers

    def __getitem__(self, name: str) -> Entry:
        return self._offers[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._offers)

    def __len__(self) -> int:
        return len(self._offers)

    def names(self) -> tuple[str, ...]:
        """Every name, in the order of help texts."""
        return tuple(self._offers)

    def others_first(self) -> tuple[str, ...]:
        """Every name, other packages' before the built-in ones: the order in which kinds that
        recognise files are asked."""
        return tuple(sorted(self, key=lambda name: self[name].package is None))

    def check(self, name: str, where: str | None = None) -> Entry:
        """The entry of ``name``, which stands at ``where`` (None: at ``option``). Raises
        ``UsageError`` where there is none, with the names there are, and ``DynaSpecError`` where
        packages disagree about it."""
        if name not in self._offers:
            self._refuse(name, where or self.option)
        offers = self._offers[name]
        if len(offers) > 1:
            owners = " and ".join(entry.owner for entry in offers)
            raise DynaSpecError(
                f"{where or self.option}: {owners} each give a {self.kind} called {name!r}; "
                "uninstall all but one, or choose another"
            )
        return offers[0]

    def load(self, name: str) -> T:
        """What ``name`` stands for, imported now. Raises as ``check`` does, and ``DynaSpecError``
        where another package's entry cannot be imported."""
        entry = self.check(name)
        try:
            return _resolve(entry.target)
        except Exception as error:
            if entry.package is None:
                raise
            raise DynaSpecError(
                f"{self.option} {name}: {entry.package} gives this {self.kind} as {entry.target}, "
                f"which cannot be imported ({type(error).__name__}: {error}); mend or uninstall "
                "that package, or choose another"
            ) from error

    def _refuse(self, name: str, where: str) -> NoReturn:
        close = difflib.get_close_matches(name, self._offers, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        names = ", ".join(self._offers)
        raise UsageError(f"{where}: expected a {self.kind} of {names}, got {name!r}{hint}")


def _foreign(point: metadata.EntryPoint) -> Entry:
    """Another package's entry; its summary stands for a description, since nothing is imported."""
    if point.dist is None:
        return Entry("from another package", point.value, "an unnamed package")
    summary = (point.dist.metadata["Summary"] or "").strip()
    owner = f"{point.dist.name} {point.dist.version}"
    return Entry(summary or f"from {owner}", point.value, owner)


def _resolve(target: str) -> Any:
    module, colon, path = target.partition(":")
    if not colon:
        raise ImportError(f"expected module:attribute, got {target!r}")
    found: Any = importlib.import_module(module)
    for attribute in path.split("."):
        found = getattr(found, attribute)
    return found

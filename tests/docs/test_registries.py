"""The pages name every registry, and every built-in name of one."""

from __future__ import annotations

import pytest

from docs.test_prose import ROOT
from dynaspec_cli.drafters.registry import KINDS
from dynaspec_cli.registry import Registry
from dynaspec_cli.shortlist.registry import SHORTLISTS
from dynaspec_cli.target.registry import TARGETS
from dynaspec_cli.tree.registry import TREES
from dynaspec_cli.weights.registry import WEIGHT_FORMATS

REGISTRIES = {
    "docs/methods/trees.md": TREES,
    "docs/methods/shortlists.md": SHORTLISTS,
    "docs/guide/cli.md": WEIGHT_FORMATS,
    "docs/guide/heads.md": KINDS,
    "docs/guide/models.md": TARGETS,
}


def built_in(registry: Registry) -> list[str]:
    return [name for name, entry in registry.items() if entry.package is None]


@pytest.mark.parametrize(("page", "registry"), REGISTRIES.items(), ids=list(REGISTRIES))
def test_every_built_in_name_stands_in_its_page(page: str, registry: Registry) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    missing = [name for name in built_in(registry) if name not in text]
    assert not missing, f"{page} lacks {missing}"


@pytest.mark.parametrize("registry", REGISTRIES.values(), ids=lambda r: r.group)
def test_adding_your_own_tells_of_every_registry(registry: Registry) -> None:
    assert registry.group in (ROOT / "docs/guide/extending.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("registry", REGISTRIES.values(), ids=lambda r: r.group)
def test_every_entry_can_be_loaded(registry: Registry) -> None:
    for name in built_in(registry):
        assert registry.load(name) is not None
        assert registry[name].description

"""Shortlists by name. Importing this module imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dynaspec_cli.config import ShortlistConfig
from dynaspec_cli.errors import DynaSpecError, UsageError

if TYPE_CHECKING:
    from dynaspec_cli.checkpoints.bundle import ShortlistBundle
    from dynaspec_cli.protocols import Shortlist, Target

NAMES = ("full", "fr-spec", "vocabtrim", "pa-fr", "nanospec", "dynaspec")
DEFAULT = "dynaspec"
DEFAULT_SIZES = {
    "fr-spec": 32768,
    "vocabtrim": 32768,
    "pa-fr": 32768,
    "nanospec": 3072,
    "dynaspec": 1024,
}
"""Tokens where ``--shortlist-size`` is not given: the papers' own, except ``dynaspec``, which was
chosen by measurement (docs/methods/shortlists.md)."""
NEEDS_BUNDLE = ("fr-spec", "vocabtrim", "pa-fr", "dynaspec")
PA_FR_DECAY = 0.8
MAP_SUFFIXES = (".pt", ".pth", ".bin", ".json", ".txt")


def parse(method: str) -> tuple[str | None, Path | None]:
    """(name, file or folder) of a ``--shortlist`` value: a name, a path, or NAME=FOLDER, which is a
    bundle used for another method than it was made for. Refuses anything else."""
    if method in NAMES:
        return method, None
    name, equals, folder = method.partition("=")
    if equals and name in NEEDS_BUNDLE and Path(folder).is_dir():
        return name, Path(folder)
    if Path(method).exists():
        return None, Path(method)
    raise UsageError(
        f"--shortlist: expected {', '.join(NAMES)}, a bundle's folder, a token-map file, or "
        f"NAME=FOLDER to use a bundle for another method, got {method!r}"
    )


def default_for(target: Target) -> str:
    """The method where none is asked for: ``DEFAULT`` where the packaged bundle fits ``target``,
    else ``nanospec``, which needs no bundle."""
    from dynaspec_cli.shortlist import factory

    return "nanospec" if factory.packaged_bundle(target) is None else DEFAULT


def create(
    config: ShortlistConfig,
    target: Target,
    bundle: ShortlistBundle | None = None,
    *,
    depth: int = 6,
    mass: str = "constant",
    int8: bool = False,
    prefill_positions: int | None = None,
    use_router: bool = True,
) -> Shortlist:
    """The shortlist that ``config`` names, for ``target``.

    ``bundle``: token orders, clusters and router for the methods that need them; None takes the
    packaged one where it fits the target. ``depth``: draft steps a round, over which the mean
    budget of position-aware methods is taken. ``mass``: shortlist/mass.py. ``int8``: the draft head
    in 8 bits. ``prefill_positions``: prompt positions whose top tokens enter the context (None: the
    method's default). ``use_router`` False: the frequent tokens take the share of ``dynaspec``'s
    budget that the routed clusters would have.
    """
    from dynaspec_cli.shortlist import factory

    name, path = parse(config.method)
    options = factory.Options(depth, mass, int8, prefill_positions, use_router)
    if path is not None:
        if path.is_file():
            return factory.from_token_map(path, config.size, target, options)
        loaded = factory.load_bundle(path, target)
        method = name or loaded.config.method
        return factory.from_bundle(method, config.size, target, loaded, options)
    if config.method in NEEDS_BUNDLE:
        from dynaspec_cli.checkpoints.bundle import HOW_TO_BUILD

        found = bundle if bundle is not None else factory.packaged_bundle(target)
        if found is None:
            raise DynaSpecError(
                f"--shortlist {config.method}: no token counts for {target.name} are known; make "
                f"them with {HOW_TO_BUILD}, then give --shortlist DIR; nanospec and full need none"
            )
        found.check_target(target)
        return factory.from_bundle(config.method, config.size, target, found, options)
    return factory.untrained(config.method, config.size, target, options)

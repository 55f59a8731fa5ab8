"""Makes the shortlists that names.py lists."""

from __future__ import annotations

from dataclasses import replace

from dynaspec_cli.checkpoints.bundle import HOW_TO_BUILD, ShortlistBundle
from dynaspec_cli.config import ShortlistConfig
from dynaspec_cli.drafters.head import target_head
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import DrafterHead, Shortlist, Target
from dynaspec_cli.shortlist import factory
from dynaspec_cli.shortlist.names import DEFAULT, NEEDS_BUNDLE, parse


def default_for(target: Target, head: DrafterHead) -> str:
    """The method that "auto" stands for: ``DEFAULT`` where the packaged bundle fits ``target`` and
    the drafter reads its head, else ``nanospec``, which needs no bundle."""
    fits = not head.own and factory.packaged_folder(target) is not None
    return DEFAULT if fits else "nanospec"


def create(
    config: ShortlistConfig,
    target: Target,
    bundle: ShortlistBundle | None = None,
    *,
    head: DrafterHead | None = None,
    depth: int = 6,
    mass: str = "constant",
    int8: bool = False,
    prefill_positions: int | None = None,
    use_router: bool = True,
) -> Shortlist:
    """The shortlist that ``config`` names, for ``target``.

    ``bundle``: token orders, clusters and router for the methods that need them; None takes the
    packaged one where it fits the target. ``head``: what the drafter's rows are scored with (None:
    the target's); of a head that lacks tokens, those it has are chosen among. ``depth``: draft
    steps a round, over which the mean budget of position-aware methods is taken. ``mass``:
    shortlist/mass.py. ``int8``: the draft head in 8 bits. ``prefill_positions``: prompt positions
    whose top tokens enter the context (None: the method's default). ``use_router`` False: the
    frequent tokens take the share of ``dynaspec``'s budget that the routed clusters would have.
    """
    head = head or target_head(target)
    if config.method == "auto":
        config = replace(config, method=default_for(target, head))
    name, path = parse(config.method)
    options = factory.Options(head, depth, mass, int8, prefill_positions, use_router)
    if path is not None:
        if path.is_file():
            return factory.from_token_map(path, config.size, target, options)
        loaded = factory.load_bundle(path, target)
        method = name or loaded.config.method
        return factory.from_bundle(method, config.size, target, loaded, options)
    if config.method in NEEDS_BUNDLE:
        found = bundle if bundle is not None else factory.packaged_bundle(target)
        if found is None:
            raise DynaSpecError(
                f"--shortlist {config.method}: no token counts for {target.name} are known; make "
                f"them with {HOW_TO_BUILD}, then give --shortlist DIR; nanospec and full need none"
            )
        found.check_target(target)
        return factory.from_bundle(config.method, config.size, target, found, options)
    return factory.untrained(config.method, config.size, target, options)

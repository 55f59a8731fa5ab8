"""The shortlists by name, and the form of ``--shortlist``. Importing this module imports no torch.

A shortlist's module has ``create(request: ShortlistRequest) -> Shortlist``, and so has one that
another package gives by an entry point of the group "dynaspec.shortlists".
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dynaspec_cli.config import ShortlistConfig
from dynaspec_cli.errors import UsageError
from dynaspec_cli.registry import Entry, Registry

if TYPE_CHECKING:
    from dynaspec_cli.checkpoints.bundle import ShortlistBundle
    from dynaspec_cli.protocols import DrafterHead, Shortlist, Target
    from dynaspec_cli.shortlist.request import ShortlistFactory


def _own(module: str, description: str) -> Entry:
    return Entry(description, f"dynaspec_cli.shortlist.{module}:create")


SHORTLISTS: Registry[ShortlistFactory] = Registry(
    "shortlist",
    "--shortlist",
    "dynaspec.shortlists",
    {
        "full": _own("full", "every token of the head"),
        "fr-spec": _own("frequency", "the most frequent tokens of a corpus (FR-Spec)"),
        "vocabtrim": _own(
            "frequency", "the most frequent tokens of text that the target wrote (VocabTrim)"
        ),
        "pa-fr": _own("frequency", "fr-spec, fewer tokens the deeper the draft (DynaSpec, v1)"),
        "nanospec": _own(
            "nanospec", "prompt, the target's best tokens so far, drafted tokens (NanoSpec)"
        ),
        "dynaspec": _own(
            "dynaspec", "frequent tokens, those of the context, and routed clusters (DynaSpec)"
        ),
    },
)

DEFAULT = "dynaspec"
WITHOUT_BUNDLE = ("full", "nanospec")
"""Those that read nothing but the head."""
DEFAULT_SIZES = {
    "fr-spec": 32768,
    "vocabtrim": 32768,
    "pa-fr": 32768,
    "nanospec": 3072,
    "dynaspec": 1024,
}
"""Tokens where ``--shortlist-size`` is not given: the papers' own, except ``dynaspec``, which was
chosen by measurement (docs/methods/shortlists.md)."""
MAP_SUFFIXES = (".pt", ".pth", ".bin", ".json", ".txt")


def parse(method: str) -> tuple[str | None, Path | None]:
    """(name, file or folder) of a ``--shortlist`` value: a name ("auto" too), a path, or
    NAME=FOLDER, which is a bundle used for another method than it was made for. Refuses anything
    else, and a name that packages disagree about."""
    if method == "auto":
        return method, None
    if method in SHORTLISTS:
        SHORTLISTS.check(method)
        return method, None
    name, equals, folder = method.partition("=")
    takes_bundle = name in SHORTLISTS and name not in WITHOUT_BUNDLE
    if equals and takes_bundle and Path(folder).is_dir():
        return name, Path(folder)
    if Path(method).exists():
        return None, Path(method)
    raise UsageError(
        f"--shortlist: expected {', '.join(SHORTLISTS)}, a bundle's folder, a token-map file, or "
        f"NAME=FOLDER to use a bundle for another method, got {method!r}"
    )


def default_for(target: Target, head: DrafterHead) -> str:
    """The method that "auto" stands for: ``DEFAULT`` where the packaged bundle fits ``target`` and
    the drafter reads its head, else ``nanospec``, which needs no bundle."""
    from dynaspec_cli.shortlist.packaged import packaged_folder

    fits = not head.own and packaged_folder(target) is not None
    return DEFAULT if fits else "nanospec"


def create(
    config: ShortlistConfig,
    target: Target,
    bundle: ShortlistBundle | None = None,
    *,
    head: DrafterHead | None = None,
    depth: int = 6,
) -> Shortlist:
    """The shortlist that ``config`` names, for ``target``.

    ``bundle``: token orders, clusters and router for the methods that need them; None takes the
    packaged one where it fits the target. ``head``: what the drafter's rows are scored with (None:
    the target's); of a head that lacks tokens, those it has are chosen among. ``depth``: draft
    steps a round, over which the mean budget of position-aware methods is taken. Raises
    ``UsageError`` and ``DynaSpecError`` for what cannot be made, in one line.
    """
    from dynaspec_cli.drafters.head import target_head
    from dynaspec_cli.shortlist.packaged import load_bundle
    from dynaspec_cli.shortlist.request import ShortlistRequest
    from dynaspec_cli.weights.registry import WEIGHT_FORMATS

    head = head or target_head(target)
    if config.method == "auto":
        config = replace(config, method=default_for(target, head))
    method, path = parse(config.method)
    form = None if config.head == "stored" else WEIGHT_FORMATS.load(config.head)
    token_map = None
    if path is not None and path.is_file():
        method, token_map = "fr-spec", path
    elif path is not None:
        bundle = load_bundle(path, target)
        method = method or bundle.config.method
    elif bundle is not None:
        bundle.check_target(target)
    assert method is not None
    request = ShortlistRequest(method, config.size, target, head, depth, bundle, token_map, form)
    return SHORTLISTS.load(method)(request)

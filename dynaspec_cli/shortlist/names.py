"""The shortlists' names, default sizes and the form of ``--shortlist``; imports no torch.

registry.py makes what is named here.
"""

from __future__ import annotations

from pathlib import Path

from dynaspec_cli.errors import UsageError

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
    """(name, file or folder) of a ``--shortlist`` value: a name ("auto" too), a path, or
    NAME=FOLDER, which is a bundle used for another method than it was made for. Refuses anything
    else."""
    if method in NAMES or method == "auto":
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

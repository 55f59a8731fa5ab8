"""What a folder of a run was made from, as a digest in a file of it."""

from __future__ import annotations

from pathlib import Path

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.cache_dir import write_text


def claim(stamp: Path, digest: str, refusal: str, earlier: str | None = None) -> None:
    """Mark the folder of ``stamp`` as made from what ``digest`` is of. Raises DynaSpecError with
    ``refusal`` where it is another's; ``earlier``: the digest of the same by an older rule."""
    if stamp.is_file() and stamp.read_text(encoding="utf-8") not in (digest, earlier):
        raise DynaSpecError(refusal)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    write_text(stamp, digest)

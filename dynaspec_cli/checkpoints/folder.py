"""Writing a checkpoint folder so that it appears complete or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from dynaspec_cli.errors import DynaSpecError

CONFIG_FILE = "config.json"
CARD_FILE = "README.md"


def write_folder(
    folder: Path,
    write: Mapping[str, Callable[[Path], None]],
    replaces: Callable[[Path], bool],
    parts: tuple[str, ...],
    what: str,
) -> None:
    """Write the files of ``write`` (name: a function of the path to write), config.json among them,
    as ``folder``. ``replaces`` says whether a folder that is not empty may be written over; its
    ``parts`` go first. Raises DynaSpecError; ``what`` is written, for messages.
    """
    visible = folder.is_dir() and any(not p.name.startswith(".") for p in folder.iterdir())
    if (visible and not replaces(folder)) or folder.is_file():
        raise DynaSpecError(f"{folder}: exists and is no {what}; choose an empty or new folder")
    staging: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        for name, writer in write.items():
            writer(staging / name)
        folder.mkdir(exist_ok=True)
        mode = 0o666 & ~_umask()  # safetensors writes for the owner alone
        # Without config.json a folder is no checkpoint: it goes first and comes last, so that a
        # kill in between leaves none rather than one of old and new parts.
        for name in (CONFIG_FILE, *parts):
            (folder / name).unlink(missing_ok=True)
        for path in sorted(staging.iterdir(), key=lambda path: path.name == CONFIG_FILE):
            path.chmod(mode)
            path.replace(folder / path.name)
    except OSError as error:
        raise DynaSpecError(f"{folder}: the {what} could not be written ({error})") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def text(content: str) -> Callable[[Path], None]:
    """Writes ``content``."""

    def write(path: Path) -> None:
        path.write_text(content, encoding="utf-8")

    return write


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Model files of the hub: listed, downloaded, or taken from the hub's cache when it is out of
reach."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from dynaspec_cli.checkpoints.hub import asking, fetch
from dynaspec_cli.errors import DynaSpecError

FOLDER_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt")
QUANTISATION = re.compile(
    r"(?:^|[-._])(?P<tag>(?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|F16|BF16|F32))"
    r"(?P<shard>-\d{5}-of-\d{5})?\.gguf$",
    re.IGNORECASE,
)
"""How the files of a GGUF repository end: "-Q4_K_M.gguf", ".q4_0.gguf",
"-Q8_0-00001-of-00002.gguf"."""


class Hub(Protocol):
    """What is asked of the hub."""

    def files(self, name: str) -> list[str]:
        """Paths of a repository's files; of those in the cache where the hub is out of reach."""
        ...

    def download(self, name: str, files: Sequence[str]) -> Path:
        """The folder that holds these files."""
        ...

    def folder(self, name: str) -> Path:
        """The folder of a repository that is a model of ``transformers``, its weights once."""
        ...


class HuggingFaceHub:
    """The hub of ``huggingface_hub``; its variables (``HF_HUB_OFFLINE``, …) hold."""

    def __init__(self, option: str) -> None:
        self._option = option

    def files(self, name: str) -> list[str]:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

        with asking(f"{self._option} {name}"):
            try:
                return list(HfApi().list_repo_files(name))
            except (OfflineModeIsEnabled, ConnectionError, OSError) as error:
                if _is_answer(error):
                    raise
                try:
                    folder = Path(snapshot_download(name, local_files_only=True))
                except LocalEntryNotFoundError:
                    raise error from None
                paths = (path for path in folder.rglob("*") if path.is_file())
                return [path.relative_to(folder).as_posix() for path in paths]

    def download(self, name: str, files: Sequence[str]) -> Path:
        return fetch(name, files, f"{self._option} {name}", never=())

    def folder(self, name: str) -> Path:
        return fetch(name, FOLDER_FILES, f"{self._option} {name}")


def _is_answer(error: Exception) -> bool:
    """Did the hub answer, so that its cache says no more?"""
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(error, HfHubHTTPError)


def gguf_file(hub: Hub, name: str, quantisation: str, option: str) -> Path:
    """The GGUF file of a repository's ``quantisation`` ("Q4_K_M"); of a split file the first shard,
    with the others beside it.

    Raises ``DynaSpecError`` where the repository has none, or several.
    """
    found = _by_quantisation(hub.files(name))
    wanted = found.get(quantisation.upper())
    if wanted is None:
        raise DynaSpecError(
            f"{option} {name}:{quantisation}: no such file there; {_offered(name, found)}"
        )
    models = sorted(wanted)
    if len(models) > 1:
        raise DynaSpecError(
            f"{option} {name}:{quantisation}: {len(models)} models ({', '.join(models[:3])}); "
            "download one and give its file"
        )
    shards = sorted(wanted[models[0]])
    return hub.download(name, shards) / shards[0]


def offered_files(hub: Hub, name: str) -> str | None:
    """What to give for a repository that holds GGUF files; None where it holds none."""
    found = _by_quantisation(hub.files(name))
    return _offered(name, found) if found else None


def _by_quantisation(files: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Quantisation -> model (the path without shard and ending) -> its files."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in files:
        match = QUANTISATION.search(path)
        if match is None or path.rpartition("/")[2].lower().startswith("mmproj"):
            continue
        models = found.setdefault(match["tag"].upper(), {})
        models.setdefault(path[: match.end("tag")], []).append(path)
    return found


def _offered(name: str, found: dict[str, dict[str, list[str]]]) -> str:
    if not found:
        return "the repository holds no GGUF files"
    tags = sorted(found)
    more = f" and {len(tags) - 6} more" if len(tags) > 6 else ""
    return f"give one of its files, as {name}:{tags[0]} (there are {', '.join(tags[:6])}{more})"

"""Checkpoints from and to the Hugging Face hub, with every way this can fail said in one line.

``HF_HUB_OFFLINE``, ``HF_TOKEN``, ``HF_HOME`` and the cache are huggingface_hub's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from dynaspec_cli.errors import DynaSpecError

SAFETENSORS = ("*.safetensors",)
PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin")
"""The weights in one form each; repositories may hold both."""
NEVER = ("*/*", "consolidated*")
"""Second copies of the weights: original/*, consolidated.safetensors."""
DRAFTER_FILES = (
    "*.json",
    "*.txt",
    "*.jinja",
    "tokenizer.model",
    "README.md",
    "LICENSE*",
    "NOTICE*",
)


def fetch(name: str, patterns: Sequence[str], what: str, never: Sequence[str] = NEVER) -> Path:
    """The folder of a repository's files that match ``patterns`` and none of ``never`` (which by
    default is what lies in folders below), fetched or from the cache. ``what`` begins an error: an
    option with its value."""
    from huggingface_hub import snapshot_download

    with asking(what):
        return Path(
            snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=list(never))
        )


@contextlib.contextmanager
def asking(what: str) -> Iterator[None]:
    """The hub's errors in one line each, which ``what`` begins."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        yield
    except HFValidationError as error:
        raise DynaSpecError(f"{what}: no such folder, and no valid hub name") from error
    except GatedRepoError as error:
        raise DynaSpecError(
            f"{what}: access on the hub is restricted; accept its terms there and log in with "
            "'hf auth login'"
        ) from error
    except RepositoryNotFoundError as error:
        raise DynaSpecError(
            f"{what}: no such folder, and no such repository on the hub (or a private one: log in "
            "with 'hf auth login')"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        if constants.HF_HUB_OFFLINE:
            raise DynaSpecError(
                f"{what}: no such folder, and not in the hub's cache; HF_HUB_OFFLINE is set, so "
                "nothing is fetched"
            ) from error
        raise DynaSpecError(
            f"{what}: no such folder, not in the hub's cache, and the hub cannot be reached "
            f"({_first_line(error)}); check the name and the network"
        ) from error


def fetch_drafter(name: str, what: str) -> Path:
    """The folder of a drafter's repository with one form of its weights: safetensors where it has
    them, else the pickled ones."""
    folder = fetch(name, (*DRAFTER_FILES, *SAFETENSORS), what)
    if any(folder.glob("*.safetensors")):
        return folder
    return fetch(name, (*DRAFTER_FILES, *PICKLED), what)


def push(folder: Path, name: str, private: bool, message: str) -> str:
    """Upload a folder's files as repository ``name``, made where there is none; its address."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    what = f"push to the hub as {name}"
    if constants.HF_HUB_OFFLINE:
        raise DynaSpecError(f"{what}: HF_HUB_OFFLINE is set, so nothing is sent")
    try:
        api = HfApi()
        made = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message=message, ignore_patterns=".*"
        )
        return str(made)
    except HFValidationError as error:
        raise DynaSpecError(f"{what}: no valid hub name") from error
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise DynaSpecError(
            f"{what}: refused or not reachable ({_first_line(error)}); log in with 'hf auth "
            "login', with a token that may write"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

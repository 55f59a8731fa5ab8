"""Shortlist bundles: token orders, clusters and router of one target, as a folder of safetensors
and JSON.

    config.json           what it was made for and how (BundleConfig)
    clusters.safetensors  "frequency" int32 [F], "generated" int32 [G]: token ids by count;
                          "cluster_tokens" int32 [V], "cluster_offsets" int32 [M+1]: token ids
                          cluster by cluster
    router.safetensors    "w1" [h, i], "b1" [h], "w2" [M, h or d], "b2" [M]; a linear router has
                          no "w1" and "b1"
    README.md             model card

Nothing is pickled. A bundle is bound to a head by its hash and refused for another.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dynaspec_cli.checkpoints.folder import CARD_FILE, CONFIG_FILE, text, write_folder
from dynaspec_cli.checkpoints.hub import fetch, push
from dynaspec_cli.checkpoints.vocab_map import check_ids
from dynaspec_cli.errors import DynaSpecError

CLUSTERS_FILE = "clusters.safetensors"
ROUTER_FILE = "router.safetensors"
HUB_FILES = (CONFIG_FILE, CLUSTERS_FILE, ROUTER_FILE, CARD_FILE)
SCHEMA = 1
METHODS = ("dynaspec", "fr-spec", "vocabtrim", "pa-fr")
ROUTERS = ("none", "centroid", "mlp", "token", "output")

HOW_TO_BUILD = (
    "dynaspec build-clusters --model MODEL --corpus FILE --out DIR (MODEL as given to this command)"
)
"""For errors. A target knows its name only, which need not be what ``--model`` was given."""

ROUTER_SIGNATURES = {
    "mlp": ("w1", "b1", "w2", "b2"),
    "token": ("w1", "b1", "w2", "b2"),
    "centroid": ("w2", "b2"),
    "output": ("w2", "b2"),
}


class BundleTarget(Protocol):
    """The part of a target that what was made for it is checked against."""

    name: str
    vocab_size: int
    hidden_size: int

    def head_hash(self) -> str: ...


@dataclass(frozen=True)
class BundleConfig:
    """``config.json``. ``split``: how ``dynaspec`` divides its budget (shortlist/dynaspec.py);
    ``training``: facts for the model card (corpus, tokens counted, coverage measured, seconds)."""

    method: str
    target: str
    vocab_size: int
    hidden_size: int
    head_hash: str
    router: str = "none"
    num_clusters: int = 0
    shortlist_size: int = 4096
    split: dict[str, float] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise DynaSpecError(
                f"bundle: schema {self.schema} is not readable by this version, which reads "
                f"{SCHEMA}"
            )
        for name, value, known in (
            ("method", self.method, METHODS),
            ("router", self.router, ROUTERS),
        ):
            if value not in known:
                raise DynaSpecError(
                    f"bundle: {name}: expected one of {', '.join(known)}, got {value!r}"
                )


@dataclass(frozen=True)
class ShortlistBundle:
    """A bundle in memory, on the CPU. Absent parts are None. ``router`` maps weight names to
    tensors."""

    config: BundleConfig
    frequency: Tensor | None = None
    generated: Tensor | None = None
    cluster_tokens: Tensor | None = None
    cluster_offsets: Tensor | None = None
    router: dict[str, Tensor] | None = None
    source: str = "bundle"

    def __post_init__(self) -> None:
        c = self.config
        for name in ("frequency", "generated", "cluster_tokens"):
            ids = getattr(self, name)
            if ids is not None:
                check_ids(ids.long(), c.vocab_size, f"{self.source}: {name}")
        self._check_clusters()
        self._check_router()

    def _check_clusters(self) -> None:
        tokens, offsets = self.cluster_tokens, self.cluster_offsets
        if (tokens is None) != (offsets is None):
            raise DynaSpecError(
                f"{self.source}: cluster_tokens and cluster_offsets must come together"
            )
        if tokens is None or offsets is None:
            return
        if (
            offsets.ndim != 1
            or offsets.numel() < 2
            or int(offsets[0]) != 0
            or int(offsets[-1]) != tokens.numel()
            or bool((offsets[1:] < offsets[:-1]).any())
        ):
            raise DynaSpecError(
                f"{self.source}: cluster_offsets must rise from 0 to the {tokens.numel()} "
                "cluster_tokens"
            )
        if offsets.numel() - 1 != self.config.num_clusters:
            raise DynaSpecError(
                f"{self.source}: config.json says {self.config.num_clusters} clusters, "
                f"the file holds {offsets.numel() - 1}"
            )

    def _check_router(self) -> None:
        kind, weights = self.config.router, self.router
        if kind == "none":
            return
        wanted = ROUTER_SIGNATURES[kind]
        if weights is None or any(name not in weights for name in wanted):
            raise DynaSpecError(
                f"{self.source}: a {kind} router needs {', '.join(wanted)} in {ROUTER_FILE}"
            )
        rows = int(weights["w2"].shape[0])
        if self.cluster_offsets is None or rows != self.config.num_clusters:
            raise DynaSpecError(
                f"{self.source}: the router scores {rows} clusters, there are "
                f"{self.config.num_clusters}"
            )

    def check_target(self, target: BundleTarget) -> None:
        """Refuse a target that the bundle was not made for, with what differs."""
        c = self.config
        for what, mine, theirs in (
            ("vocabulary size", c.vocab_size, target.vocab_size),
            ("hidden size", c.hidden_size, target.hidden_size),
        ):
            if mine != theirs:
                raise DynaSpecError(
                    f"{self.source}: made for {c.target} ({what} {mine}), but {target.name} has "
                    f"{what} {theirs}; make one for it with {HOW_TO_BUILD}"
                )
        found = target.head_hash()
        if c.head_hash != found:
            raise DynaSpecError(
                f"{self.source}: made for the LM head of {c.target} (hash {c.head_hash[:12]}), but "
                f"{target.name} has another head (hash {found[:12]}); make one for it with "
                f"{HOW_TO_BUILD}"
            )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder; it appears complete or not at all, an older bundle there is
        replaced."""
        from safetensors.torch import save_file

        tensors = {
            name: getattr(self, name).to(torch.int32).contiguous()
            for name in ("frequency", "generated", "cluster_tokens", "cluster_offsets")
            if getattr(self, name) is not None
        }
        write: dict[str, Callable[[Path], None]] = {
            CONFIG_FILE: text(json.dumps(asdict(self.config), indent=2, ensure_ascii=False) + "\n"),
            CLUSTERS_FILE: lambda path: save_file(tensors, path),
            CARD_FILE: text(model_card(self.config)),
        }
        if self.router is not None:
            router = {k: v.contiguous() for k, v in self.router.items()}
            write[ROUTER_FILE] = lambda path: save_file(router, path)
        write_folder(Path(folder), write, is_bundle, (CLUSTERS_FILE, ROUTER_FILE), "bundle")

    def push_to_hub(self, name: str, private: bool = False) -> str:
        """Upload as hub repository ``name`` ("ORG/NAME"); its address."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push(Path(folder), name, private, f"{self.config.method} shortlist bundle")

    @classmethod
    def from_pretrained(cls, name: str | Path) -> ShortlistBundle:
        """Load a folder, or a hub repository that holds one."""
        folder = Path(name)
        if not folder.is_dir():
            folder = fetch(str(name), HUB_FILES, f"bundle {name}")
        config = read_config(folder)
        tensors = _read_tensors(folder / CLUSTERS_FILE)
        router = _read_tensors(folder / ROUTER_FILE) if (folder / ROUTER_FILE).is_file() else None
        parts = ("frequency", "generated", "cluster_tokens", "cluster_offsets")
        return cls(
            config,
            **{part: tensors.get(part) for part in parts},
            router=router,
            source=f"bundle {name}",
        )


def is_bundle(folder: str | Path) -> bool:
    return (Path(folder) / CONFIG_FILE).is_file() and (Path(folder) / CLUSTERS_FILE).is_file()


def read_config(folder: Path) -> BundleConfig:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise DynaSpecError(f"{folder}: no {CONFIG_FILE}; expected a folder made by build-clusters")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return BundleConfig(**data)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DynaSpecError(f"{path}: not valid JSON ({error})") from error
    except TypeError as error:
        raise DynaSpecError(
            f"{path}: not the configuration of a shortlist bundle ({error})"
        ) from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        pickled = [p.name for p in path.parent.glob("*.bin")] + [
            p.name for p in path.parent.glob("*.pt")
        ]
        hint = f"; {pickled[0]} is a pickle and is never loaded" if pickled else ""
        raise DynaSpecError(f"{path}: missing{hint}")
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise DynaSpecError(f"{path}: not a readable safetensors file ({error})") from error


def model_card(config: BundleConfig) -> str:
    """README.md with the front matter the hub reads."""
    facts = "".join(
        f"- {k}: {v}\n" for k, v in config.training.items() if not isinstance(v, (dict, list))
    )
    clusters = f"- token clusters: {config.num_clusters}\n" if config.num_clusters else ""
    return (
        f"---\nlibrary_name: dynaspec\nbase_model: {config.target}\n"
        "tags:\n- speculative-decoding\n- shortlist\n---\n\n"
        f"# Shortlist bundle for {config.target}\n\n"
        "Token orders, clusters and router with which `dynaspec` chooses the tokens a drafter "
        "scores.\n"
        f"The target's output does not change.\n\n- method: {config.method}\n- router: "
        f"{config.router}\n{clusters}"
        f"- vocabulary: {config.vocab_size}, hidden size: {config.hidden_size}\n"
        f"- LM head hash: `{config.head_hash}`\n{facts}\n"
        "```\n"
        f'dynaspec generate --model {config.target} --shortlist THIS_FOLDER "..."\n```\n'
    )

"""Builds a benchmark's arms on one loaded target."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from dynaspec_cli.bench.engine_method import (
    EngineCodec,
    EngineMethod,
    EngineReference,
    engine_facts,
)
from dynaspec_cli.bench.execute import Lab
from dynaspec_cli.bench.method import Method
from dynaspec_cli.bench.peers import PeerSetting, TransformersModel, make_peer
from dynaspec_cli.bench.provenance import file_hashes, folder_hashes
from dynaspec_cli.bench.spec import MethodSpec
from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.drafters.load import load_drafter
from dynaspec_cli.engine.api import Engine
from dynaspec_cli.shortlist import factory
from dynaspec_cli.shortlist.registry import NAMES
from dynaspec_cli.target.demo_package import ChunkedFile
from dynaspec_cli.target.resolve import resolve_model
from dynaspec_cli.training.trainer import CHECKPOINT

PEER_CONTEXT = 8192
"""Tokens that llama.cpp keeps room for, at most the model's own limit."""

_DEFAULT_SHORTLISTS = ("full", "fr-spec", "nanospec", "dynaspec")
_WITHOUT_BUNDLE = ("full", "nanospec")
_TREE = TreeConfig().policy


def default_methods(engine: Engine) -> tuple[list[str], str | None]:
    """The specs of a run that names none, and a notice where some had to be left out."""
    if factory.packaged_bundle(engine.target) is None:
        names, notice = (
            _WITHOUT_BUNDLE,
            (
                f"no shortlist bundle for {engine.target.name} is shipped, so fr-spec and "
                "dynaspec are left out; dynaspec build-clusters makes one (then --method "
                f"DIR+{_TREE})"
            ),
        )
        return ["ar", *(f"{name}+{_TREE}" for name in names)], notice
    return ["ar", *(f"{name}+{_TREE}" for name in _DEFAULT_SHORTLISTS)], None


def build_lab(
    engine: Engine,
    specs: Sequence[MethodSpec],
    *,
    model: str | None,
    drafter: str,
    sampling: SamplingConfig,
    tree: TreeConfig,
    assistant: str | None = None,
) -> Lab:
    """Arms for ``specs``; all of them share the engine's target, those of one drafter its
    drafter."""
    engines: dict[str | None, Engine] = {None: engine}
    setting = PeerSetting(
        model=model,
        dtype=engine.target.dtype,
        device=engine.target.device,
        threads=int(engine_facts(engine)["threads"]),
        sampling=sampling,
        eos_ids=frozenset(engine.tokenizer.eos_ids),
        context=min(engine.target.max_context, PEER_CONTEXT),
        assistant=assistant,
    )
    shared = TransformersModel(setting)
    methods: list[Method] = []
    for spec in specs:
        if spec.kind == "peer":
            methods.append(make_peer(str(spec.peer), setting, shared))
            continue
        if spec.drafter not in engines:
            found = load_drafter(str(spec.drafter), engine.target)
            engines[spec.drafter] = Engine(engine.target, engine.tokenizer, found, engine.load_s)
        methods.append(EngineMethod(spec, engines[spec.drafter], sampling, tree))
    return Lab(
        methods=methods,
        codec=EngineCodec(engine),
        reference=EngineReference(engine),
        facts=engine_facts(engine),
        artifacts=_artifacts(
            model, [drafter, assistant or "", *(s.drafter or "" for s in specs)], specs
        ),
    )


def _artifacts(
    model: str | None, drafters: Sequence[str], specs: Sequence[MethodSpec]
) -> dict[str, Any]:
    """Hashes of the packaged data, of every folder or file that was named, and of a GGUF model."""
    found: dict[str, Any] = {}
    data = Path(str(resources.files("dynaspec_cli"))) / "data"
    for folder in sorted(p for p in data.iterdir() if p.is_dir() and p.name != "suites"):
        found |= folder_hashes(folder)
    lists = [s.shortlist or "" for s in specs]
    named = [*drafters, *(text.partition("=")[2] or text for text in lists)]
    words = ("", "auto", "none", *NAMES)  # never a folder that happens to have such a name
    for path in dict.fromkeys(Path(name).expanduser() for name in named if name not in words):
        if path.is_dir():
            # What is loaded; beside it a training run keeps its state and gigabytes of text.
            files = (p for p in path.iterdir() if p.is_file() and p.name != CHECKPOINT)
            found |= file_hashes(files, path.parent)
        elif path.exists():
            found |= folder_hashes(path)
    gguf = resolve_model(model).gguf
    if isinstance(gguf, ChunkedFile):
        found["model.gguf"] = {"bytes": gguf.size, "sha256": gguf.sha256}
    elif gguf is not None:
        found |= folder_hashes(gguf)
    return found

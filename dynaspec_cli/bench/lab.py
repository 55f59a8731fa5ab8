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
from dynaspec_cli.bench.peers.make import make_peer
from dynaspec_cli.bench.peers.setting import PeerSetting
from dynaspec_cli.bench.peers.transformers import TransformersModel
from dynaspec_cli.bench.provenance import file_hashes, folder_hashes
from dynaspec_cli.bench.spec import MethodSpec
from dynaspec_cli.config import SamplingConfig, TreeConfig
from dynaspec_cli.drafters.load import load_drafting
from dynaspec_cli.engine.api import Engine
from dynaspec_cli.shortlist.packaged import packaged_bundle
from dynaspec_cli.shortlist.registry import SHORTLISTS, WITHOUT_BUNDLE
from dynaspec_cli.target.cache_dir import source_hash
from dynaspec_cli.target.demo_package import ChunkedFile
from dynaspec_cli.target.resolve import ModelSource, resolve_model
from dynaspec_cli.training.trainer import CHECKPOINT
from dynaspec_cli.weights.registry import STORED

PEER_CONTEXT = 8192
"""Tokens that llama.cpp keeps room for, at most the model's own limit."""

_DEFAULT_SHORTLISTS = ("full", "fr-spec", "nanospec", "dynaspec")
_TREE = TreeConfig().policy


def default_methods(engine: Engine) -> tuple[list[str], str | None]:
    """The specs of a run that names none, and a notice where some had to be left out."""
    if engine.drafter is not None and engine.drafter.head is None:
        return ["ar", f"{engine.drafter.name}:full+{_TREE}"], None
    if packaged_bundle(engine.target) is None:
        names, notice = (
            WITHOUT_BUNDLE,
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
    sampling: SamplingConfig,
    tree: TreeConfig,
    assistant: str | None = None,
    draft_head: str = STORED,
) -> Lab:
    """Arms for ``specs``; all of them share the engine's target, those of one drafter its drafter,
    whose head is kept in the weight format ``draft_head``."""
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
            found = load_drafting(str(spec.drafter), engine.target, engine.tokenizer)
            engines[spec.drafter] = Engine(
                engine.target, engine.tokenizer, found.drafter, engine.load_s, lookup=found.lookup
            )
        methods.append(EngineMethod(spec, engines[spec.drafter], sampling, tree, draft_head))
    return Lab(
        methods=methods,
        codec=EngineCodec(engine),
        reference=EngineReference(engine),
        facts=engine_facts(engine),
        artifacts=_artifacts(model, assistant, list(engines.values()), specs),
    )


DATA = Path(str(resources.files("dynaspec_cli"))) / "data"
MODEL_FILES = ("config.json", "generation_config.json", "tokenizer*", "*.safetensors")
"""What decides a model's answers; the chat template has a hash of its own in the settings."""


def _artifacts(
    model: str | None, assistant: str | None, engines: Sequence[Engine], specs: Sequence[MethodSpec]
) -> dict[str, Any]:
    """Hashes of all that is loaded: the packaged data, the model and the assistant, every drafter's
    folder (of a hub name: where it was downloaded to), every bundle and token map of a spec."""
    found: dict[str, Any] = {}
    for folder in sorted(p for p in DATA.iterdir() if p.is_dir() and p.name != "suites"):
        found |= folder_hashes(folder)
    drafters = [engine.drafter.folder for engine in engines if engine.drafter is not None]
    lists = [Path(path).expanduser() for path in map(_bundle_path, specs) if path is not None]
    for path in dict.fromkeys([*(p for p in drafters if p is not None), *lists]):
        if path.is_relative_to(DATA):
            continue
        if path.is_dir():
            # What is loaded; beside it a training run keeps its state and gigabytes of text.
            files = (p for p in path.iterdir() if p.is_file() and p.name != CHECKPOINT)
            _add(found, file_hashes(files, path.parent))
        elif path.exists():
            _add(found, folder_hashes(path))
    _add(found, _model_hashes(resolve_model(model)))
    if assistant is not None:
        _add(found, _model_hashes(resolve_model(assistant, "--assistant")))
    return found


def _bundle_path(spec: MethodSpec) -> str | None:
    """The folder or file of a spec's shortlist; None for a name, whatever folders there are."""
    text = spec.shortlist
    return None if text is None or text in SHORTLISTS else text.partition("=")[2] or text


def _model_hashes(source: ModelSource) -> dict[str, Any]:
    if isinstance(source.gguf, ChunkedFile):
        return {"model.gguf": {"bytes": source.gguf.size, "sha256": source.gguf.sha256}}
    if source.gguf is not None:  # remembered since it was loaded, whatever its size
        size = source.gguf.stat().st_size
        return {source.gguf.name: {"bytes": size, "sha256": source_hash(source.gguf)}}
    if source.folder is None:
        return {}
    files = {p for pattern in MODEL_FILES for p in source.folder.glob(pattern) if p.is_file()}
    return file_hashes(files, source.folder.parent)


def _add(found: dict[str, Any], hashes: dict[str, Any]) -> None:
    """Into ``found``; where another folder of the same name has such a file, under a name of its
    own."""
    for name, value in hashes.items():
        key, count = name, 1
        while found.get(key, value) != value:
            count += 1
            key = f"{name} ({count})"
        found[key] = value

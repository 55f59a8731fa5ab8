"""Other programs on the same model, by name."""

from __future__ import annotations

from typing import Any

from dynaspec_cli.bench.peers.llama_cpp import LlamaCppPeer
from dynaspec_cli.bench.peers.setting import PeerSetting
from dynaspec_cli.bench.peers.transformers import TransformersModel, TransformersPeer


def make_peer(kind: str, setting: PeerSetting, shared: TransformersModel) -> Any:
    """The arm of a peer's name."""
    if kind.startswith("llama.cpp"):
        return LlamaCppPeer(kind, setting)
    return TransformersPeer(kind, setting, shared)

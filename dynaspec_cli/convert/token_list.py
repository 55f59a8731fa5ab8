"""Lists of tokens, most frequent first, in the forms that other programs have: FR-Spec's and
SGLang's token maps, this project's shortlist bundles, and the vocabulary of a drafter's head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynaspec_cli.checkpoints.bundle import BundleConfig, ShortlistBundle, is_bundle
from dynaspec_cli.checkpoints.token_map import SUFFIXES, load_token_map, save_token_map
from dynaspec_cli.checkpoints.vocab_map import VocabMap
from dynaspec_cli.drafters.checkpoint import DrafterCheckpoint
from dynaspec_cli.drafters.published import EAGLE3, SPECULATORS, read_head_config
from dynaspec_cli.drafters.published_weights import read_weights
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.target.load import load, stored_head_hash
from dynaspec_cli.target.native_spec import read_config
from dynaspec_cli.target.resolve import resolve_model

ANY_VOCABULARY = 1 << 31
"""Of a map whose target is not named: ids are checked to be distinct and not below 0."""


def is_token_list(source: str) -> bool:
    """Is ``source`` a token map's file or a bundle's folder?"""
    path = Path(source).expanduser()
    return (path.is_file() and path.suffix.lower() in SUFFIXES) or is_bundle(path)


def write_map(source: str, out: Path, options: Mapping[str, str]) -> dict[str, Any]:
    """Write the tokens of ``source`` as a token map, whose suffix is its form (.pt is what FR-Spec
    and SGLang read). Returns facts for the report."""
    path = Path(source).expanduser()
    if is_bundle(path):
        bundle = ShortlistBundle.from_pretrained(path)
        ids, form = bundle.frequency, "bundle"
        if ids is None:
            ids = bundle.generated
        if ids is None:
            raise DynaSpecError(f"{source}: the bundle ranks no tokens; it holds clusters alone")
    elif path.is_file():
        ids, form = load_token_map(path, ANY_VOCABULARY).ids, "token map"
    else:
        vocab, form = _head_vocabulary(source, options)
        ids = vocab.ids
    save_token_map(out, ids)
    return {"from": form, "tokens": int(ids.numel())}


def write_bundle(source: str, out: Path, to: str, model: str | None) -> dict[str, Any]:
    """Write the token map ``source`` as a shortlist bundle of ``model``. Returns facts."""
    if to != "dynaspec":
        raise UsageError(f"--to {to}: expected a drafter, got a token list; it has no such form")
    path = Path(source).expanduser()
    if is_bundle(path):
        raise UsageError(f"--to dynaspec: {source} is a bundle already")
    if model is None:
        raise UsageError("--to dynaspec: a bundle belongs to a model; give --model")
    name, vocab_size, hidden_size, head_hash = _head_of(model)
    ids = load_token_map(path, vocab_size).ids
    config = BundleConfig(
        method="fr-spec",
        target=name,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        head_hash=head_hash,
        shortlist_size=int(ids.numel()),
        training={"made from": path.name},
    )
    ShortlistBundle(config, frequency=ids).save_pretrained(out)
    return {"from": "token map", "tokens": int(ids.numel())}


def _head_vocabulary(source: str, options: Mapping[str, str]) -> tuple[VocabMap, str]:
    """The tokens that a drafter's own head knows."""
    checkpoint = DrafterCheckpoint.from_pretrained(source)
    where = f"convert {source}"
    vocab = None
    if checkpoint.kind in (EAGLE3, SPECULATORS):
        config = read_head_config(checkpoint.config, options, EAGLE3, where)
        vocab = read_weights(config, checkpoint.tensors, where).vocab
    if vocab is None:
        raise DynaSpecError(
            f"{where}: this {checkpoint.kind} drafter scores the target's whole vocabulary, so "
            "there is no list of its tokens"
        )
    return vocab, checkpoint.kind


def _head_of(model: str) -> tuple[str, int, int, str]:
    """(name, vocabulary size, hidden size, hash) of a model's LM head; of a folder without loading
    the model."""
    source = resolve_model(model)
    if source.folder is not None:
        config = read_config(source.folder)
        known = stored_head_hash(source.folder)
        if known is not None and {"vocab_size", "hidden_size"} <= config.keys():
            return source.name, int(config["vocab_size"]), int(config["hidden_size"]), known
    target, _ = load(model, device="cpu")
    return target.name, target.vocab_size, target.hidden_size, target.head_hash()

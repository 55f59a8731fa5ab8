"""Loading a target over all ranks."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.target.native_spec import read_config
from dynaspec_cli.target.pretrained import pretrained
from dynaspec_cli.target.sharded.launch import Launch
from dynaspec_cli.target.sharded.ranks import REQUEST, SAID, Ranks, Store
from dynaspec_cli.target.sharded.target import ShardedTarget


@dataclass(frozen=True)
class LoadRequest:
    """What rank 0 tells the others to load; ``dtype`` without "torch."."""

    folder: str
    name: str
    dtype: str
    device: str
    threads: int
    known_hash: str | None

    def place(self, launch: Launch) -> torch.device:
        return torch.device("cpu" if self.device == "cpu" else f"cuda:{launch.local_rank}")


class _Lead:
    """Rank 0's end of the connection, once there is one."""

    ranks: Ranks | None = None


def place_of(launch: Launch, device: str) -> torch.device:
    """Of a process, from its local rank. Raises UsageError for a ``--device`` that says otherwise,
    DynaSpecError where there are too few GPUs."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "map":
        raise UsageError("--device-map: splits a model over one process's GPUs; not with torchrun")
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(
            f"--device {device}: under torchrun every process takes the GPU of its local rank; "
            "leave --device out"
        )
    if device == "cpu" and gpus:
        raise UsageError(
            "--device cpu: transformers splits a model over the GPUs that it sees; hide them with "
            "CUDA_VISIBLE_DEVICES="
        )
    if device == "cuda" and not gpus:
        raise DynaSpecError("--device cuda: this PyTorch sees no GPU; use --device cpu")
    if gpus and launch.local_world > gpus:
        raise DynaSpecError(
            f"torchrun started {launch.local_world} processes here, which has {gpus} GPUs; take "
            f"--nproc-per-node {gpus}"
        )
    return torch.device(f"cuda:{launch.local_rank}" if gpus else "cpu")


def lead(
    launch: Launch,
    folder: Path,
    name: str,
    dtype: torch.dtype,
    place: torch.device,
    known_hash: str | None,
) -> ShardedTarget:
    """Rank 0: load with all others, which follow from then on."""
    if _Lead.ranks is not None:
        raise DynaSpecError("under torchrun one model is loaded, and there is one already")
    check_divisible(folder, name, launch.world)
    threads = torch.get_num_threads()
    kind = str(dtype).removeprefix("torch.")
    path = str(folder.resolve())
    request = LoadRequest(path, name, kind, place.type, threads, known_hash)
    store = Store()
    store.set(REQUEST, json.dumps(asdict(request)))
    _Lead.ranks = Ranks(launch, place, store)
    return load_part(request, _Lead.ranks)


def load_part(request: LoadRequest, ranks: Ranks) -> ShardedTarget:
    """This rank's part, on all ranks."""
    torch.set_num_threads(request.threads)
    folder, name = Path(request.folder), request.name
    kind = getattr(torch, request.dtype)
    with ranks.turn():
        try:
            model = pretrained(folder, name, dtype=kind, **_tensor_parallel())
        except DynaSpecError as error:
            if "tp_plan" in str(error):
                raise DynaSpecError(_no_plan(folder, name)) from error
            raise
        if not getattr(model, "tp_plan", None):
            raise DynaSpecError(_no_plan(folder, name))
    return ShardedTarget(model, request.name, ranks, request.known_hash)


def _no_plan(folder: Path, name: str) -> str:
    kind = read_config(folder).get("model_type")
    return (
        f"{name}: transformers has no tensor-parallel plan for models of type {kind!r}; run one "
        "process, with --device-map auto over several GPUs"
    )


def _tensor_parallel() -> dict[str, Any]:
    """transformers 5.18 takes the plan in a config, earlier versions as an argument."""
    from transformers.distributed import DistributedConfig

    try:
        return {"distributed_config": DistributedConfig(tp_plan="auto")}
    except TypeError:
        return {"tp_plan": "auto"}


def check_divisible(folder: Path, name: str, world: int) -> None:
    """Refuse numbers of processes that do not divide the model's heads, before anything is
    loaded."""
    config = read_config(folder)
    config = config.get("text_config") or config
    keys = {"attention heads": "num_attention_heads", "key-value heads": "num_key_value_heads"}
    counts = {what: config[key] for what, key in keys.items() if isinstance(config.get(key), int)}
    for what, count in counts.items():
        if count % world:
            able = [n for n in range(1, count + 1) if not any(c % n for c in counts.values())]
            raise DynaSpecError(
                f"{name} has {count} {what}, which {world} processes cannot share; take "
                f"--nproc-per-node {' or '.join(map(str, able))}"
            )


def leave(code: int) -> None:
    """Rank 0 ends with ``code``: let the others go too, whether they were ever asked or not."""
    ranks = _Lead.ranks
    with contextlib.suppress(Exception):
        store = Store() if ranks is None else ranks.store
        store.set(SAID, str(code))
        if ranks is None:
            store.set(REQUEST, "")
        elif not ranks.broken:
            ranks.send({"operation": "end"})
    if ranks is not None:
        ranks.close()

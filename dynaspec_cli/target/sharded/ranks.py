"""The processes of one target: messages from rank 0, and the few collectives that it needs.

Rank 0 decides everything. Before each pass of the model it sends what the pass is about; then all
ranks run it. So prompts, drafts, ends and interrupts reach the others as passes, or as none.

Messages are JSON and go over gloo between the hosts' memories, whatever the model's device: a rank
that waits for one waits as long as the user does, and learns at once that rank 0 has ended, since
the connection closes. How the processes find each other, and why one failed, goes through
torchrun's store.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.sharded.launch import Launch

PASS_TIMEOUT = timedelta(minutes=30)
"""Of a collective within a pass, and so of loading, where one rank may be slower than another."""
IDLE_TIMEOUT = timedelta(days=365)
"""Of waiting for the next message."""
FIRST_BYTES = 2048
"""Of a message, its length of 8 bytes included, that go without a second broadcast."""
REQUEST, FAILED, SAID = "dynaspec/request", "dynaspec/failed", "dynaspec/said"
"""Keys of the store: what to load; why a rank failed; rank 0's exit code, when it has ended."""


class LostRankError(DynaSpecError):
    """Another rank has ended."""


class Store:
    """torchrun's key-value store."""

    def __init__(self) -> None:
        from torch.distributed.rendezvous import rendezvous

        self.store: Any = next(rendezvous("env://"))[0]

    def set(self, key: str, value: str) -> None:
        self.store.set(key, value)

    def get(self, key: str, wait: timedelta) -> str | None:
        """None where it is not set within ``wait``."""
        try:
            self.store.wait([key], wait)
            return bytes(self.store.get(key)).decode()
        except (RuntimeError, ValueError):
            return None

    def has(self, key: str) -> bool:
        try:
            return bool(self.store.check([key]))
        except RuntimeError:
            return False


class Ranks:
    """``rank`` of ``world``; ``device``: of the model's slice here."""

    def __init__(self, launch: Launch, device: torch.device, store: Store) -> None:
        self.rank, self.world, self.device, self.store = launch.rank, launch.world, device, store
        cuda = device.type == "cuda"
        if cuda:
            torch.cuda.set_device(device)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=dist.PrefixStore("dynaspec/group", store.store),
            rank=self.rank,
            world_size=self.world,
            timeout=PASS_TIMEOUT,
            device_id=device if cuda else None,
        )
        self._messages = dist.new_group(backend="gloo", timeout=IDLE_TIMEOUT)
        self._turn = threading.Lock()
        self.broken = False

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """One message and what all ranks do about it, of one thread. Raises DynaSpecError where
        another rank has ended. What an interrupt leaves undone here, the others wait for: after it
        nothing more can be asked of them."""
        with self._turn:
            if self.broken:
                raise DynaSpecError(
                    f"the {self.world} processes were interrupted within a pass and cannot go on; "
                    "start them again"
                )
            self.broken = True
            try:
                yield
            except DynaSpecError as error:
                cause = self.failure()
                if cause or of_connection(error.__cause__):
                    raise self.lost(cause) from error
                self.broken = False  # raised by a check, on all ranks alike
                raise
            except RuntimeError as error:
                cause = self.failure()
                if cause is None and "out of memory" in str(error).lower():
                    raise
                if cause is None and not of_connection(error):
                    raise
                raise self.lost(cause) from error
            self.broken = False

    def failure(self) -> str | None:
        """Why another rank failed, if it could say so to rank 0."""
        if self.rank or not self.store.has(FAILED):
            return None
        return self.store.get(FAILED, timedelta(seconds=1))

    def lost(self, cause: str | None) -> LostRankError:
        """What to tell the user."""
        why = f"; {cause}" if cause else " without a word (killed, or out of memory?)"
        return LostRankError(
            f"one of the {self.world} processes has ended{why}; all of them are needed, start "
            "them again"
        )

    def send(self, message: dict[str, Any]) -> None:
        """From rank 0 to the others."""
        data = json.dumps(message, separators=(",", ":")).encode()
        packed = len(data).to_bytes(8, "little") + data
        first = bytearray(packed[:FIRST_BYTES].ljust(FIRST_BYTES, b"\0"))
        self._broadcast(first)
        if len(packed) > FIRST_BYTES:
            self._broadcast(bytearray(packed[FIRST_BYTES:]))

    def receive(self) -> dict[str, Any]:
        """What rank 0 has sent. Raises RuntimeError where it has ended."""
        packed = self._broadcast(bytearray(FIRST_BYTES))
        length = 8 + int.from_bytes(packed[:8], "little")
        if length > FIRST_BYTES:
            packed += self._broadcast(bytearray(length - FIRST_BYTES))
        found: dict[str, Any] = json.loads(packed[8:length])
        return found

    def _broadcast(self, data: bytearray) -> bytearray:
        dist.broadcast(torch.frombuffer(data, dtype=torch.uint8), 0, group=self._messages)
        return data

    def spread(self, tensor: Tensor) -> Tensor:
        """Rank 0's, on all ranks; the others give one of the same shape and dtype."""
        tensor = tensor.contiguous()
        dist.broadcast(tensor, 0)
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """At rank 0 the tensors of all ranks, which have the same shape; elsewhere none."""
        tensor = tensor.contiguous()
        found = [torch.empty_like(tensor) for _ in range(self.world)] if self.rank == 0 else []
        dist.gather(tensor, found or None, 0)
        return found

    def sum(self, tensor: Tensor) -> Tensor:
        """At rank 0 the sum over the ranks."""
        dist.reduce(tensor, 0)
        return tensor

    def close(self) -> None:
        """Let the others notice that this process takes part no more."""
        with contextlib.suppress(Exception):
            dist.destroy_process_group()


def of_connection(error: BaseException | None) -> bool:
    """Does a collective fail since another process is gone?"""
    words = ("connection", "peer", "gloo", "nccl", "timed out", "socket", "broken pipe")
    if isinstance(error, LostRankError | dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)

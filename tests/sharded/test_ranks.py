"""What happens between two passes when one rank fails, is interrupted or refuses an argument."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.sharded import ranks as module
from dynaspec_cli.target.sharded.ranks import FAILED, FIRST_BYTES, LostRankError, Ranks


class Kept(dict[str, str]):
    """torchrun's store, of one process."""

    def get(self, key: str, wait: Any = None) -> str | None:  # type: ignore[override]
        return super().get(key)

    def has(self, key: str) -> bool:
        return key in self


@pytest.fixture
def ranks() -> Ranks:
    """Rank 0 of two, connected with nobody."""
    found = Ranks.__new__(Ranks)
    found.rank, found.world, found.broken = 0, 2, False
    found.store = Kept()  # type: ignore[assignment]
    found._turn = threading.Lock()
    return found


def fail(ranks: Ranks, error: BaseException) -> None:
    with ranks.turn():
        raise error


def test_a_refused_argument_changes_nothing(ranks: Ranks) -> None:
    """All ranks refuse it alike."""
    with pytest.raises(DynaSpecError, match="too long"):
        fail(ranks, DynaSpecError("too long"))
    with ranks.turn():
        pass


def test_an_interrupt_within_a_pass_ends_it_all(ranks: Ranks) -> None:
    with pytest.raises(KeyboardInterrupt):
        fail(ranks, KeyboardInterrupt())
    with pytest.raises(DynaSpecError, match="interrupted within a pass"), ranks.turn():
        pass


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_cause_of_a_lost_rank_is_told(ranks: Ranks, wrapped: bool) -> None:
    """Loading wraps what a collective raises."""
    error: Exception = RuntimeError("gloo: Connection closed by peer")
    if wrapped:
        error, cause = DynaSpecError("cannot load"), error
        error.__cause__ = cause
    with pytest.raises(LostRankError, match="has ended without a word"):
        fail(ranks, error)
    ranks.broken = False
    ranks.store.set = ranks.store.__setitem__  # type: ignore[method-assign, attr-defined]
    ranks.store.set(FAILED, "rank 1: Out of memory")
    with pytest.raises(LostRankError, match="has ended; rank 1: Out of memory; all of them"):
        fail(ranks, error)


def test_errors_of_this_rank_stay_its_own(ranks: Ranks) -> None:
    for error in (RuntimeError("a bug"), RuntimeError("CUDA out of memory"), ValueError("x")):
        ranks.broken = False
        with pytest.raises(type(error), match=str(error)):
            fail(ranks, error)


@pytest.mark.parametrize("size", [0, 3, FIRST_BYTES, 5 * FIRST_BYTES])
def test_messages_of_any_length_arrive(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    pieces: list[bytes] = []

    def broadcast(tensor: Any, source: int, group: Any) -> None:
        if sending:
            pieces.append(bytes(tensor.tolist()))
        else:
            tensor.copy_(module.torch.tensor(list(pieces.pop(0)), dtype=module.torch.uint8))

    ranks._messages = None
    monkeypatch.setattr(module.dist, "broadcast", broadcast)
    message = {"operation": "verify", "text": "ä" * size}
    sending = True
    ranks.send(message)
    sending = False
    assert ranks.receive() == message
    assert not pieces

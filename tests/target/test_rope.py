"""The rotary table grows with the text and is whole whatever happens while it does."""

from __future__ import annotations

import pytest
import torch

from dynaspec_cli.target import rope


def test_a_request_interrupted_while_the_table_grows_leaves_it_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inv_freq = torch.tensor([1.0, 0.1])
    table = rope.RotaryTable(inv_freq, 1.5)
    table.rows(torch.arange(rope.BLOCK))
    real, calls = torch.cat, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:  # the angles, cos, and then sin
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(rope.torch, "cat", interrupted)
    with pytest.raises(KeyboardInterrupt):
        table.rows(torch.tensor([rope.BLOCK + 5]))
    monkeypatch.undo()
    at = torch.tensor([3, rope.BLOCK - 1, rope.BLOCK, rope.BLOCK + 5, 3 * rope.BLOCK])
    angle = at.float()[:, None] * inv_freq
    angle = torch.cat((angle, angle), -1)
    cos, sin = table.rows(at)
    torch.testing.assert_close(cos, angle.cos() * 1.5)
    torch.testing.assert_close(sin, angle.sin() * 1.5)

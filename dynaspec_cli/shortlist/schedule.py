"""Token budget by draft position: more rows for the first positions, which are always reached,
fewer for later ones.

DynaSpec and PA-FR both let the budget fall with the draft position (arXiv 2510.13847, section 4.2);
their constants are not public. Ours is geometric: ``k(t) = c * decay**(t - 1)``, with c such that
the mean over the ``depth`` draft steps of a round is the stated size, so that policies of one size
are comparable.
"""

from __future__ import annotations

from dataclasses import dataclass

from dynaspec_cli.errors import UsageError


@dataclass(frozen=True)
class BudgetSchedule:
    """``size``: mean tokens a draft step over ``depth`` positions; ``decay`` in (0, 1], 1 is
    constant; ``vocab_size`` caps every budget. Positions beyond ``depth`` keep the last budget."""

    size: int
    vocab_size: int
    decay: float = 1.0
    depth: int = 6

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.vocab_size:
            raise UsageError(
                f"--shortlist-size: expected 1 to {self.vocab_size} tokens (the vocabulary), got "
                f"{self.size}"
            )
        if not 0 < self.decay <= 1:
            raise UsageError(f"budget decay: expected a number in (0, 1], got {self.decay}")
        if self.depth < 1:
            raise UsageError(f"budget depth: expected at least 1, got {self.depth}")

    def budgets(self) -> list[int]:
        """Budget of positions 1 .. depth; their mean is at most ``size``."""
        weights = [self.decay**t for t in range(self.depth)]
        scale = self.size * self.depth / sum(weights)
        return [max(1, min(self.vocab_size, int(scale * w))) for w in weights]

    def table(self) -> tuple[int, ...]:
        return tuple(self.budgets())

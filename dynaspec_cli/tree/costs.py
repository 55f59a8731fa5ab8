"""What drafting and verifying cost here and now, learned from the clock while a request runs."""

from __future__ import annotations

from dataclasses import dataclass

DECAY = 0.95
"""Weight that a measurement keeps with each later one: the last 20 or so count."""

OUTLIER = 4.0
"""A duration this many times the mean is an interruption (the reader of the stream, the machine),
not a cost."""


@dataclass
class LinearCost:
    """Seconds as ``a + b x`` (x: rows of a draft step, nodes of a verification), by decayed least
    squares; b is at least 0, and 0 until x has varied."""

    weight: float = 0.0
    x: float = 0.0
    t: float = 0.0
    xx: float = 0.0
    xt: float = 0.0

    def add(self, x: float, seconds: float) -> None:
        if self.weight >= 3 and seconds > OUTLIER * self.t / self.weight:
            return
        self.weight = DECAY * self.weight + 1.0
        self.x = DECAY * self.x + x
        self.t = DECAY * self.t + seconds
        self.xx = DECAY * self.xx + x * x
        self.xt = DECAY * self.xt + x * seconds

    @property
    def slope(self) -> float:
        """Seconds per unit of x."""
        spread = self.weight * self.xx - self.x * self.x
        if spread <= 1e-3 * self.weight * self.xx:
            return 0.0
        return max(0.0, (self.weight * self.xt - self.x * self.t) / spread)

    def at(self, x: float) -> float:
        """Seconds expected at x; 0 before the first measurement."""
        if not self.weight:
            return 0.0
        return max(0.0, (self.t + self.slope * (x * self.weight - self.x)) / self.weight)


@dataclass
class Ratio:
    """A quotient of decayed sums."""

    decay: float = DECAY
    numerator: float = 0.0
    denominator: float = 0.0

    def add(self, numerator: float, denominator: float) -> None:
        self.numerator = self.decay * self.numerator + numerator
        self.denominator = self.decay * self.denominator + denominator

    def value(self, unknown: float) -> float:
        return self.numerator / self.denominator if self.denominator > 0 else unknown

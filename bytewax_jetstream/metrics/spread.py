"""`Spread`: how many values fell into each bucket of a histogram, and their sum."""

from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["Spread"]


class Spread:
    """Values by bucket; the last bucket has what is above the last bound.

    :arg bounds: The largest value of each bucket, ascending.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, count: int = 1) -> None:
        """Count a value so many times."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count

    def __add__(self, other: "Spread") -> "Spread":
        both = Spread(self.bounds)
        both.counts = [one + two for one, two in zip(self.counts, other.counts, strict=True)]
        both.sum = self.sum + other.sum
        return both

    def copy(self) -> "Spread":
        """As it is now."""
        return self + Spread(self.bounds)

    def cumulative(self) -> list[tuple[str, float]]:
        """Prometheus's form: for each bound, as text, how many values were not above it."""
        total, buckets = 0, []
        for bound, count in zip((*map(_text, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


def _text(bound: float) -> str:
    return repr(float(bound))

"""Medians, spreads and ratios of rounds; a ratio is that of each round's own pair, and then their
median.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import BenchError

__all__ = ["CONDITIONS", "Round", "Spread", "ratios", "select", "series", "spread", "values"]

Round = Mapping[str, Any]

CONDITIONS = (
    "scenario",
    "payload_bytes",
    "batch",
    "broker",
    "storage",
    "ids",
    "strategy",
    "ack_workers",
    "max_pending",
)
"""What distinguishes one series of rounds from another."""


class Spread(NamedTuple):
    """The middle of a few values, and how far they are apart."""

    median: float
    low: float
    high: float


def select(rounds: Iterable[Round], wanted: Mapping[str, str]) -> list[Round]:
    """The rounds whose conditions are as wanted, in their order."""
    return [
        entry
        for entry in rounds
        if all(str(entry.get(key)) == value for key, value in wanted.items())
    ]


def series(rounds: Iterable[Round]) -> dict[tuple[Any, ...], list[Round]]:
    """The rounds by their conditions, in the order in which these came first."""
    found: dict[tuple[Any, ...], list[Round]] = {}
    for entry in rounds:
        found.setdefault(tuple(entry.get(key) for key in CONDITIONS), []).append(entry)
    return found


def values(rounds: Iterable[Round], figure: str) -> list[float]:
    """One figure of each round that has it."""
    return [float(entry[figure]) for entry in rounds if entry.get(figure) is not None]


def spread(numbers: Sequence[float]) -> Spread | None:
    """Median, minimum and maximum; None of nothing."""
    return Spread(statistics.median(numbers), min(numbers), max(numbers)) if numbers else None


def ratios(
    above: Sequence[Round], below: Sequence[Round], figure: str = "msgs_per_s"
) -> list[float]:
    """A figure of one series by that of another, round by round.

    :raises BenchError: when a round has no partner, or more than one.
    """
    partners: dict[int, float] = {}
    for name, rounds in (("above", above), ("below", below)):
        numbers = [entry["round"] for entry in rounds]
        if not numbers or len(numbers) != len(set(numbers)):
            raise BenchError(
                f"the series {name} the line has {len(numbers)} rounds with {len(set(numbers))} numbers: "
                "name conditions until it is one series"
            )
    partners = {entry["round"]: entry[figure] for entry in below}
    return [
        entry[figure] / partners[entry["round"]] for entry in above if partners.get(entry["round"])
    ]

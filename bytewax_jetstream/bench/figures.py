"""Selects rounds, and computes their medians, spreads and ratios."""

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
"""Rounds with the same values of these make up a series."""


class Spread(NamedTuple):
    """The median of some values, and the lowest and highest of them."""

    median: float
    low: float
    high: float


def select(rounds: Iterable[Round], wanted: Mapping[str, str]) -> list[Round]:
    """The rounds that meet all conditions, in their order; `low,high` means either value."""
    allowed = {key: value.split(",") for key, value in wanted.items()}
    return [
        entry
        for entry in rounds
        if all(str(entry.get(key)) in choice for key, choice in allowed.items())
    ]


def series(rounds: Iterable[Round]) -> dict[tuple[Any, ...], list[Round]]:
    """The rounds of each series, in the order in which the series first appear."""
    found: dict[tuple[Any, ...], list[Round]] = {}
    for entry in rounds:
        found.setdefault(tuple(entry.get(key) for key in CONDITIONS), []).append(entry)
    return found


def values(rounds: Iterable[Round], figure: str) -> list[float]:
    """A figure of every round that has it."""
    return [float(entry[figure]) for entry in rounds if entry.get(figure) is not None]


def spread(numbers: Sequence[float]) -> Spread | None:
    """Median, minimum and maximum; None when there are no values."""
    return Spread(statistics.median(numbers), min(numbers), max(numbers)) if numbers else None


def ratios(
    above: Sequence[Round], below: Sequence[Round], figure: str = "msgs_per_s"
) -> list[float]:
    """A figure of one series divided by that of another, round by round.

    :raises BenchError: when either is empty, or more than one series.
    """
    for name, rounds in (("above", above), ("below", below)):
        numbers = [entry["round"] for entry in rounds]
        if not numbers or len(numbers) != len(set(numbers)):
            raise BenchError(
                f"the series {name} the line has {len(numbers)} rounds with {len(set(numbers))} "
                "numbers: name conditions until it is one series"
            )
    partners = {entry["round"]: entry[figure] for entry in below}
    return [
        entry[figure] / partners[entry["round"]] for entry in above if partners.get(entry["round"])
    ]

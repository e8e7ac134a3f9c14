"""Rounds selected by conditions; medians, spreads and ratios of figures, also as text."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import BenchError

__all__ = [
    "CONDITIONS",
    "Round",
    "Spread",
    "median_text",
    "number_text",
    "ratios",
    "select",
    "series",
    "share_text",
    "spread",
    "spread_text",
    "values",
]

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


def median_text(rounds: Iterable[Round], figure: str) -> str:
    """The median of a figure; `-` when no round has it."""
    found = spread(values(rounds, figure))
    return number_text(found.median) if found else "-"


def spread_text(rounds: Iterable[Round], figure: str) -> str:
    """The median of a figure, with the lowest and highest value; `-` when no round has it."""
    found = spread(values(rounds, figure))
    if not found:
        return "-"
    return f"{number_text(found.median)} ({number_text(found.low)}-{number_text(found.high)})"


def share_text(value: float) -> str:
    """A share of 1 in per cent."""
    return f"{value:.2%}".replace(".00%", "%")


def number_text(value: float) -> str:
    """A number with about three significant digits."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.1 else f"{value:.2g}"

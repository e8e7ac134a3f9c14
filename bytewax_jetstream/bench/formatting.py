"""Figures as the tables and pages show them."""

from collections.abc import Iterable

from .figures import Round, spread, values

__all__ = ["median_text", "number_text", "share_text", "spread_text"]


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

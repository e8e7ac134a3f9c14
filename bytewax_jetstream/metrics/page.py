"""The table of all metrics for `docs/metrics.md`."""

import re

from .table import METRICS, RETRY_REASONS

__all__ = ["fill", "markdown"]

BEGIN, END = "<!-- metrics -->", "<!-- /metrics -->"


def markdown() -> str:
    """The table, and the reasons for which attempts are made again."""
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for each in METRICS:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        lines.append(f"| `{each.name}` | {each.kind} | {labels} | {each.help} |")
    lines += ["", "| `reason` of a retry | meaning |", "|---|---|"]
    lines += [f"| `{reason}` | {meaning} |" for reason, meaning in RETRY_REASONS.items()]
    return "\n".join(lines)


def fill(page: str) -> str:
    """The page, with the table between its two marks.

    :raises ValueError: when the page does not have the marks once each.
    """
    marked = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)
    filled, count = marked.subn(lambda _: f"\n{markdown()}\n\n", page)
    if count != 1:
        raise ValueError(f"the page needs {BEGIN} and {END} once: {count} found")
    return filled

"""All rounds of a run as tables, in the terminal and in Markdown."""

from collections.abc import Sequence
from typing import NamedTuple

from .cases import READERS
from .figures import (
    CONDITIONS,
    Round,
    median_text,
    number_text,
    ratios,
    select,
    series,
    share_text,
    spread,
    spread_text,
    values,
)

__all__ = ["Table", "as_markdown", "tables"]

BASES = ("before", "sync", "async", "raw", "lean", "confluent", "pull")
"""Strategies that get a column, where they ran: how many times as fast the others are."""
ALWAYS_SHOWN = ("scenario", "payload_bytes", "batch", "strategy")
DETAILS = {
    "API requests": "mgmt_requests_per_msg",
    "bytes sent": "bytes_sent_per_msg",
    "TCP segments": "segments_sent_per_msg",
    "ack frames": "ack_frames_per_msg",
    "RSS MB start, peak, end": "",
    "threads start/peak/end": "",
}
"""Columns that a brief table leaves out, and the figure whose median each shows."""
WORDS = {"ack_workers": "ACK workers", "max_pending": "max. pending"}


class Table(NamedTuple):
    """The results of a scenario, as text."""

    title: str
    header: list[str]
    lines: list[list[str]]


def tables(rounds: Sequence[Round], *, brief: bool = False) -> list[Table]:
    """One table for each scenario, payload and batch; a condition gets a column only where it
    varies.

    :arg brief: Only the columns that say how fast, and at what price.
    """
    varying = [
        key
        for key in CONDITIONS
        if key not in ALWAYS_SHOWN and len({str(entry.get(key)) for entry in rounds}) > 1
    ]
    groups: dict[tuple[str, int, int], list[Round]] = {}
    for entry in rounds:
        key = entry["scenario"], entry["payload_bytes"], entry["batch"]
        groups.setdefault(key, []).append(entry)
    return [_table(*key, group, varying, brief=brief) for key, group in groups.items()]


def _table(
    scenario: str, payload: int, batch: int, rounds: list[Round], varying: list[str], *, brief: bool
) -> Table:
    bases = [base for base in BASES if any(entry["strategy"] == base for entry in rounds)]
    lines = []
    for own in series(rounds).values():
        line = _line(own, rounds, varying, bases)
        lines.append(
            {name: text for name, text in line.items() if not brief or name not in DETAILS}
        )
    counts = " or ".join(f"{count:,}" for count in sorted({entry["messages"] for entry in rounds}))
    number = max(entry["round"] for entry in rounds)
    title = (
        f"{scenario}: {counts} messages of {payload:,} bytes, {batch:,} at once, {number} rounds"
    )
    return Table(title, list(lines[0]), [list(line.values()) for line in lines])


def _line(
    own: list[Round], rounds: list[Round], varying: list[str], bases: list[str]
) -> dict[str, str]:
    first = own[0]
    line = {
        WORDS.get(key, key): "default" if first.get(key) is None else str(first[key])
        for key in varying
    }
    line["strategy"] = first["strategy"]
    line["messages/s (lowest-highest)"] = spread_text(own, "msgs_per_s")
    line |= {f"x {base}": _multiple(own, base, rounds) for base in bases}
    line["ack p50 / p99 ms"] = (
        f"{median_text(own, 'ack_ms_p50')} / {median_text(own, 'ack_ms_p99')}"
    )
    if any(entry.get("result_ms_p50") is not None for entry in rounds):
        line["result p50 / p99 ms"] = (
            f"{median_text(own, 'result_ms_p50')} / {median_text(own, 'result_ms_p99')}"
        )
    line["client CPU us"] = median_text(own, "client_cpu_us_per_msg")
    line["server CPU us"] = median_text(own, "server_cpu_us_per_msg")
    line |= {name: median_text(own, figure) for name, figure in DETAILS.items() if figure}
    line["RSS MB start, peak, end"] = _memory(own)
    line["threads start/peak/end"] = "/".join(
        number_text(max(values(own, f"threads_{at}"))) for at in ("initial", "peak", "final")
    )
    line["success"] = share_text(min(values(own, "success")))
    return line


def _multiple(own: list[Round], base: str, rounds: list[Round]) -> str:
    first = own[0]
    if (first["strategy"] in READERS) != (base in READERS) or first["strategy"] == base:
        return "-"
    wanted = {key: str(first[key]) for key in ("broker", "storage", "ids")} | {"strategy": base}
    others = select(rounds, wanted)
    # A base that ran with several sizes of its window is more than one series.
    if len({entry.get("max_pending") for entry in others}) != 1:
        return "-"
    found = spread(ratios(own, others))
    return number_text(found.median) if found else "-"


def _memory(own: list[Round]) -> str:
    """Where the first round starts, and the most that the peak and the end of a round added."""
    initial, peak, final = (values(own, f"rss_{at}_mb") for at in ("initial", "peak", "final"))
    grown = [max(b - a for a, b in zip(initial, later, strict=True)) for later in (peak, final)]
    return f"{initial[0]:.0f}, {grown[0]:+.1f}, {grown[1]:+.1f}"


def as_markdown(found: Sequence[Table], about: str = "") -> str:
    """Tables as a page shows them."""
    parts = [about] if about else []
    for table in found:
        rule = ["---"] * len(table.header)
        parts.append(f"**{table.title}**")
        parts.append(
            "\n".join(f"| {' | '.join(line)} |" for line in (table.header, rule, *table.lines))
        )
    return "\n\n".join(parts)

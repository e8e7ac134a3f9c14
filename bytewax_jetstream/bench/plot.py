"""Draws throughput and ack latency by number of messages, beside the report's own figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from .figures import Round, series, spread, values

__all__ = ["draw"]

REPORT = {
    "before": {500: 356.82, 2_000: 155.55, 5_000: 172.94, 10_000: 165.73},
    "after (shared pool)": {500: 450.83, 2_000: 1_326.95, 5_000: 2_403.19, 10_000: 2_992.48},
    "Kafka": {500: 458.02, 2_000: 1_549.65, 5_000: 2_806.89, 10_000: 4_189.53},
}
"""Messages per second, from the report; all of them contain a tick of 1 s."""


def draw(rounds: Sequence[Round], path: Path) -> None:
    """Write the plot; the file's name decides its format."""
    mpl.use("Agg")  # draws into a file, without a window
    from matplotlib import pyplot as plt
    from matplotlib.ticker import StrMethodFormatter

    figure, (throughput, latency, report) = plt.subplots(
        1, 3, figsize=(17, 6), layout="constrained"
    )
    lines: dict[str, list[tuple[int, list[Round]]]] = {}
    for own in series(rounds).values():
        lines.setdefault(_label(own[0], rounds), []).append((own[0]["messages"], own))
    for number, (label, points) in enumerate(sorted(lines.items())):
        color = f"C{number % 10}"
        dashes = "-" if number < 10 else ":"
        # The speed of a paced scenario is the scenario's, not the strategy's.
        if points[0][1][0].get("rate") is None:
            _line(throughput, points, "msgs_per_s", color=color, linestyle=dashes, label=label)
        _line(latency, points, "ack_ms_p50", color=color, linestyle=dashes, label=label)
        _line(latency, points, "ack_ms_p99", color=color, linestyle="--", alpha=0.4)
    for label, measured in REPORT.items():
        report.plot(list(measured), list(measured.values()), marker="o", label=label)
    for axes, title, unit in (
        (throughput, "Throughput: median, lowest and highest round", "messages a second"),
        (latency, "Submit to ack: median (p99 dashed)", "milliseconds"),
        (report, "The report's own figures, for shape", "messages a second"),
    ):
        axes.set(title=title, xlabel="messages", ylabel=unit, xscale="log", yscale="log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.grid(visible=True, which="both", alpha=0.2)
        axes.legend(fontsize="small")
    figure.savefig(path)
    plt.close(figure)


def _line(axes: Any, points: list[tuple[int, list[Round]]], name: str, **style: Any) -> None:
    drawn = [
        (count, found)
        for count, own in sorted(points, key=lambda point: point[0])
        if (found := spread(values(own, name)))
    ]
    if not drawn:
        return
    medians = [found.median for _, found in drawn]
    around = [
        [found.median - found.low for _, found in drawn],
        [found.high - found.median for _, found in drawn],
    ]
    axes.errorbar(
        [count for count, _ in drawn],
        medians,
        yerr=around,
        marker="o",
        markersize=4,
        capsize=2,
        **style,
    )


def _label(first: Round, rounds: Sequence[Round]) -> str:
    """The strategy, and the conditions that vary."""
    keys = ["broker", "storage", "ids", "ack_workers", "max_pending", "payload_bytes", "batch"]
    varying = [key for key in keys if len({str(entry.get(key)) for entry in rounds}) > 1]
    paced = ["paced"] if first.get("rate") is not None else []
    return ", ".join(
        [
            first["strategy"],
            *paced,
            *(str(first[key]) for key in varying if first.get(key) is not None),
        ]
    )

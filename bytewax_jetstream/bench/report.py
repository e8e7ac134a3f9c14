"""Rounds as tables, and pages whose numbers come out of results files.

A page keeps each number, and each table, between two comments:

    <!-- bench FILE table brief scenario=low,high -->…<!-- /bench -->
    <!-- bench FILE median client_cpu_us_per_msg strategy=flow scenario=high -->…<!-- /bench -->
    <!-- bench FILE most threads_final broker=jetstream -->…<!-- /bench -->
    <!-- bench FILE ratio strategy=flow / strategy=sync scenario=high ids=msgid -->…<!-- /bench -->

FILE is relative to the page. `fill` writes what belongs in between; nothing else in the page is
touched.
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BenchError
from .cases import READERS
from .figures import CONDITIONS, Round, ratios, select, series, spread, values

__all__ = ["Table", "as_markdown", "check", "fill", "load", "tables"]

BASES = ("before", "sync", "async", "lean", "confluent", "pull")
"""Whose multiple every strategy of its broker is shown as, where it ran."""
ALWAYS_TOLD = ("scenario", "payload_bytes", "batch", "strategy")
DETAILS = {
    "API requests": "mgmt_requests_per_msg",
    "bytes sent": "bytes_sent_per_msg",
    "TCP segments": "segments_sent_per_msg",
    "ack frames": "ack_frames_per_msg",
    "RSS MB start, peak, end": "",
    "threads start/peak/end": "",
}
"""Columns that a brief table does without, and the figures that are medians of one message."""
WORDS = {"ack_workers": "ACK workers", "max_pending": "max. pending"}
BLOCK = re.compile(r"(<!-- bench (\S+) (.+?) -->)(.*?)(<!-- /bench -->)", re.DOTALL)


class Table(NamedTuple):
    """A scenario's results, as text."""

    title: str
    header: list[str]
    lines: list[list[str]]


def load(path: Path) -> dict[str, Any]:
    """Read a results file.

    :raises BenchError: when it is not one.
    """
    try:
        results = json.loads(path.read_text())
        if not isinstance(results["rounds"], list):
            raise TypeError("its rounds are not a list")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(
            f"{path} is not a results file ({error}): give one that --json wrote", file=str(path)
        ) from None
    return dict(results)


def check(rounds: Iterable[Round]) -> list[str]:
    """A sentence for each round that lost or duplicated a message."""
    return [
        f"{entry['scenario']}, {entry['broker']} {entry['strategy']}, {entry['storage']}, {entry['ids']}, "
        f"round {entry['round']}: {entry['acked']} of {entry['messages']} acknowledged, {entry['found']} found, "
        f"{entry['duplicates']} twice"
        for entry in rounds
        if entry["success"] < 1 or entry["found"] != entry["messages"] or entry["duplicates"]
    ]


# Tables


def tables(rounds: Sequence[Round], *, brief: bool = False) -> list[Table]:
    """One table for each scenario, payload and batch; conditions that are the same everywhere have
    no column.

    :arg brief: Only what answers how fast, and at what price.
    """
    varying = [
        key
        for key in CONDITIONS
        if key not in ALWAYS_TOLD and len({str(entry.get(key)) for entry in rounds}) > 1
    ]
    groups: dict[tuple[str, int, int], list[Round]] = {}
    for entry in rounds:
        groups.setdefault((entry["scenario"], entry["payload_bytes"], entry["batch"]), []).append(
            entry
        )
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
    line["messages/s (lowest-highest)"] = _spread(own, "msgs_per_s")
    line |= {f"x {base}": _multiple(own, base, rounds) for base in bases}
    line["ack p50 / p99 ms"] = f"{_median(own, 'ack_ms_p50')} / {_median(own, 'ack_ms_p99')}"
    line["client CPU us"] = _median(own, "client_cpu_us_per_msg")
    line["server CPU us"] = _median(own, "server_cpu_us_per_msg")
    line |= {name: _median(own, figure) for name, figure in DETAILS.items() if figure}
    line["RSS MB start, peak, end"] = _memory(own)
    line["threads start/peak/end"] = "/".join(
        _number(max(values(own, f"threads_{at}"))) for at in ("initial", "peak", "final")
    )
    line["success"] = _share(min(values(own, "success")))
    return line


def _multiple(own: list[Round], base: str, rounds: list[Round]) -> str:
    first = own[0]
    if (first["strategy"] in READERS) != (base in READERS) or first["strategy"] == base:
        return "-"
    wanted = {key: str(first[key]) for key in ("broker", "storage", "ids")} | {"strategy": base}
    others = select(rounds, wanted)
    # `async` may have run with several sizes of its window: then it is no base.
    if len({entry.get("max_pending") for entry in others}) != 1:
        return "-"
    found = spread(ratios(own, others))
    return _number(found.median) if found else "-"


def _memory(own: list[Round]) -> str:
    """Where the first round begins, then how much more at most the peak and the end of any round
    were.
    """
    initial, peak, final = (values(own, f"rss_{at}_mb") for at in ("initial", "peak", "final"))
    grown = [max(b - a for a, b in zip(initial, later, strict=True)) for later in (peak, final)]
    return f"{initial[0]:.0f}, {grown[0]:+.1f}, {grown[1]:+.1f}"


def _median(own: list[Round], figure: str) -> str:
    found = spread(values(own, figure))
    return _number(found.median) if found else "-"


def _spread(own: list[Round], figure: str) -> str:
    found = spread(values(own, figure))
    return f"{_number(found.median)} ({_number(found.low)}-{_number(found.high)})" if found else "-"


def _share(value: float) -> str:
    return f"{value:.2%}".replace(".00%", "%")


def _number(value: float) -> str:
    """Three digits that mean something, and no more."""
    if value == 0:
        return "0"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return (
        f"{value:.1f}"
        if abs(value) >= 10
        else f"{value:.2f}"
        if abs(value) >= 0.1
        else f"{value:.2g}"
    )


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


def about(results: dict[str, Any]) -> str:
    """How and where a results file came to be, in two lines."""
    machine, versions = results["machine"], results["versions"]
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"`{results['command']}`\n\n{machine['cpus']} CPUs ({machine['cpu']}), {machine['memory_gb']} GB; {software}."


# Pages


def fill(page: Path) -> str:
    """The page with every number and table as its results file says.

    :raises BenchError: when a comment asks for what no results file has.
    """
    return BLOCK.sub(
        lambda block: block[1] + _answer(page, block[2], block[3]) + block[5], page.read_text()
    )


@lru_cache(maxsize=8)
def _results(path: Path, modified: int) -> dict[str, Any]:
    return load(path)


def _answer(page: Path, file: str, query: str) -> str:
    path = page.parent / file
    results = _results(path, path.stat().st_mtime_ns if path.exists() else 0)
    kind, *words = query.split()
    try:
        return _ANSWERS[kind](results, words)
    except (BenchError, KeyError, ValueError) as error:
        raise BenchError(
            f"{page.name} asks {file} for `{query}`, which has no answer: {error}", file=str(page)
        ) from None


def _wanted(words: Iterable[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words if "=" in word)


def _of(results: dict[str, Any], wanted: dict[str, str]) -> list[Round]:
    """The rounds that are asked for; here a condition may name several values, each of which some
    round must have.
    """
    for key, value in wanted.items():
        if missing := set(value.split(",")) - {str(entry.get(key)) for entry in results["rounds"]}:
            raise BenchError(f"no round has {key}={min(missing)}")
    found = [
        entry
        for entry in results["rounds"]
        if all(str(entry.get(key)) in value.split(",") for key, value in wanted.items())
    ]
    if not found:
        raise BenchError("no round has these conditions")
    return found


def _answer_table(results: dict[str, Any], words: list[str]) -> str:
    return f"\n\n{as_markdown(tables(_of(results, _wanted(words)), brief='brief' in words))}\n\n"


def _answer_about(results: dict[str, Any], words: list[str]) -> str:
    return f"\n\n{about(results)}\n\n"


def _answer_median(results: dict[str, Any], words: list[str]) -> str:
    return _median(_of(results, _wanted(words)), words[0])


def _answer_spread(results: dict[str, Any], words: list[str]) -> str:
    return _spread(_of(results, _wanted(words)), words[0])


def _answer_most(results: dict[str, Any], words: list[str]) -> str:
    return _number(max(values(_of(results, _wanted(words)), words[0])))


def _answer_least(results: dict[str, Any], words: list[str]) -> str:
    lowest = min(values(_of(results, _wanted(words)), words[0]))
    return _share(lowest) if words[0] == "success" else _number(lowest)


def _answer_ratio(results: dict[str, Any], words: list[str]) -> str:
    bar = words.index("/")
    common = _wanted(words[bar + 2 :])
    above, below = (
        select(results["rounds"], common | _wanted(words[at].split(",")))
        for at in (bar - 1, bar + 1)
    )
    figure = words[0] if "=" not in words[0] else "msgs_per_s"
    found = spread(ratios(above, below, figure))
    if found is None:
        raise BenchError(f"no pair of rounds has {figure}")
    return _number(found.median)


_ANSWERS = {
    "about": _answer_about,
    "least": _answer_least,
    "median": _answer_median,
    "most": _answer_most,
    "ratio": _answer_ratio,
    "spread": _answer_spread,
    "table": _answer_table,
}

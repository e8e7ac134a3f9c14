"""`bytewax-jetstream bench`: its options, and which files are written."""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import typer

from ..bench.cases import BROKERS, SCENARIOS, STRATEGIES  # has names only
from ..errors import BenchError, JetStreamPipelineError

if TYPE_CHECKING:
    from ..bench.cases import Case, Choice
    from ..bench.tables import Table

__all__ = ["EPILOG", "bench"]

T = TypeVar("T")

EVERY_STRATEGY = tuple(dict.fromkeys(name for names in STRATEGIES.values() for name in names))
EXTRA = "pip install 'bytewax-jetstream[bench]'"


def _epilog() -> str:
    lines = ["\b", "Scenarios:"]
    for name, (messages, rate) in SCENARIOS.items():
        lines.append(f"  {name:10}{messages:>9,} messages{f', {rate:,} a second' if rate else ''}")
    for broker, strategies in STRATEGIES.items():
        lines += ["", "\b", f"Strategies of {broker}:"]
        lines += [f"  {name:10}{meaning}" for name, meaning in strategies.items()]
    return "\n".join(lines)


EPILOG = _epilog()
"""Shown below the options."""


class Options(NamedTuple):
    """What a run measures, on which brokers, and which files it writes."""

    choice: "Choice"
    rounds: int
    nats_url: str | None
    kafka_brokers: str | None
    json: Path | None
    plot: Path | None
    markdown: Path | None


def bench(
    scenarios: Annotated[
        str, typer.Option(metavar="NAME,…", help="How many messages: see below.")
    ] = "low,medium,high,extreme",
    brokers: Annotated[str, typer.Option(metavar="NAME,…", help="jetstream, kafka.")] = "jetstream",
    strategies: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="How they are published or read: see below; by default in every way.",
        ),
    ] = None,
    storage: Annotated[
        str, typer.Option(metavar="NAME,…", help="Of the JetStream stream: file, memory.")
    ] = "file",
    ids: Annotated[
        str,
        typer.Option(
            metavar="NAME,…",
            help="Where the event id goes: msgid, by which JetStream drops duplicates, or another "
            "header.",
        ),
    ] = "msgid",
    payload: Annotated[str, typer.Option(metavar="N,…", help="Bytes.")] = "108",
    batch: Annotated[
        str,
        typer.Option(
            metavar="N,…",
            help="Messages that come at once: in a source's batch, a submission, a write.",
        ),
    ] = "1000",
    ack_workers: Annotated[
        str | None, typer.Option(metavar="N,…", help="Of our pool; by default its own.")
    ] = None,
    max_pending: Annotated[
        str | None,
        typer.Option(
            metavar="N,…",
            help="Messages unsettled at once, of our pool and of async; by default their own.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Rounds of each case.")] = 5,
    nats_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="A NATS server with JetStream; by default the run starts its own."
        ),
    ] = None,
    kafka_brokers: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="A Kafka cluster; by default the run starts its own."
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write machine, versions and every round.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw throughput and latency, as .png or .svg."),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the tables as Markdown.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Fail when a round lost or repeated a message or a result."),
    ] = False,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Measure nothing: use this results file."),
    ] = None,
    fill: Annotated[
        str | None,
        typer.Option(
            metavar="PAGE,…", help="Measure nothing: bring the numbers of these pages up to date."
        ),
    ] = None,
) -> None:
    """Measure how fast messages are published.

    They are published in many ways, side by side, and acknowledged. Lists are comma-separated.

    Exit codes: 0 measured; 1 --check found a loss or a repetition; 2 usage, or a broker or file
    that cannot be used.
    """
    from ..bench.cases import Choice

    options = Options(
        Choice(
            _names("--scenarios", scenarios, SCENARIOS),
            _names("--brokers", brokers, BROKERS),
            EVERY_STRATEGY
            if strategies is None
            else _names("--strategies", strategies, EVERY_STRATEGY),
            _names("--storage", storage, ("file", "memory")),
            _names("--ids", ids, ("msgid", "header")),
            (None,) if ack_workers is None else _counts("--ack-workers", ack_workers),
            (None,) if max_pending is None else _counts("--max-pending", max_pending),
            _counts("--payload", payload),
            _counts("--batch", batch),
        ),
        rounds,
        nats_url,
        kafka_brokers,
        json,
        plot,
        markdown,
    )
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise typer.BadParameter(f"{plot.name} must end with .png or .svg", param_hint="--plot")
    pages = None if fill is None else _list("--fill", fill, Path)
    raise typer.Exit(_bench(options, source, pages, check=check))


def _bench(
    options: Options, source: Path | None, pages: Sequence[Path] | None, *, check: bool
) -> int:
    """Do what the options say; returns the exit code."""
    from ..bench import results as files
    from ..bench.pages import fill

    try:
        if pages is not None:
            for page in pages:
                page.write_text(fill(page))
            return 0
        results = files.load(source) if source is not None else _measure(options)
        _hand_out(results, options)
    except (JetStreamPipelineError, OSError) as error:
        print(f"bytewax-jetstream bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    complaints = files.check(results["rounds"]) if check else []
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


# What is measured, and what becomes of it


def _measure(options: Options) -> dict[str, Any]:
    from ..bench.cases import plan

    groups = plan(options.choice)
    if not groups:
        raise typer.BadParameter(
            "this choice leaves nothing to measure: "
            "name a strategy that its brokers and scenarios have",
            param_hint="--strategies",
        )
    try:
        return _run(groups, options)
    except ImportError as error:
        raise BenchError(f"the benchmark needs {error.name}: {EXTRA}") from None


def _run(groups: "list[list[Case]]", options: Options) -> dict[str, Any]:
    from contextlib import ExitStack
    from datetime import UTC, datetime

    from ..bench.brokers import Broker
    from ..bench.progress import Progress
    from ..bench.results import commit, installed_versions, machine
    from ..bench.runner import run

    used = {case.broker for group in groups for case in group}
    brokers: dict[str, Broker] = {}
    with ExitStack() as stack:
        if "jetstream" in used:
            from ..bench.jetstream_broker import JetStreamBroker

            brokers["jetstream"] = stack.enter_context(JetStreamBroker(options.nats_url))
        if "kafka" in used:
            from ..bench.kafka_broker import KafkaBroker

            brokers["kafka"] = stack.enter_context(KafkaBroker(options.kafka_brokers))
        versions = installed_versions()
        for broker in brokers.values():
            versions |= broker.versions()
        with Progress(sum(map(len, groups)), options.rounds) as progress:
            rounds = run(groups, brokers, options.rounds, progress.show)
    return {
        "command": _command(options),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions,
        "commit": commit(),
        "rounds": rounds,
    }


def _command(options: Options) -> str:
    """The command that makes this choice again, without files and addresses of this machine."""
    words = ["bytewax-jetstream bench"]
    for name, value in {**options.choice._asdict(), "rounds": options.rounds}.items():
        if value not in ((None,), EVERY_STRATEGY):
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words.append(f"--{name.replace('_', '-')} {shown}")
    return " ".join(words)


def _hand_out(results: dict[str, Any], options: Options) -> None:
    from ..bench.results import about, save
    from ..bench.tables import as_markdown, tables

    if options.json is not None:
        save(results, options.json)
    found = tables(results["rounds"])
    if options.markdown is not None:
        options.markdown.write_text(as_markdown(found, about(results)) + "\n")
    else:
        _show(found, about(results))
    if options.plot is not None:
        try:
            from ..bench.plot import draw
        except ImportError as error:
            raise BenchError(f"a plot needs {error.name}: {EXTRA}") from None
        draw(results["rounds"], options.plot)


def _show(found: "Iterable[Table]", text: str) -> None:
    try:
        from ..bench.progress import show_tables
    except ImportError as error:
        raise BenchError(f"the tables need {error.name}, or use --markdown: {EXTRA}") from None
    show_tables(found, text)


# The values of the options


def _names(option: str, text: str, known: Iterable[str]) -> tuple[str, ...]:
    names = tuple(known)

    def parse(word: str) -> str:
        if word not in names:
            raise typer.BadParameter(
                f"unknown name {word!r}: choose from {', '.join(names)}", param_hint=option
            )
        return word

    return _list(option, text, parse)


def _counts(option: str, text: str) -> tuple[int, ...]:
    def parse(word: str) -> int:
        if not word.isascii() or not word.isdigit() or int(word) < 1:
            raise typer.BadParameter(
                f"{word!r} is not a valid count: give whole numbers from 1", param_hint=option
            )
        return int(word)

    return _list(option, text, parse)


def _list(option: str, text: str, parse: Callable[[str], T]) -> tuple[T, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise typer.BadParameter(f"{text!r} has no value: give at least one", param_hint=option)
    return tuple(dict.fromkeys(map(parse, words)))

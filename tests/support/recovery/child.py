"""The dataflow that is killed: `python -m tests.support.recovery.child <its orders as JSON>`.

It publishes rows and keeps every result and checkpoint in SQLite. Its orders can tell it to kill
itself at an exact point, and to do without something that must not be missing: both are done to the
package from here, so the package has no hook for it.
"""

import json
import os
import pickle
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any, Literal

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

import bytewax_jetstream.operators as jop
from bytewax_jetstream.dataflow import publish_step
from bytewax_jetstream.dispatch.segment import Entry
from bytewax_jetstream.dispatch.singles import Singles
from bytewax_jetstream.drain import drain_on_signal
from bytewax_jetstream.envelope import Checkpoint, Envelope, PublishResult
from bytewax_jetstream.jetstream.publisher import encoding as wire
from bytewax_jetstream.jetstream.publisher import publisher
from bytewax_jetstream.jetstream.publisher.publisher import JetStreamPublisher
from bytewax_jetstream.pool import Lane
from bytewax_jetstream.pool.mailbox import Mailbox
from bytewax_jetstream.pool.results import Delivery
from tests.support.dataflows import run
from tests.support.lanes import jetstream, kafka
from tests.support.recovery.board import Board, Slot
from tests.support.recovery.rows import PARTS, STREAM, envelope_of, padded

__all__ = ["KEPT", "Aim", "Kept", "Orders", "Without"]

Aim = Literal["submitting", "barrier", "settling", "snapshot", "committed"]
"""Where the dataflow kills itself: before a hand-over, with others in flight; as the barrier begins
to wait; in the midst of that, some acks having come; when the barrier is through and nothing is
committed; or when an epoch is committed, its results are in the recovery store only, and the next
epoch is in flight.
"""
Without = Literal["barrier", "ids", "results", "order"]
"""What is left out: the wait at an epoch's end; ids that stay the same at a replay; unemitted
results in the state; that an envelope waits for the one before it of its aggregate.
"""
KEPT = ("oks", "errs", "checkpoints")
Kept = PublishResult | Checkpoint

BATCH = 40
KEEPERS = 2

LANE: Any = Lane
PUBLISHER: Any = JetStreamPublisher
PUBLISHER_MODULE: Any = publisher
MAILBOX: Any = Mailbox
SINGLES: Any = Singles
STEP: Any = publish_step.PublishLogic


@dataclass(frozen=True)
class Orders:
    """What a run of the dataflow is to be like."""

    directory: str
    url: str
    run: int
    broker: Literal["jetstream", "kafka"] = "jetstream"
    workers: int = 1
    epoch: float = 0.05
    budget: int = 1_000
    ack_timeout: float = 1.0
    delivery_timeout: float = 30.0
    rows: int | None = None
    """Rows of each partition; None for as many as the test lets it make. A run with an end drains
    at SIGTERM.
    """
    size: int = 0
    """Bytes of a payload, at least."""
    aim: Aim | None = None
    aim_at: int = 1
    """At which occasion, counted from 1."""
    without: Without | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Rows(FixedPartitionedSource[Envelope, int]):
    """Makes as many rows as ordered; or rows until the board says that it is enough, then the rows
    that a replay owes.
    """

    def __init__(self, board: Board, orders: Orders) -> None:
        self._board, self._orders = board, orders

    def list_parts(self) -> list[str]:
        return [str(part) for part in range(PARTS)]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> "_Part":
        return _Part(self._board, self._orders, int(for_part), resume_state or 0)


class _Part(StatefulSourcePartition[Envelope, int]):
    def __init__(self, board: Board, orders: Orders, part: int, index: int) -> None:
        self._board, self._part, self._index = board, part, index
        self._rows, self._size = orders.rows, orders.size
        self._closed_an_epoch = False

    def next_batch(self) -> Sequence[Envelope]:
        if self._closed_an_epoch:
            self._closed_an_epoch = False
            self._board[Slot.COMMITS] += 1
        last = self._index + BATCH
        if self._board[Slot.STOP]:
            last = min(last, self._board.made_by(self._part))
        if self._rows is not None:
            last = min(last, self._rows)
        if last <= self._index:
            raise StopIteration
        indexes = range(self._index, last)
        batch = [padded(envelope_of(self._part, index), self._size) for index in indexes]
        self._board.made(self._part, last)
        self._index = last
        return batch

    def snapshot(self) -> int:
        self._closed_an_epoch = True
        return self._index


class Keeper(FixedPartitionedSink[Any, None]):
    """Keeps all items in the order they come, each with its run."""

    def __init__(self, directory: Path, what: str, run: int) -> None:
        self._directory, self._what, self._run = directory, what, run

    def list_parts(self) -> list[str]:
        return [str(number) for number in range(KEEPERS)]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "_KeeperPart":
        return _KeeperPart(self._directory / f"{self._what}-{for_part}.sqlite3", self._run)


class _KeeperPart(StatefulSinkPartition[Any, None]):
    def __init__(self, path: Path, run: int) -> None:
        self._run = run
        self._database = sqlite3.connect(path, isolation_level=None)
        # What a process has written outlives its SIGKILL; only a power cut would take more.
        self._database.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;"
            "CREATE TABLE IF NOT EXISTS kept (number INTEGER PRIMARY KEY, run INTEGER, batch BLOB)"
        )

    def write_batch(self, values: list[Any]) -> None:
        self._database.execute(
            "INSERT INTO kept (run, batch) VALUES (?, ?)", (self._run, pickle.dumps(values))
        )

    def snapshot(self) -> None:
        return None

    def close(self) -> None:
        self._database.close()


def dataflow(orders: Orders, board: Board) -> Dataflow:
    directory = Path(orders.directory)
    deadlines: dict[str, Any] = {
        "ack_timeout": orders.ack_timeout,
        "delivery_timeout": orders.delivery_timeout,
        "pool": {"budget_messages": orders.budget},
    }
    flow = Dataflow("killed")
    source: Any = Rows(board, orders)
    if orders.rows is not None:
        source = drain_on_signal(source)
    rows = op.input("rows", flow, source)
    if orders.broker == "kafka":
        rows = op.map("one-topic", rows, _in_one_topic)
        out = jop.publish("publish", rows, kafka(orders.url, **deadlines))
    else:
        out = jop.publish("publish", rows, jetstream(orders.url, **deadlines))
    for what in KEPT:
        keyed = op.key_on(f"{what}-by", getattr(out, what), _key_of)
        op.output(f"keep-{what}", keyed, Keeper(directory, what, orders.run))
    return flow


def _in_one_topic(row: Envelope) -> Envelope:
    """Kafka has no order across topics; an invalid topic stays as it is."""
    return row if row.topic.endswith("*") else row._replace(topic=STREAM)


def _key_of(kept: Kept) -> str:
    return kept.lane if isinstance(kept, Checkpoint) else str(kept.aggregate_id)


class _Watch:
    """Writes to the board what the pool and the publish step do, and kills this process where it
    was told to.
    """

    def __init__(self, orders: Orders, board: Board) -> None:
        self._aim, self._aim_at, self._board = orders.aim, orders.aim_at, board
        self._occasions = count(1)
        self._lock = threading.Lock()
        self._lanes: dict[int, Lane] = {}
        """By the thread that fills them: each worker's."""
        self._epoch = 0
        """The latest epoch with an envelope."""
        self._settling: set[Mailbox] = set()
        """Lanes whose epoch is being closed."""
        self._held: int | None = None
        """The epoch whose commit is awaited, with results that were not passed on."""
        self._holds_back = orders.aim == "committed"
        """Whether results are held back, so that a commit finds them not passed on."""

    def install(self) -> None:
        submit, deliver, sending = LANE.submit, MAILBOX.deliver, SINGLES._sending
        snapshot, pass_on, on_eof = STEP.snapshot, STEP._pass_on, STEP.on_eof

        def watched_submit(lane: Lane, envelopes: Sequence[Envelope], *, epoch: int = 0) -> None:
            self._lanes[threading.get_ident()] = lane
            if lane.unsettled:
                self._aimed("submitting")
            submit(lane, envelopes, epoch=epoch)
            self._epoch = max(epoch, self._epoch)
            self._count(Slot.SUBMITTED, len(envelopes))
            if self._held is not None and epoch > self._held + 1 and lane.unsettled:
                self._die()  # by now the one that is held was committed, while the next was open

        def watched_sending(singles: Any, lane: Any, entries: list[Entry], *rest: Any) -> Any:
            number = sending(singles, lane, entries, *rest)  # a retry never goes in a batch
            self._count(Slot.RETRIED, sum(entry.attempts > 1 for entry in entries))
            return number

        def watched_deliver(
            mailbox: Mailbox, delivery: Delivery, stop: PublishResult | None
        ) -> None:
            deliver(mailbox, delivery, stop)
            self._count(Slot.SETTLED, len(delivery.oks) + len(delivery.errs))
            if mailbox in self._settling and mailbox.unsettled:
                self._aimed("settling")

        def watched_snapshot(step: Any) -> Any:
            # Not the thread's: there, a step resumed from another number of workers closes its
            # epoch beside this one.
            lane = step._lane
            if lane is not None and lane.unsettled:
                self._count(Slot.BARRIERS, 1)
                self._aimed("barrier")
                self._settling.add(lane._mailbox)
                self._board[Slot.CLOSING] = len(self._settling)
            state = snapshot(step)
            _, _, oks, errs, checkpoints = state
            if lane is not None:
                self._count(Slot.LEFT, lane.unsettled)
                self._settling.discard(lane._mailbox)
                self._board[Slot.CLOSING] = len(self._settling)
            if oks or errs or checkpoints:
                self._aimed("snapshot")
            if oks and self._held is None and self._is_time("committed"):
                self._held = self._epoch
            return state

        def watched_pass_on(step: Any) -> Any:
            return ((), STEP.RETAIN) if self._holds_back else pass_on(step)

        def watched_on_eof(step: Any) -> Any:
            self._holds_back = False  # it came to its end before its time
            return on_eof(step)

        LANE.submit, MAILBOX.deliver = watched_submit, watched_deliver
        SINGLES._sending = watched_sending
        STEP.snapshot, STEP._pass_on, STEP.on_eof = (
            watched_snapshot,
            watched_pass_on,
            watched_on_eof,
        )

    def _count(self, slot: Slot, more: int) -> None:
        with self._lock:
            self._board[slot] += more
            self._board[Slot.UNSETTLED] = sum(lane.unsettled for lane in list(self._lanes.values()))

    def _aimed(self, point: Aim) -> None:
        if self._is_time(point):
            self._die()

    def _is_time(self, point: Aim) -> bool:
        return self._aim == point and next(self._occasions) >= self._aim_at

    def _die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def _do_without_barrier() -> None:
    LANE.wait = lambda lane, below, until: True


def _do_without_ids() -> None:
    message_id, numbers = wire.message_id, count()

    def never_the_same(event_id: object, *, dedupe: bool = True) -> bytes:
        return message_id(f"{event_id}-{os.getpid()}-{next(numbers)}", dedupe=dedupe)

    wire.message_id = never_the_same
    PUBLISHER_MODULE.encode_all = lambda *columns, **options: (
        None
    )  # so that each envelope is encoded by itself


def _do_without_results() -> None:
    snapshot = STEP.snapshot

    def forgetful(step: Any) -> None:
        snapshot(step)

    STEP.snapshot = forgetful


def _do_without_order() -> None:
    policy = PUBLISHER.policy.fget
    PUBLISHER.policy = property(
        lambda publisher: policy(publisher)._replace(one_per_aggregate=False)
    )


WITHOUT: dict[Without, Callable[[], None]] = {
    "barrier": _do_without_barrier,
    "ids": _do_without_ids,
    "results": _do_without_results,
    "order": _do_without_order,
}


def main(arguments: Iterable[str]) -> None:
    """Run the dataflow until it ends, or until it is killed."""
    orders = Orders(**json.loads(next(iter(arguments))))
    directory = Path(orders.directory)
    board = Board(directory / "board")
    _Watch(orders, board).install()
    if orders.without is not None:
        WITHOUT[orders.without]()
    run(
        dataflow(orders, board),
        workers=orders.workers,
        store=directory / "recovery",
        epoch=timedelta(seconds=orders.epoch),
    )


if __name__ == "__main__":
    main(sys.argv[1:])

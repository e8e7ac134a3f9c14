"""This package's own ways: the bare pool, a whole dataflow, and the source."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main

from ... import operators as jop
from ...envelope import Envelope, PublishResult
from ...errors import SettleTimeoutError
from ...pool.ack_pool import AckPool
from ...settings import BrokerSettings, JetStreamSettings, KafkaSettings, PoolSettings
from ...sinks import publisher_for
from ..meter import Tally, Trial
from ..names import STREAM

__all__ = ["Feed", "flow", "pool", "source"]

EPOCH = timedelta(seconds=1)
"""Ten times as many barriers as Bytewax's default would make."""
LOOK = timedelta(milliseconds=1)
DOUBT_SECONDS = 15.0


def settings_for(trial: Trial) -> BrokerSettings:
    """The settings of a case: only what it names differs from the defaults."""
    case = trial.case
    sizes: dict[str, Any] = {"ack_workers": case.ack_workers, "budget_messages": case.max_pending}
    pool = PoolSettings(**{name: size for name, size in sizes.items() if size is not None})
    if case.broker == "kafka":
        return KafkaSettings(brokers=tuple(trial.url.split(",")), pool=pool)
    more: dict[str, Any] = {"dedupe": False} if case.ids == "header" else {}
    return JetStreamSettings(servers=(trial.url,), stream_strategy="validate", pool=pool, **more)


def pool(trial: Trial) -> Tally:
    """Envelopes handed to a lane in batches, results taken as they come."""
    settings, load, meter, tally = settings_for(trial), trial.load, trial.meter, Tally()
    with AckPool(settings.pool) as ack_pool:
        lane = ack_pool.lane(publisher_for(settings), name="bench")
        lane.submit(load.warm_up())
        lane.flush()
        until = time.monotonic() + DOUBT_SECONDS
        while in_doubt(ack_pool, until):
            time.sleep(LOOK.total_seconds())
        writes = _writes(ack_pool)
        meter.start()
        for batch in load.batches():
            if pause := load.wait():
                time.sleep(pause)
            lane.submit(batch)
            for delivery in lane.take():
                _count(tally, delivery.oks)
        _count(tally, [result for result in lane.flush() if result.reason is None])
        meter.stop()
        tally.writes = _less(_writes(ack_pool), writes)
    return tally


def in_doubt(ack_pool: AckPool, until: float) -> bool:
    """Whether the pool still publishes with the caution it has after a start; it must not for long."""
    doubtful = any(broker.get("streams_in_doubt") for broker in ack_pool.statistics()["brokers"])
    if doubtful and time.monotonic() > until:
        raise SettleTimeoutError(
            f"the stream is still in doubt after {DOUBT_SECONDS:g} s: check that the broker "
            "answers",
            seconds=DOUBT_SECONDS,
        )
    return doubtful


def _count(tally: Tally, oks: list[PublishResult]) -> None:
    tally.acked += len(oks)
    tally.latencies.extend([result.ack_seconds for result in oks])


def _writes(ack_pool: AckPool) -> int | None:
    counts = [
        broker["socket_writes"]
        for broker in ack_pool.statistics()["brokers"]
        if "socket_writes" in broker
    ]
    return sum(counts) if counts else None


def _less(after: int | None, before: int | None) -> int | None:
    return None if after is None or before is None else after - before


# Dataflows


class Feed(FixedPartitionedSource[Envelope, None]):
    """Emits the warm-up, waits until it is settled, starts the clock, and emits the rest.

    :arg settled: Whether so many envelopes are settled, and the clock may start.
    """

    def __init__(self, trial: Trial, settled: Callable[[int], bool]) -> None:
        self.trial = trial
        self.settled = settled

    def list_parts(self) -> list[str]:
        """One: what is measured is one worker."""
        return ["all"]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "_FeedPart":
        """Begin."""
        return _FeedPart(self.trial, self.settled)


class _FeedPart(StatefulSourcePartition[Envelope, None]):
    def __init__(self, trial: Trial, settled: Callable[[int], bool]) -> None:
        self._load, self._meter, self._settled = trial.load, trial.meter, settled
        self._warm_up: list[Envelope] = self._load.warm_up()
        self._warm = len(self._warm_up)
        self._batches: Iterator[list[Envelope]] | None = None
        self._pause = 0.0

    def next_batch(self) -> list[Envelope]:
        if self._warm_up:
            warm_up, self._warm_up = self._warm_up, []
            return warm_up
        if self._batches is None:
            if not self._settled(self._warm):
                self._pause = LOOK.total_seconds()
                return []
            self._meter.start()
            self._batches = self._load.batches()
        batch = next(self._batches)  # whose StopIteration is Bytewax's end of a source, too
        self._pause = self._load.wait()
        return batch

    def next_awake(self) -> datetime | None:
        return datetime.now(UTC) + timedelta(seconds=self._pause) if self._pause else None

    def snapshot(self) -> None:
        """Nothing is resumed."""


class _Results(DynamicSink[PublishResult], StatelessSinkPartition[PublishResult]):
    """Counts the results; the last one stops the clock."""

    def __init__(self, trial: Trial, ack_pool: AckPool) -> None:
        self.tally = Tally()
        self.warm = 0
        self._ack_pool = ack_pool
        self._until = time.monotonic() + DOUBT_SECONDS
        self._writes: int | None = None
        self._messages, self._meter = trial.load.messages, trial.meter
        self._warm_messages = len(trial.load.warm_up())

    def settled(self, messages: int) -> bool:
        """Whether so many results of the warm-up are in, and the pool has no doubt left."""
        if self.warm < messages or in_doubt(self._ack_pool, self._until):
            return False
        self._writes = _writes(self._ack_pool)
        return True

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_Results":
        return self

    def write_batch(self, items: list[PublishResult]) -> None:
        if (
            self.warm < self._warm_messages
        ):  # the clock starts when these are in, so no batch holds both
            self.warm += len(items)
            return
        _count(self.tally, items)
        if self.tally.acked == self._messages:
            self._meter.stop()
            self.tally.writes = _less(_writes(self._ack_pool), self._writes)


def flow(trial: Trial) -> Tally:
    """A dataflow, from the first envelope emitted to the last result passed on."""
    settings = settings_for(trial)
    with _shared_pool(settings) as ack_pool:
        results = _Results(trial, ack_pool)
        dataflow = Dataflow("bench")
        envelopes = op.input("feed", dataflow, Feed(trial, results.settled))
        out = jop.publish("publish", envelopes, settings)
        op.output("results", out.oks, results)
        run_main(dataflow, epoch_interval=EPOCH)
    if not trial.meter.stopped:  # results are missing; the figures will say how many
        trial.meter.stop()
    return results.tally


@contextmanager
def _shared_pool(settings: BrokerSettings) -> Iterator[AckPool]:
    """The pool that the dataflow's steps will borrow too, for a look at its counters."""
    ack_pool = AckPool.borrow(settings.pool)
    try:
        yield ack_pool
    finally:
        AckPool.give_back()


class _Read(DynamicSink[Any], StatelessSinkPartition[Any]):
    def __init__(self, trial: Trial) -> None:
        self.tally = Tally()
        self._messages, self._meter = trial.load.messages, trial.meter

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_Read":
        return self

    def write_batch(self, items: list[Any]) -> None:
        self.tally.acked += len(items)
        if self.tally.acked == self._messages:
            self._meter.stop()


def source(trial: Trial) -> Tally:
    """A dataflow that reads the stream, from its start, consumer and all, to the last message."""
    settings, read = settings_for(trial), _Read(trial)
    assert isinstance(settings, JetStreamSettings)
    dataflow = Dataflow("bench")
    items = jop.input(
        "read", dataflow, settings, stream=STREAM, tail=False, batch_size=trial.case.batch
    )
    op.output("count", items.oks, read)
    trial.meter.start()
    run_main(dataflow, epoch_interval=EPOCH)
    if not trial.meter.stopped:
        trial.meter.stop()
    return read.tally

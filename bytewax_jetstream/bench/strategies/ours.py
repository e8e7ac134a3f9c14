"""This package's own ways: the pool alone, a whole dataflow, and the source."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition

from ... import operators as jop
from ...dataflow.outlet import publisher_for
from ...envelope import PublishResult
from ...errors import BenchError
from ...pool import AckPool, borrow_pool, give_back_pool
from ...settings import BrokerSettings, JetStreamSettings, KafkaSettings, PoolSettings
from ..load import Load
from ..meter import Tally, Trial
from .dataflows import LOOK, Feed, run

__all__ = ["flow", "pool", "source"]

DOUBT_SECONDS = 15.0
TIMED = 10
"""Of how many results that come together one is timed."""


def settings_for(trial: Trial) -> BrokerSettings:
    """The settings of a case: the defaults, except for what it names."""
    case = trial.case
    sizes: dict[str, Any] = {"ack_workers": case.ack_workers, "budget_messages": case.max_pending}
    pool = PoolSettings(**{name: size for name, size in sizes.items() if size is not None})
    if case.broker == "kafka":
        return KafkaSettings(brokers=tuple(trial.url.split(",")), pool=pool)
    more: dict[str, Any] = {"dedupe": False} if case.ids == "header" else {}
    return JetStreamSettings(servers=(trial.url,), stream_strategy="validate", pool=pool, **more)


def pool(trial: Trial) -> Tally:
    """Envelopes are submitted to a lane in batches, and their results taken as they come."""
    settings, load, meter, tally = settings_for(trial), trial.load, trial.meter, Tally()
    with AckPool(settings.pool) as ack_pool:
        lane = ack_pool.lane(publisher_for(settings), name="bench")
        lane.submit(load.warm_up())
        lane.flush()
        until = time.monotonic() + DOUBT_SECONDS
        while in_doubt(ack_pool, until):
            time.sleep(LOOK)
        writes = _writes(ack_pool)
        meter.start()

        def take(results: list[PublishResult]) -> None:
            _count(tally, load, [result for result in results if result.reason is None])

        def rest(seconds: float) -> None:
            until = time.monotonic() + seconds
            lane.wait(1, until)
            take(lane.collect())
            time.sleep(max(0.0, until - time.monotonic()))

        for batch in load.paced(rest):
            lane.submit(batch)
            take(lane.collect())
        take(lane.flush())
        meter.stop()
        tally.writes = _difference(_writes(ack_pool), writes)
    return tally


def in_doubt(ack_pool: AckPool, until: float) -> bool:
    """Whether a stream is still in doubt, as it may be after a start; then the pool is slower.

    :raises BenchError: when it is in doubt after `until`.
    """
    doubtful = any(broker.get("streams_in_doubt") for broker in ack_pool.statistics()["brokers"])
    if doubtful and time.monotonic() > until:
        raise BenchError(
            f"the stream is still in doubt after {DOUBT_SECONDS:g} s: "
            "check whether the server answers"
        )
    return doubtful


def _count(tally: Tally, load: Load, oks: list[PublishResult]) -> None:
    now = time.perf_counter()
    numbers = [load.number_of(result.event_id) for result in oks]
    tally.answered(numbers, load.messages)
    tally.latencies.extend([result.ack_seconds for result in oks])
    tally.collected.extend([now - load.given_at(number) for number in numbers[::TIMED]])


def _writes(ack_pool: AckPool) -> int | None:
    counts = [
        broker["socket_writes"]
        for broker in ack_pool.statistics()["brokers"]
        if "socket_writes" in broker
    ]
    return sum(counts) if counts else None


def _difference(after: int | None, before: int | None) -> int | None:
    return None if after is None or before is None else after - before


class _Results(DynamicSink[PublishResult], StatelessSinkPartition[PublishResult]):
    """Counts the results; the last one stops the clock."""

    def __init__(self, trial: Trial, ack_pool: AckPool) -> None:
        self.tally = Tally()
        self.warm = 0
        self._trial = trial
        self._ack_pool = ack_pool
        self._until = time.monotonic() + DOUBT_SECONDS
        self._writes: int | None = None
        self._warm_messages = len(trial.load.warm_up())

    def settled(self, messages: int) -> bool:
        """Whether this many results of the warm-up are in, and no stream is in doubt."""
        if self.warm < messages or in_doubt(self._ack_pool, self._until):
            return False
        self._writes = _writes(self._ack_pool)
        return True

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_Results":
        return self

    def write_batch(self, items: list[PublishResult]) -> None:
        # The clock starts when the warm-up is in, so no batch has results of both.
        if self.warm < self._warm_messages:
            self.warm += len(items)
            return
        _count(self.tally, self._trial.load, items)
        if self._trial.stop_when_complete(self.tally):
            self.tally.writes = _difference(_writes(self._ack_pool), self._writes)


def flow(trial: Trial) -> Tally:
    """A dataflow, from the first envelope that is emitted to the last result that is passed on."""
    settings = settings_for(trial)
    with _shared_pool(settings) as ack_pool:
        results = _Results(trial, ack_pool)
        dataflow = Dataflow("bench")
        envelopes = op.input("feed", dataflow, Feed(trial, results.settled))
        out = jop.publish("publish", envelopes, settings)
        op.output("results", out.oks, results)
        run(dataflow, trial)
    return results.tally


@contextmanager
def _shared_pool(settings: BrokerSettings) -> Iterator[AckPool]:
    """The pool that the steps of the dataflow borrow too, so that its counters can be read."""
    ack_pool = borrow_pool(settings.pool)
    try:
        yield ack_pool
    finally:
        give_back_pool()


class _Read(DynamicSink[Any], StatelessSinkPartition[Any]):
    """Counts the messages; the last one stops the clock."""

    def __init__(self, trial: Trial) -> None:
        self.tally = Tally()
        self._trial = trial

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_Read":
        return self

    def write_batch(self, items: list[Any]) -> None:
        load = self._trial.load
        # The round's stream is new: its sequences are the numbers of the messages.
        self.tally.answered([item.sequence - 1 for item in items], load.messages)
        self._trial.stop_when_complete(self.tally)


def source(trial: Trial) -> Tally:
    """A dataflow that reads the stream, from its start to the last message."""
    settings, read = settings_for(trial), _Read(trial)
    assert isinstance(settings, JetStreamSettings)
    dataflow = Dataflow("bench")
    items = jop.input(
        "read", dataflow, settings, stream=trial.load.place, tail=False, batch_size=trial.case.batch
    )
    op.output("count", items.oks, read)
    trial.meter.start()
    run(dataflow, trial)
    return read.tally

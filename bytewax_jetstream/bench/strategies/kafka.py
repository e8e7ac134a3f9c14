"""Kafka as one uses it by hand through confluent-kafka, and through Bytewax's own sink."""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main
from confluent_kafka import KafkaError, Message, Producer

from ...envelope import Envelope
from ...errors import PublishError
from ..meter import Tally, Trial
from .ours import Feed

__all__ = ["confluent", "sink", "sync"]

EPOCH = timedelta(seconds=1)
SECONDS = 60.0
Result = tuple[str, str | None, int | None, int | None, float]
"""Event id, topic, partition, offset, and seconds from its hand-over to its report."""


def producer_for(trial: Trial) -> Producer:
    """One that promises what ours does."""
    return Producer(
        {
            "bootstrap.servers": trial.url,
            "enable.idempotence": True,
            "linger.ms": 5,
            "allow.auto.create.topics": False,
        }
    )


def produce(producer: Producer, envelope: Envelope, on_delivery: Any) -> None:
    """Hand over one message with the headers that our own publisher sends; a full queue is waited
    for.
    """
    key = cast(str, envelope.aggregate_id).encode()
    headers: list[tuple[str, str | bytes | None]] = [("Event-Id", envelope.event_id.encode())]
    while True:
        try:
            producer.produce(
                envelope.topic, envelope.payload, key, headers=headers, on_delivery=on_delivery
            )
        except BufferError:
            producer.poll(0.01)
        else:
            return


def settle(producer: Producer) -> None:
    """Wait until every message has its report.

    :raises PublishError: when that takes too long.
    """
    if left := producer.flush(SECONDS):
        raise PublishError(
            f"{left} messages have no report after {SECONDS:g} s: check that the broker answers",
            broker="kafka",
            outcome="unknown",
        )


def failed(error: KafkaError | None, message: Message) -> None:
    """What the warm-up's reports are looked at for."""
    if error is not None:
        raise PublishError(
            f"a message was not stored: {error}",
            broker="kafka",
            topic=message.topic(),
            code=error.code(),
            reason=error.str(),
        )


def warm_producer(trial: Trial) -> Producer:
    """A producer whose first acks are in."""
    producer = producer_for(trial)
    for envelope in trial.load.warm_up():
        produce(producer, envelope, failed)
    settle(producer)
    return producer


def sync(trial: Trial) -> Tally:
    """Each message is flushed before the next is made."""
    producer, tally = warm_producer(trial), Tally()

    def reported(error: KafkaError | None, message: Message) -> None:
        tally.acked += error is None

    trial.meter.start()
    for batch in trial.load.batches():
        if pause := trial.load.wait():
            time.sleep(pause)
        for envelope in batch:
            began = time.perf_counter()
            produce(producer, envelope, reported)
            producer.flush()
            tally.latencies.append(time.perf_counter() - began)
    trial.meter.stop()
    return tally


def confluent(trial: Trial) -> Tally:
    """A loop that serves reports once a batch, each with a result of its own."""
    producer, tally = warm_producer(trial), Tally()
    results: list[Result] = []

    def produce_one(envelope: Envelope) -> None:
        def reported(
            error: KafkaError | None, message: Message, event_id: str = envelope.event_id
        ) -> None:
            if error is None:
                results.append(
                    (
                        event_id,
                        message.topic(),
                        message.partition(),
                        message.offset(),
                        message.latency() or 0.0,
                    )
                )

        produce(producer, envelope, reported)

    def take() -> None:
        tally.acked += len(results)
        tally.latencies.extend([result[-1] for result in results])
        results.clear()

    trial.meter.start()
    for batch in trial.load.batches():
        if pause := trial.load.wait():
            producer.poll(pause)
            time.sleep(trial.load.wait())
        for envelope in batch:
            produce_one(envelope)
        producer.poll(0)
        take()
    settle(producer)
    take()
    trial.meter.stop()
    return tally


class _Timed(DynamicSink[KafkaSinkMessage[bytes, bytes]]):
    """Bytewax's sink, with a look at the clock before and after each write; the last one stops it."""

    def __init__(self, trial: Trial) -> None:
        self.tally = Tally()
        self.warm = 0
        self._trial = trial
        self._sink = KafkaSink([trial.url], topic=None)

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_TimedPartition":
        return _TimedPartition(
            self, self._sink.build(step_id, worker_index, worker_count), self._trial
        )


class _TimedPartition(StatelessSinkPartition[KafkaSinkMessage[bytes, bytes]]):
    def __init__(self, owner: _Timed, inner: Any, trial: Trial) -> None:
        self._owner, self._inner, self._trial = owner, inner, trial
        self._warm_messages = len(trial.load.warm_up())

    def write_batch(self, items: list[KafkaSinkMessage[bytes, bytes]]) -> None:
        began = time.perf_counter()
        self._inner.write_batch(items)  # which flushes
        seconds, owner = time.perf_counter() - began, self._owner
        if owner.warm < self._warm_messages:
            owner.warm += len(items)
            return
        # It has no reports: what it has written is only found to be stored, or not, by who reads it
        # back.
        owner.tally.acked += len(items)
        owner.tally.latencies.extend([seconds] * len(items))
        if owner.tally.acked == self._trial.load.messages:
            self._trial.meter.stop()

    def close(self) -> None:
        self._inner.close()


def sink(trial: Trial) -> Tally:
    """A dataflow into `KafkaSink`, from the first envelope emitted to the last write."""
    timed = _Timed(trial)
    dataflow = Dataflow("bench")
    envelopes = op.input("feed", dataflow, Feed(trial, lambda messages: timed.warm >= messages))
    op.output("sink", op.flat_map_batch("message", envelopes, _messages), timed)
    run_main(dataflow, epoch_interval=EPOCH)
    if not trial.meter.stopped:
        trial.meter.stop()
    return timed.tally


def _messages(envelopes: Sequence[Envelope]) -> list[KafkaSinkMessage[bytes, bytes]]:
    return [
        KafkaSinkMessage(
            cast(str, envelope.aggregate_id).encode(),
            envelope.payload,
            topic=envelope.topic,
            headers=[("Event-Id", envelope.event_id.encode())],
        )
        for envelope in envelopes
    ]

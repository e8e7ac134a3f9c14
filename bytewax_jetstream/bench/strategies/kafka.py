"""Kafka by hand, through confluent-kafka (keys, headers, callbacks), and through Bytewax's sink."""

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from confluent_kafka import KafkaError, Message, Producer

from ...envelope import Envelope
from ...errors import BenchError
from ..load import ID_HEADERS
from ..meter import Tally, Trial
from .dataflows import Feed, run

__all__ = ["confluent", "sink", "sync"]

SECONDS = 60.0
Result = tuple[str, str | None, int | None, int | None, float]
"""Event id, topic, partition, offset, and seconds until its delivery report."""
Reported = Callable[[KafkaError | None, Message], None]


def producer_for(trial: Trial) -> Producer:
    """A producer with the promises of ours."""
    return Producer(
        {
            "bootstrap.servers": trial.url,
            "enable.idempotence": True,
            "linger.ms": 5,
            "allow.auto.create.topics": False,
        }
    )


def key_and_id(envelope: Envelope) -> tuple[bytes, tuple[str, bytes]]:
    """The key and the header that our own publisher sends."""
    key = cast(str, envelope.aggregate_id).encode()
    return key, (ID_HEADERS["header"], envelope.event_id.encode())


def produce(producer: Producer, envelope: Envelope, on_delivery: Reported) -> None:
    """Hand one message to the producer; while its queue is full, wait."""
    key, id_header = key_and_id(envelope)
    while True:
        try:
            producer.produce(
                envelope.topic, envelope.payload, key, headers=[id_header], on_delivery=on_delivery
            )
        except BufferError:
            producer.poll(0.01)
        else:
            return


def settle(producer: Producer) -> None:
    """Wait until every message has its delivery report.

    :raises BenchError: when that takes too long.
    """
    if left := producer.flush(SECONDS):
        raise BenchError(
            f"{left} messages have no delivery report after {SECONDS:g} s: "
            "check whether the broker answers"
        )


def warm_producer(trial: Trial) -> Producer:
    """A producer that has published the warm-up."""
    producer = producer_for(trial)
    for envelope in trial.load.warm_up():
        produce(producer, envelope, _raise_on_error)
    settle(producer)
    return producer


def _raise_on_error(error: KafkaError | None, message: Message) -> None:
    if error is not None:
        raise BenchError(f"a message of the warm-up was not stored: {error}")


def sync(trial: Trial) -> Tally:
    """Each message is flushed before the next one."""
    producer, tally = warm_producer(trial), Tally()

    def reported(error: KafkaError | None, message: Message) -> None:
        tally.acked += error is None

    trial.meter.start()
    for batch in trial.load.paced():
        for envelope in batch:
            began = time.perf_counter()
            produce(producer, envelope, reported)
            producer.flush()
            tally.latencies.append(time.perf_counter() - began)
    trial.meter.stop()
    return tally


def confluent(trial: Trial) -> Tally:
    """A loop that serves the delivery reports once per batch, and makes a result of each."""
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

    def rest(seconds: float) -> None:
        producer.poll(seconds)  # returns at the first report
        time.sleep(trial.load.seconds_until_due())

    def take() -> None:
        numbers = [trial.load.number_of(result[0]) for result in results]
        tally.answered(numbers, trial.load.messages)
        tally.latencies.extend([result[-1] for result in results])
        results.clear()

    trial.meter.start()
    for batch in trial.load.paced(rest):
        for envelope in batch:
            produce_one(envelope)
        producer.poll(0)
        take()
    settle(producer)
    take()
    trial.meter.stop()
    return tally


class _Timed(DynamicSink[KafkaSinkMessage[bytes, bytes]]):
    """Bytewax's sink, with the time of each write; the last write stops the clock."""

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
        self._inner.write_batch(items)  # it flushes
        seconds, owner = time.perf_counter() - began, self._owner
        if owner.warm < self._warm_messages:
            owner.warm += len(items)
            return
        # The sink takes no delivery reports: whether a message is stored shows only when the
        # stored messages are read back.
        owner.tally.acked += len(items)
        owner.tally.latencies.extend([seconds] * len(items))
        self._trial.stop_when_complete(owner.tally)

    def close(self) -> None:
        self._inner.close()


def sink(trial: Trial) -> Tally:
    """A dataflow into `KafkaSink`, from the first envelope that is emitted to the last write."""
    timed = _Timed(trial)
    dataflow = Dataflow("bench")
    envelopes = op.input("feed", dataflow, Feed(trial, lambda messages: timed.warm >= messages))
    op.output("sink", op.flat_map_batch("message", envelopes, _messages), timed)
    run(dataflow, trial)
    return timed.tally


def _messages(envelopes: Sequence[Envelope]) -> list[KafkaSinkMessage[bytes, bytes]]:
    messages = []
    for envelope in envelopes:
        key, id_header = key_and_id(envelope)
        messages.append(
            KafkaSinkMessage(
                key, envelope.payload or b"", topic=envelope.topic, headers=[id_header]
            )
        )
    return messages

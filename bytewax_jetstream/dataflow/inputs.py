"""The sources behind `jop.input`; their items split into messages and what cannot be read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import bytewax.operators as op
from bytewax.dataflow import Dataflow, Stream
from bytewax.inputs import Source

from ..jetstream.message import JetStreamMessage, Start, UnreadableMessage
from ..settings import JetStreamSettings, KafkaSettings

if TYPE_CHECKING:
    from ..kafka import source as kafka
    from ..kafka.source import KafkaFailure, KafkaStart, OnError

    KafkaMessage = kafka.KafkaMessage[bytes | None, bytes | None]
else:  # their module loads confluent-kafka
    KafkaMessage = KafkaFailure = KafkaStart = OnError = Any

__all__ = [
    "KafkaFailure",
    "KafkaMessage",
    "jetstream_source",
    "kafka_source",
    "read_jetstream",
    "read_kafka",
]

M = TypeVar("M")


def jetstream_source(
    settings: JetStreamSettings,
    *,
    stream: str | Sequence[str],
    subjects: str | Sequence[str] = (),
    durable: str | None = None,
    tail: bool = True,
    start: Start = "first",
    batch_size: int = 1000,
    **consumer: Any,
) -> Source[JetStreamMessage | UnreadableMessage]:
    """The source with which `jop.input` reads streams.

    :arg consumer: `ack_wait` and `max_ack_pending`, whose defaults only the source knows.
    """
    from ..jetstream.source.source import JetStreamSource  # which loads nats-py

    return JetStreamSource(
        settings,
        streams=stream,
        subjects=subjects,
        durable=durable,
        tail=tail,
        start=start,
        batch_size=batch_size,
        **consumer,
    )


def kafka_source(
    settings: KafkaSettings,
    *,
    topics: str | Sequence[str],
    tail: bool = True,
    start: KafkaStart = "first",
    batch_size: int = 1000,
    on_error: OnError = "stop",
    group: str | None = None,
) -> Source[KafkaMessage | KafkaFailure]:
    """The source with which `jop.input` reads topics."""
    from ..kafka.source import KafkaSource  # which loads confluent-kafka

    return KafkaSource(
        settings,
        topics=topics,
        tail=tail,
        start=start,
        batch_size=batch_size,
        on_error=on_error,
        group=group,
    )


def read_jetstream(
    flow: Dataflow, source: Source[JetStreamMessage | UnreadableMessage]
) -> tuple[Stream[JetStreamMessage], Stream[UnreadableMessage]]:
    """The messages of a source, and those that cannot be read."""
    return _read(flow, source, JetStreamMessage)


def read_kafka(
    flow: Dataflow, source: Source[KafkaMessage | KafkaFailure]
) -> tuple[Stream[KafkaMessage], Stream[KafkaFailure]]:
    """The messages of a source, and what could not be read."""
    from ..kafka.source import KafkaMessage  # which loads confluent-kafka

    return _read(flow, source, KafkaMessage)


def _read(flow: Dataflow, source: Source[Any], kind: type[M]) -> tuple[Stream[M], Stream[Any]]:
    items: Stream[Any] = op.input("source", flow, source)
    return (
        op.flat_map_batch("oks", items, lambda batch: [one for one in batch if type(one) is kind]),
        op.flat_map_batch(
            "errs", items, lambda batch: [one for one in batch if type(one) is not kind]
        ),
    )

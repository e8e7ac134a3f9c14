"""Reads Kafka topics without the publisher whose work the audit checks."""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from confluent_kafka import Consumer, KafkaException, TopicPartition

from bytewax_jetstream.kafka.config import connection
from bytewax_jetstream.settings import KafkaSettings

from .audit import Stored
from .errors import AuditError

__all__ = ["TopicReader"]

TIMEOUT = 10.0
"""Seconds without a message from the broker."""


class TopicReader:
    """Reads topics from their first message to their last, and leaves nothing behind.

    For one thread. It commits no offsets.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        config = {"group.id": "flights-audit", "enable.auto.commit": False, "log_level": 0}
        self._consumer = Consumer({**connection(settings), **config})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._consumer.close()

    def count(self, stream: str) -> int:
        """How many messages a topic has; 0 when it does not exist yet."""
        return sum(self._ends(stream).values())

    def read(self, stream: str) -> Iterator[Stored]:
        """Every message; the partitions are mixed, each of them is in its order."""
        ends = {partition: end for partition, end in self._ends(stream).items() if end}
        self._consumer.assign([TopicPartition(stream, partition, 0) for partition in ends])
        last = time.monotonic()
        while ends:
            for message in self._consumer.consume(10_000, 0.1):
                if message.error() is not None:
                    raise AuditError(f"topic {stream} cannot be read: {message.error()}")
                partition, offset = message.partition(), message.offset()
                assert partition is not None, "a message without an error has a partition"
                assert offset is not None, "a message without an error has an offset"
                headers = dict(message.headers() or [])
                event_id, last = headers.get("Event-Id"), time.monotonic()
                yield Stored(
                    event_id if isinstance(event_id, bytes) else b"", message.value() or b""
                )
                if offset + 1 >= ends.get(partition, 0):
                    ends.pop(partition, None)
            if time.monotonic() - last > TIMEOUT:
                raise AuditError(f"the broker sent nothing of topic {stream} for {TIMEOUT:g} s")

    def event_id(self, message: Stored) -> bytes | None:
        """The value of header `Event-Id`."""
        return message.header or None

    def _ends(self, topic: str) -> dict[int, int]:
        try:
            found = self._consumer.list_topics(timeout=TIMEOUT).topics.get(topic)
            partitions = found.partitions if found is not None else ()
            return {
                partition: self._consumer.get_watermark_offsets(
                    TopicPartition(topic, partition), timeout=TIMEOUT
                )[1]
                for partition in partitions
            }
        except KafkaException as error:
            raise AuditError(f"Kafka does not answer about topic {topic}: {error}") from None

"""`KafkaSource`: reads Kafka topics into a dataflow, with Bytewax's own source inside."""

import time
from collections.abc import Sequence
from typing import Literal

from bytewax.connectors.kafka import KafkaSource as BytewaxKafkaSource
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END

from ..errors import TopicError
from ..settings import KafkaSettings
from .config import connection
from .topics import TopicAdmin

__all__ = ["KafkaSource", "KafkaStart"]

KafkaStart = Literal["first", "new"] | int
"""Where reading begins in every partition: at its start, at its end, or at an offset."""


class KafkaSource(BytewaxKafkaSource):
    """Reads every message of its topics; resumes by offset from the recovery store, without a
    consumer group.

    Each partition of a topic is a partition of the input. Yields `KafkaSourceMessage`, and
    `KafkaError` for what could not be read. If a topic is missing, or no broker answers within the
    connect timeout, the start fails; Bytewax's own source would wait forever.

    :arg settings: Which Kafka.
    :arg topics: Name of the topic, or of several.
    :arg tail: Wait for new messages at the end.
    :arg start: Where to start the first time.
    :arg batch_size: Most messages in a batch.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        topics: str | Sequence[str],
        tail: bool = True,
        start: KafkaStart = "first",
        batch_size: int = 1000,
    ) -> None:
        names = [topics] if isinstance(topics, str) else list(topics)
        if not names:
            raise ValueError("name at least one topic to read: topics=...")
        offset = (
            {"first": OFFSET_BEGINNING, "new": OFFSET_END}[start]
            if isinstance(start, str)
            else start
        )
        # Last, because reading must never create a topic, whatever add_config says.
        config = {**connection(settings), "allow.auto.create.topics": False}
        super().__init__(
            settings.brokers, names, tail, offset, config, batch_size, raise_on_errors=False
        )
        self._settings = settings
        self._names = names

    def list_parts(self) -> list[str]:
        """Each Kafka partition is an input partition."""
        found = TopicAdmin(self._settings).describe(
            self._names, time.monotonic() + self._settings.connect_timeout
        )
        for name in self._names:
            if name not in found:
                raise TopicError(
                    f"there is no topic {name} to read: create it, or correct the name",
                    topic=name,
                )
        return [
            f"{number}-{name}"
            for name in self._names
            for number in range(found[name].partitions or 0)
        ]

"""The items of the Kafka source: messages, and what could not be read.

They are Bytewax's own types, so that a dataflow written for its Kafka source goes on working.
"""

from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar, cast

from bytewax.connectors.kafka import KafkaError, KafkaSourceMessage
from confluent_kafka import KafkaError as LibraryError
from confluent_kafka import Message

__all__ = ["Item", "KafkaFailure", "KafkaMessage", "failure", "message_of"]

K = TypeVar("K")
V = TypeVar("V")
K2 = TypeVar("K2")
V2 = TypeVar("V2")


@dataclass(frozen=True, init=False)
class KafkaMessage(KafkaSourceMessage[K, V], Generic[K, V]):
    """A message read from Kafka: Bytewax's `KafkaSourceMessage`, and where the topic is.

    :ivar cluster: The id of the cluster.
    :ivar topic_id: The id of the topic; a topic that is made again under its name has another one.
    """

    cluster: str | None = None
    topic_id: str | None = None

    def __init__(
        self,
        key: K,
        value: V,
        topic: str | None = None,
        headers: list[tuple[str, bytes]] | None = None,
        latency: float | None = None,
        offset: int | None = None,
        partition: int | None = None,
        timestamp: tuple[int, int] | None = None,
        cluster: str | None = None,
        topic_id: str | None = None,
    ) -> None:
        # By hand: what a frozen dataclass generates takes three times as long.
        fields = self.__dict__
        fields["key"] = key
        fields["value"] = value
        fields["topic"] = topic
        fields["headers"] = [] if headers is None else headers
        fields["latency"] = latency
        fields["offset"] = offset
        fields["partition"] = partition
        fields["timestamp"] = timestamp
        fields["cluster"] = cluster
        fields["topic_id"] = topic_id

    # Bytewax's deserializers use these; its own forms would lose the two last fields.

    def _with_key(self, key: K2) -> "KafkaMessage[K2, V]":
        return KafkaMessage(**{**self.__dict__, "key": key})

    def _with_value(self, value: V2) -> "KafkaMessage[K, V2]":
        return KafkaMessage(**{**self.__dict__, "value": value})

    def _with_key_and_value(self, key: K2, value: V2) -> "KafkaMessage[K2, V2]":
        return KafkaMessage(**{**self.__dict__, "key": key, "value": value})


Read: TypeAlias = KafkaMessage[bytes | None, bytes | None]
KafkaFailure: TypeAlias = KafkaError[bytes | None, bytes | None]
"""What could not be read: `err` says why, `msg` says where."""
Item: TypeAlias = Read | KafkaFailure


def message_of(
    message: Message, topic: str, partition: int, cluster: str | None, topic_id: str | None
) -> Read:
    """The item for a message.

    :raises UnicodeDecodeError: when the name of a header is not UTF-8.
    """
    return KafkaMessage(
        message.key(),
        message.value(),
        topic,
        cast(Any, message.headers()),
        message.latency(),
        message.offset(),
        partition,
        cast(Any, message.timestamp()),
        cluster,
        topic_id,
    )


def failure(
    code: int,
    reason: str,
    *,
    topic: str | None = None,
    partition: int | None = None,
    offset: int | None = None,
) -> KafkaFailure:
    """The item for what could not be read, beginning at an offset."""
    place: Read = KafkaMessage(None, None, topic, offset=offset, partition=partition)
    return KafkaError(LibraryError(code, reason), place)

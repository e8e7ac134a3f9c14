"""Kafka topics made and read by clients of their own, never by the code under test."""

import time
from collections.abc import Iterable
from itertools import count
from typing import NamedTuple, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from bytewax_jetstream.envelope import Envelope
from tests.support.streams import Audit
from tests.support.waiting import PATIENCE, until

__all__ = [
    "SECONDS",
    "Record",
    "audit",
    "lower_limit",
    "make_topic",
    "new_topic",
    "ordered_producer",
    "records",
]

SECONDS = PATIENCE
LEADERLESS = {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE}
"""A broker that has just come back says so of its partitions, for a moment."""
_numbers = count(1)


class Record(NamedTuple):
    """A message as it lies in a topic."""

    partition: int
    offset: int
    key: bytes | None
    header_pairs: tuple[tuple[str, bytes | None], ...]
    """In order; a name may come twice, and a value be null."""
    value: bytes | None
    """None is a tombstone."""

    @property
    def headers(self) -> dict[str, bytes]:
        """The headers of a message that has each of them once, with a value."""
        found = {name: value for name, value in self.header_pairs if value is not None}
        assert len(found) == len(self.header_pairs), f"repeated or null: {self.header_pairs}"
        return found

    @property
    def payload(self) -> bytes:
        """The value of a message that is no tombstone."""
        assert self.value is not None, f"a tombstone: {self}"
        return self.value


def new_topic(address: str, *, partitions: int = 4, replicas: int = 1, **config: str) -> str:
    """Create a topic with an unused name; config has Kafka's names, with `_` for `.`."""
    name = f"t-{time.time_ns()}-{next(_numbers)}"
    make_topic(address, name, partitions=partitions, replicas=replicas, **config)
    return name


def make_topic(
    address: str, name: str, *, partitions: int = 4, replicas: int = 1, **config: str
) -> None:
    """Create a topic, and wait until it has leaders."""
    admin = AdminClient({"bootstrap.servers": address})
    settings = {key.replace("_", "."): value for key, value in config.items()}
    admin.create_topics([NewTopic(name, partitions, replicas, config=settings)])[name].result(
        SECONDS
    )
    deadline = time.monotonic() + SECONDS
    while True:
        topic = admin.list_topics(timeout=SECONDS).topics.get(name)
        found = list(topic.partitions.values()) if topic is not None else []
        if len(found) == partitions and all(partition.leader >= 0 for partition in found):
            return
        assert time.monotonic() < deadline, f"topic {name} has no leaders"
        time.sleep(0.02)


def ordered_producer(address: str, **config: str) -> Producer:
    """A producer that keeps the order of a partition: idempotent, because otherwise a batch that is
    retried comes after the next one, as right after a topic was created.
    """
    settings = {"bootstrap.servers": address, "enable.idempotence": True, "log_level": 3}
    return Producer({**settings, **config})


def lower_limit(address: str, topic: str, limit: int) -> None:
    """Set a topic's `max.message.bytes`, and wait until the broker has it."""
    admin = AdminClient({"bootstrap.servers": address})
    entry = ConfigEntry(
        "max.message.bytes", str(limit), incremental_operation=AlterConfigOpType.SET
    )
    changed = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin.incremental_alter_configs([changed])[changed].result(SECONDS)
    asked = ConfigResource(ResourceType.TOPIC, topic)
    until(
        lambda: (
            admin.describe_configs([asked])[asked].result(SECONDS)["max.message.bytes"].value
            == str(limit)
        )
    )


def records(address: str, topic: str, **config: str) -> list[Record]:
    """All messages of a topic, partition after partition, each by offset."""
    consumer = Consumer(
        {"bootstrap.servers": address, "group.id": "audit", "enable.auto.commit": False, **config}
    )
    try:
        numbers = sorted(consumer.list_topics(topic, timeout=SECONDS).topics[topic].partitions)
        ends = {number: _end_of(consumer, topic, number) for number in numbers}
        consumer.assign([TopicPartition(topic, number, 0) for number in numbers])
        found: list[Record] = []
        deadline = time.monotonic() + SECONDS
        while any(ends.values()):
            for message in consumer.consume(10_000, 0.2):
                assert message.error() is None, message.error()
                partition, offset = message.partition(), message.offset()
                assert partition is not None
                assert offset is not None
                headers = cast(list[tuple[str, bytes | None]], message.headers() or [])
                found.append(
                    Record(partition, offset, message.key(), tuple(headers), message.value())
                )
                if offset + 1 >= ends[partition]:
                    ends[partition] = 0
            assert time.monotonic() < deadline, f"{ends} of {topic} were not read"
        return sorted(found)
    finally:
        consumer.close()


def _end_of(consumer: Consumer, topic: str, number: int) -> int:
    """The offset behind the last message of a partition, once it has a leader again."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=SECONDS)[1]
        except KafkaException as error:
            if error.args[0].code() not in LEADERLESS or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def audit(address: str, topic: str, wanted: Iterable[Envelope]) -> Audit:
    """Compare a topic with what was to be stored in it; `FLAWLESS` is what it should be."""
    stored = records(address, topic)
    ids = [record.headers["Event-Id"].decode() for record in stored]
    wanted_ids = {envelope.event_id for envelope in wanted}
    latest: dict[bytes, int] = {}
    inversions = 0
    for record in stored:
        if record.key is not None:
            number = int(record.payload)
            inversions += number < latest.get(record.key, -1)
            latest[record.key] = max(number, latest.get(record.key, -1))
    found = set(ids)
    return Audit(
        len(wanted_ids - found), len(ids) - len(found), inversions, len(found - wanted_ids)
    )

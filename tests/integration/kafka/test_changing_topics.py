"""Topics that change while they are published to, and the partitions that keys go to."""

import contextlib
import threading
import time
from collections import defaultdict
from enum import Enum, StrEnum
from itertools import count

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewPartitions

from bytewax_jetstream.envelope import Envelope, Outcome
from tests.support.kafka import SECONDS, audit, make_topic, new_topic, records
from tests.support.lanes import kafka, opened, publish, settle
from tests.support.streams import FLAWLESS, envelopes
from tests.support.waiting import until

strategies = pytest.mark.parametrize("strategy", ["create", "skip"])


def _delete(address: str, topic: str) -> None:
    """Delete a topic, and wait until the broker does not know it any more."""
    admin = AdminClient({"bootstrap.servers": address})
    admin.delete_topics([topic])[topic].result(SECONDS)
    until(lambda: topic not in admin.list_topics(timeout=SECONDS).topics, SECONDS)


def _make_again(address: str, topic: str, partitions: int) -> None:
    _delete(address, topic)

    def made() -> bool:
        try:
            make_topic(address, topic, partitions=partitions)
        except KafkaException:  # it is still being deleted
            return False
        return True

    until(made, SECONDS)


def _grow(address: str, topic: str, partitions: int) -> None:
    """Add partitions, and wait until they have leaders."""
    admin = AdminClient({"bootstrap.servers": address})
    admin.create_partitions([NewPartitions(topic, partitions)])[topic].result(SECONDS)

    def leads() -> bool:
        found = admin.list_topics(timeout=SECONDS).topics[topic].partitions
        return len(found) == partitions and all(each.leader >= 0 for each in found.values())

    until(leads, SECONDS)


def _to_partition(topic: str, partition: int, numbers: range) -> list[Envelope]:
    return [
        Envelope(topic, b"%d" % number, f"e-{number}", "a", partition=partition)
        for number in numbers
    ]


@strategies
def test_partitions_added_while_running_take_what_names_them(
    kafka_address: str, strategy: str
) -> None:
    topic = new_topic(kafka_address, partitions=2)
    batch = _to_partition(topic, 3, range(100))
    with opened(kafka(kafka_address, topic_strategy=strategy)) as (_, lane):
        settle(lane, envelopes(10, topic, first=1_000))
        _grow(kafka_address, topic, 4)
        results = settle(lane, batch)
        missing = settle(lane, _to_partition(topic, 4, range(2_000, 2_010)))

    assert {(each.outcome, each.partition) for each in results.values()} == {(Outcome.STORED, 3)}
    stored = [each for each in records(kafka_address, topic) if each.partition == 3]
    assert [each.payload for each in stored] == [each.payload for each in batch]
    assert {each.outcome for each in missing.values()} == {Outcome.REJECTED}
    assert "has no partition 4: give 0 to 3, or None" in str(missing["e-2000"].reason)


@strategies
def test_topic_made_again_with_fewer_partitions_stores_what_comes_then(
    kafka_address: str, strategy: str
) -> None:
    topic = new_topic(kafka_address, partitions=4)
    with opened(kafka(kafka_address, topic_strategy=strategy)) as (_, lane):
        before = settle(lane, envelopes(50, topic))
        _make_again(kafka_address, topic, 2)
        batch = envelopes(500, topic, first=50)
        results = settle(lane, batch)
        named = settle(lane, _to_partition(topic, 3, range(3_000, 3_010)))

    assert {each.outcome for each in before.values()} == {Outcome.STORED}
    assert {(each.outcome, each.reason) for each in results.values()} == {(Outcome.STORED, None)}
    # librdkafka may give messages of a partition that is gone to another one, before others.
    assert audit(kafka_address, topic, batch)._replace(inversions=0) == FLAWLESS
    assert {each.outcome for each in named.values()} == {Outcome.REJECTED}
    assert "has no partition 3: give 0 to 1, or None" in str(named["e-3000"].reason)


def test_topic_made_again_while_publishing_loses_nothing_that_comes_after(
    kafka_address: str,
) -> None:
    topic = new_topic(kafka_address, partitions=4)
    end = threading.Event()
    with opened(kafka(kafka_address, ack_timeout=20, delivery_timeout=60)) as (_, lane):
        settle(lane, envelopes(50, topic))

        def remake() -> None:
            _make_again(kafka_address, topic, 2)
            end.set()

        thread = threading.Thread(target=remake, daemon=True)
        thread.start()
        results = []
        firsts = count(50, 50)
        deadline = time.monotonic() + 60
        while not end.is_set() and time.monotonic() < deadline:
            lane.submit(envelopes(50, topic, first=next(firsts)))
            results += lane.collect()
            end.wait(0.05)
        results += lane.flush()
        last = envelopes(50, topic, first=next(firsts))
        results += settle(lane, last).values()
        thread.join()

    assert {(each.outcome, each.reason) for each in results} == {(Outcome.STORED, None)}
    stored = {each.headers["Event-Id"].decode() for each in records(kafka_address, topic)}
    assert stored >= {each.event_id for each in last}


def test_deleted_topic_rejects_what_comes_then(kafka_address: str) -> None:
    topic = new_topic(kafka_address)
    with opened(kafka(kafka_address, delivery_timeout=10)) as (_, lane):
        settle(lane, envelopes(50, topic))
        _delete(kafka_address, topic)
        results = settle(lane, envelopes(50, topic, first=50))

    assert {each.outcome for each in results.values()} == {Outcome.REJECTED}
    assert "create it, or declare a KafkaTopicSettings" in str(results["e-50"].reason)


class _Word(StrEnum):
    TOPIC = f"word-{time.time_ns()}"


class _Member(str, Enum):  # noqa: UP042  # whose text is not its value
    TOPIC = f"member-{time.time_ns()}"


class _Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "topic",
    [_Word.TOPIC, _Member.TOPIC, _Text(f"text-{time.time_ns()}")],
    ids=["StrEnum", "str and Enum", "subclass"],
)
@strategies
def test_topic_of_a_subclass_of_str_is_its_value(
    kafka_address: str, topic: str, strategy: str
) -> None:
    name = str.__str__(topic)
    with contextlib.suppress(KafkaException):  # made by the test with the other strategy
        make_topic(kafka_address, name)
    batch = [
        each._replace(event_id=f"{strategy}-{each.event_id}") for each in envelopes(100, topic)
    ]

    results = publish(kafka(kafka_address, topic_strategy=strategy), *batch)

    assert {each.outcome for each in results.values()} == {Outcome.STORED}
    stored = {each.headers["Event-Id"].decode() for each in records(kafka_address, name)}
    assert stored >= {each.event_id for each in batch}


def test_words_of_a_subclass_of_str_are_their_values(kafka_address: str) -> None:
    topic = new_topic(kafka_address)
    first = Envelope(topic, b"0", _Text("id-1"), _Text("aggregate"), _Text("type"))
    second = first._replace(event_id=_Text("id-2"), headers={"a": _Text("b")})

    results = publish(kafka(kafka_address), first, second)

    assert {each.outcome for each in results.values()} == {Outcome.STORED}
    stored = {each.headers["Event-Id"]: each for each in records(kafka_address, topic)}
    assert set(stored) == {b"id-1", b"id-2"}
    assert {each.key for each in stored.values()} == {b"aggregate"}
    assert {each.headers["Event-Type"] for each in stored.values()} == {b"type"}


def _murmur2(data: bytes) -> int:
    """The hash of Kafka's Java client, as `org.apache.kafka.common.utils.Utils.murmur2` does it."""
    size, mask, m = len(data), 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ size
    for at in range(0, size - size % 4, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & mask
        h = (h * m & mask) ^ ((k ^ k >> 24) * m & mask)
    if size % 4:
        h = (h ^ int.from_bytes(data[size - size % 4 :], "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


def test_hash_is_that_of_the_java_client() -> None:
    # From Kafka's own UtilsTest.testMurmur2, as unsigned numbers.
    known = {
        b"21": -973932308,
        b"foobar": -790332482,
        b"a-little-bit-long-string": -985981536,
        b"a-little-bit-longer-string": -1486304829,
        b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
        b"abc": 479470107,
    }
    for key, signed in known.items():
        assert _murmur2(key) == signed & 0xFFFFFFFF


@pytest.mark.parametrize("explicit", [False, True], ids=["default", "encoded one by one"])
def test_aggregates_go_where_a_java_producer_puts_their_keys(
    kafka_address: str, explicit: bool
) -> None:
    topic = new_topic(kafka_address, partitions=7)
    keys = ["", "ä", "\U0001f600", *(f"key-{number}" for number in range(600))]
    headers = {"a": "b"} if explicit else None
    batch = [Envelope(topic, b"0", f"e-{key}", key, headers=headers) for key in keys]

    results = publish(kafka(kafka_address), *batch)

    for key in keys:
        expected = (_murmur2(key.encode()) & 0x7FFFFFFF) % 7
        assert results[f"e-{key}"].partition == expected, key


@pytest.mark.parametrize("partitioner", [None, "consistent_random", "fnv1a_random"])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "with headers"])
def test_empty_aggregate_id_keeps_its_order_in_one_partition(
    kafka_address: str, partitioner: str | None, plain: bool
) -> None:
    topic = new_topic(kafka_address, partitions=4)
    add_config = {"partitioner": partitioner} if partitioner else {}
    batch = [
        Envelope(topic, b"%d" % number, f"e-{number}", "", headers=None if plain else {"a": "b"})
        for number in range(500)
    ]

    with opened(kafka(kafka_address, add_config=add_config)) as (_, lane):
        results = settle(lane, batch[:250])
        results |= settle(lane, batch[250:])

    assert len({each.partition for each in results.values()}) == 1
    stored = records(kafka_address, topic)
    assert {each.key for each in stored} == {b""}
    assert [each.payload for each in stored] == [each.payload for each in batch]


def test_librdkafkas_own_default_is_one_setting_away(kafka_address: str) -> None:
    topic = new_topic(kafka_address, partitions=7)
    batch = [Envelope(topic, b"0", f"e-{number}", f"key-{number}") for number in range(50)]
    results = publish(kafka(kafka_address, add_config={"partitioner": "consistent_random"}), *batch)
    by_default = publish(kafka(kafka_address), *batch)

    partitions: dict[bool, list[int | None]] = defaultdict(list)
    for envelope in batch:
        partitions[False].append(results[envelope.event_id].partition)
        partitions[True].append(by_default[envelope.event_id].partition)
    assert partitions[False] != partitions[True]

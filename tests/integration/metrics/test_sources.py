"""Lag, position, redeliveries and skipped messages of sources; offsets for a consumer group."""

from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from bytewax_jetstream.kafka.source import reader, watch
from bytewax_jetstream.testing import NatsServer
from tests.support.kafka import new_topic, ordered_producer
from tests.support.kafka_reading import STEP, Reading
from tests.support.lanes import kafka
from tests.support.metrics import Scrape, scrape
from tests.support.reading import Driver, numbered, put, source
from tests.support.streams import Names, api, make_stream
from tests.support.waiting import until

BLOCKED = 3_000
"""More than a partition with small batches reads ahead."""


def _lag(stream: str) -> float:
    return scrape().sum("source_lag_messages", stream=stream)


def _is(stream: str, lag: float) -> bool:
    return _lag(stream) == lag


@pytest.mark.parametrize("how", ["by sequence", "durable"])
def test_lag_grows_while_a_blocked_dataflow_takes_no_messages(
    nats_server: NatsServer, names: Names, how: str
) -> None:
    url, stream = nats_server.url, f"LAG-{names()}"
    make_stream(url, stream, f"{stream}.>")
    put(url, stream, numbered(f"{stream}.a", 20))
    durable = "reader" if how == "durable" else None
    made = source(url, stream, tail=True, batch_size=10, durable=durable)
    with Driver(made) as driver:
        driver.until(lambda: len(driver.items) == 20)
        until(lambda: _lag(stream) == 0)
        for more in (BLOCKED, 500):
            before = int(_lag(stream))
            put(url, stream, numbered(f"{stream}.a", more))
            until(partial(_is, stream, before + more))
        seen = scrape()
        assert seen.each("source_messages_total", stream=stream, broker="jetstream") == [20]
        assert seen.each("source_position", stream=stream, step_id="flow.in") == [21]

        driver.until(lambda: len(driver.items) == 20 + BLOCKED + 500, epochs=True)
        until(lambda: _lag(stream) == 0)
    assert scrape().each("source_lag_messages", stream=stream) == [], "it is closed"
    assert scrape().each("source_messages_total", stream=stream) == [20 + BLOCKED + 500]


def test_lag_of_a_subject_leaves_out_the_others(nats_server: NatsServer, names: Names) -> None:
    url, stream = nats_server.url, f"LAG-{names()}"
    make_stream(url, stream, f"{stream}.>")
    put(url, stream, numbered(f"{stream}.a", 30) + numbered(f"{stream}.b", 40))
    made = source(url, stream, subjects=f"{stream}.a", tail=True, batch_size=10)
    with Driver(made) as driver:
        labels = {"stream": stream, "partition": f"{stream}.a"}
        assert scrape().each("source_lag_messages", **labels) == [30]
        driver.until(lambda: len(driver.items) == 10)
        assert scrape().each("source_lag_messages", **labels) == [20]
        driver.until(lambda: len(driver.items) == 30)
        assert scrape().each("source_lag_messages", **labels) == [0]


def test_purged_messages_are_no_lag_and_count_as_skipped(
    nats_server: NatsServer, names: Names
) -> None:
    url, stream = nats_server.url, f"LAG-{names()}"
    make_stream(url, stream, f"{stream}.>")
    put(url, stream, numbered(f"{stream}.a", BLOCKED))
    with Driver(source(url, stream, tail=True, batch_size=10)) as driver:
        driver.until(lambda: len(driver.items) == 10)
        until(lambda: _lag(stream) == BLOCKED - 10)
        api(url, f"STREAM.PURGE.{stream}", {})
        until(lambda: _lag(stream) == 0)
        put(url, stream, numbered(f"{stream}.a", 5))
        driver.until(lambda: driver.items[-1].sequence == BLOCKED + 5)
        driver.until(lambda: scrape().sum("source_skipped_total", stream=stream) > 0)
        skipped = scrape().sum("source_skipped_total", stream=stream)
        assert skipped == BLOCKED + 5 - len(driver.items)


def test_messages_that_a_crashed_run_did_not_acknowledge_count_as_redelivered(
    nats_server: NatsServer, names: Names
) -> None:
    url, stream = nats_server.url, f"AGAIN-{names()}"
    make_stream(url, stream, f"{stream}.>", retention="workqueue")
    put(url, stream, numbered(f"{stream}.a", 10))
    wait = timedelta(seconds=1)
    with Driver(source(url, stream, tail=True, durable="reader", ack_wait=wait)) as driver:
        driver.until(lambda: len(driver.items) == 10)
        assert scrape().each("source_redeliveries_total", stream=stream) == [0]
    with Driver(source(url, stream, tail=True, durable="reader", ack_wait=wait)) as driver:
        put(url, stream, numbered(f"{stream}.a", 5))
        driver.until(lambda: len(driver.items) == 15)
        assert scrape().each("source_redeliveries_total", stream=stream) == [10]
        assert scrape().each("source_messages_total", stream=stream) == [25]


def test_lost_connection_of_a_source_is_counted(own_nats_server: NatsServer) -> None:
    url = own_nats_server.url
    make_stream(url, "LOST", "lost.>")
    put(url, "LOST", numbered("lost.a", 10))
    with Driver(source(url, "LOST", tail=True)) as driver:
        driver.until(lambda: len(driver.items) == 10)
        own_nats_server.kill()
        own_nats_server.start()
        put(url, "LOST", numbered("lost.a", 1))
        driver.until(lambda: len(driver.items) == 11)
        assert scrape().sum("source_reconnects_total", stream="LOST") >= 1


def _produce(address: str, topic: str, count: int) -> None:
    producer = ordered_producer(address)
    for number in range(count):
        producer.produce(topic, b"%d" % number)
    assert producer.flush(30) == 0


def _of(seen: Scrape, name: str, topic: str) -> list[float]:
    return seen.each(name, broker="kafka", step_id=STEP, stream=topic, partition="0")


def test_lag_of_kafka_grows_while_a_blocked_dataflow_takes_no_messages(
    kafka_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(reader, "BLOCKED_SECONDS", 0.2)
    topic = new_topic(kafka_address, partitions=1)
    _produce(kafka_address, topic, 20)
    with Reading(kafka(kafka_address), topics=topic) as reading:
        reading.until(lambda: len(reading.items) == 20)
        _produce(kafka_address, topic, 500)
        until(lambda: _of(scrape(), "source_lag_messages", topic) == [500])
        assert _of(scrape(), "source_position", topic) == [20]
        reading.until(lambda: len(reading.items) == 520)
        reading.until(lambda: _of(scrape(), "source_lag_messages", topic) == [0])
        assert len(scrape().labels("source_position")) == 1, "one for each partition that is there"
    assert _of(scrape(), "source_lag_messages", topic) == [], "it is closed"
    assert _of(scrape(), "source_messages_total", topic) == [520]


def test_offsets_that_were_removed_before_they_were_read_count_as_skipped(
    kafka_address: str,
) -> None:
    topic = new_topic(kafka_address, partitions=1)
    _produce(kafka_address, topic, 20)
    with Reading(kafka(kafka_address), topics=topic) as reading:
        reading.until(lambda: len(reading.items) == 20)
        states = reading.states()
    _produce(kafka_address, topic, 20)
    admin, place = AdminClient({"bootstrap.servers": kafka_address}), TopicPartition(topic, 0, 35)
    admin.delete_records([place])[place].result(30)
    with Reading(kafka(kafka_address), states, topics=topic) as reading:
        reading.until(lambda: len(reading.values) == 5)
        assert _of(scrape(), "source_skipped_total", topic) == [15]


class _Group:
    """A consumer group, seen from outside."""

    def __init__(self, address: str, topic: str) -> None:
        self.name = f"group-{topic}"
        self._topic = topic
        self._config = {"bootstrap.servers": address, "group.id": self.name}

    def committed(self) -> int | None:
        """Its offset; None without one."""
        consumer = Consumer(self._config)
        try:
            (place,) = consumer.committed([TopicPartition(self._topic, 0)], timeout=30)
            return int(place.offset) if place.offset >= 0 else None
        finally:
            consumer.close()

    def commit(self, offset: int) -> None:
        """Somebody else commits this."""
        consumer = Consumer(self._config)
        try:
            consumer.commit(offsets=[TopicPartition(self._topic, 0, offset)], asynchronous=False)
        finally:
            consumer.close()

    def joined(self) -> Consumer:
        """A member of it."""
        consumer = Consumer({**self._config, "auto.offset.reset": "latest"})
        consumer.subscribe([self._topic])
        until(lambda: consumer.poll(0.1) is None and consumer.assignment())
        return consumer


def _commits(result: str) -> float:
    return scrape().sum("source_group_commits_total", result=result, step_id=STEP)


def _reading(address: str, states: dict[str, Any] | None = None, **options: Any) -> Reading:
    return Reading(kafka(address), states, **options)


def test_group_has_the_offsets_of_committed_epochs_and_of_no_other(kafka_address: str) -> None:
    topic = new_topic(kafka_address, partitions=1)
    group = _Group(kafka_address, topic)
    _produce(kafka_address, topic, 10)
    before = _commits("ok")
    with _reading(kafka_address, topics=topic, group=group.name) as reading:
        reading.until(lambda: len(reading.items) == 10)
        states = reading.states()  # the epoch ends here, and is committed when the engine asks
        assert group.committed() is None
        reading.until(lambda: group.committed() == 10)
        reading.until(lambda: _commits("ok") == before + 1)
        _produce(kafka_address, topic, 5)
        reading.until(lambda: len(reading.items) == 15)
        last = reading.states()  # the engine closes sources before it commits the last epoch
    assert group.committed() == 10

    with _reading(kafka_address, last, topics=topic, group=group.name) as reading:
        reading.turn()
        reading.until(lambda: group.committed() == 15)
    assert states != last


def test_group_is_never_read_back(kafka_address: str) -> None:
    topic = new_topic(kafka_address, partitions=1)
    group = _Group(kafka_address, topic)
    _produce(kafka_address, topic, 10)
    group.commit(7)
    with _reading(kafka_address, topics=topic, group=group.name) as reading:
        reading.until(lambda: len(reading.items) == 10)


def test_commit_that_fails_is_counted_and_logged_and_reading_goes_on(
    kafka_address: str, caplog: pytest.LogCaptureFixture
) -> None:
    topic = new_topic(kafka_address, partitions=1)
    group = _Group(kafka_address, topic)
    member = group.joined()  # only members may commit now
    try:
        _produce(kafka_address, topic, 10)
        before = _commits("failed")
        with _reading(kafka_address, topics=topic, group=group.name) as reading:
            reading.until(lambda: len(reading.items) == 10)
            reading.states()
            reading.until(lambda: _commits("failed") == before + 1)
            _produce(kafka_address, topic, 10)
            reading.until(lambda: len(reading.items) == 20)
    finally:
        member.close()
    assert f"could not be committed to consumer group {group.name}" in caplog.text
    assert reading.errs == []


@pytest.mark.parametrize("group", ["", " ", 5])
def test_invalid_name_of_a_group_is_an_error_at_the_definition(group: Any) -> None:
    with pytest.raises(ValueError, match=r"invalid group .*: give the name of a consumer group"):
        Reading(kafka("127.0.0.1:1"), topics="orders", group=group)


def test_marks_of_transactions_behind_the_last_message_are_no_lag(kafka_address: str) -> None:
    topic = new_topic(kafka_address, partitions=1)
    producer = Producer({"bootstrap.servers": kafka_address, "transactional.id": topic})
    producer.init_transactions(60)
    for end in (producer.commit_transaction, producer.abort_transaction):
        producer.begin_transaction()
        for number in range(5):
            producer.produce(topic, b"%d" % number)
        producer.flush(30)
        end(60)
    with Reading(kafka(kafka_address), topics=topic) as reading:
        reading.until(lambda: len(reading.items) == 5)
        reading.until(lambda: _of(scrape(), "source_lag_messages", topic) == [0])
        assert _of(scrape(), "source_position", topic) == [5]
        _produce(kafka_address, topic, 1)
        reading.until(lambda: len(reading.items) == 6)
        reading.until(lambda: _of(scrape(), "source_lag_messages", topic) == [0])

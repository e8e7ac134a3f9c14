"""Reading Kafka: where it begins and goes on, what it says when it cannot, and what it costs."""

import threading
import time
from pathlib import Path
from typing import Any

import bytewax.operators as op
import psutil
import pytest
from bytewax.connectors.kafka import KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.errors import BytewaxRuntimeError
from bytewax.testing import TestingSink
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

import bytewax_jetstream.operators as jop
from bytewax_jetstream.errors import SourceError, TopicError
from bytewax_jetstream.kafka.source import KafkaMessage
from bytewax_jetstream.testing import KafkaServer
from tests.support.dataflows import recovery_store, root_cause, run
from tests.support.kafka import make_topic, new_topic, ordered_producer
from tests.support.kafka_reading import Reading, read_all
from tests.support.lanes import kafka


def _write(address: str, topic: str, first: int, last: int, partition: int = 0) -> None:
    producer = ordered_producer(address)
    for number in range(first, last):
        producer.produce(topic, b"%d" % number, partition=partition)
    assert producer.flush(30) == 0


def _numbers(first: int, last: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, last)]


def _admin(address: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": address})


def _remove(address: str, topic: str, before: int) -> None:
    """As retention does."""
    place = TopicPartition(topic, 0, before)
    admin = _admin(address)  # kept: its requests end with it
    admin.delete_records([place])[place].result(30)


def _delete(address: str, topic: str) -> None:
    admin = _admin(address)
    admin.delete_topics([topic], operation_timeout=30)[topic].result(30)


def _make_again(address: str, topic: str, partitions: int = 1) -> None:
    _delete(address, topic)
    until = time.monotonic() + 30
    while True:
        try:
            make_topic(address, topic, partitions=partitions)
            return
        except Exception:
            assert time.monotonic() < until
            time.sleep(0.1)


def _grow(address: str, topic: str, partitions: int) -> None:
    admin = _admin(address)
    admin.create_partitions([NewPartitions(topic, partitions)])[topic].result(30)


def _reading(
    settings: Any, topic: str, found: list[Any], errs: list[Any], **options: Any
) -> Dataflow:
    flow = Dataflow("reading")
    items = jop.input("in", flow, settings, topics=topic, **options)
    op.output("out", items.oks, TestingSink(found))
    op.output("errs", items.errs, TestingSink(errs))
    return flow


def test_messages_are_bytewaxs_own_with_cluster_and_topic_id(kafka_address: str) -> None:
    topic = new_topic(kafka_address, partitions=1)
    producer = ordered_producer(kafka_address)
    producer.produce(topic, b"1", b"key", headers=[("a", None), ("a", b"2")], timestamp=1234)
    producer.flush(30)

    with Reading(kafka(kafka_address), topics=topic, tail=False) as reading:
        reading.to_the_end()
    (message,) = reading.items
    flow = Dataflow("keys")
    typed: list[Any] = []
    op.output(
        "out",
        op.map(
            "typed",
            jop.input("in", flow, kafka(kafka_address), topics=topic, tail=False).oks,
            lambda one: one._with_key_and_value("key", 1),
        ),
        TestingSink(typed),
    )
    run(flow)

    assert isinstance(message, KafkaSourceMessage)
    assert type(message) is KafkaMessage
    assert (message.key, message.value, message.topic) == (b"key", b"1", topic)
    assert (message.offset, message.partition, message.timestamp) == (0, 0, (1, 1234))
    assert message.headers == [("a", None), ("a", b"2")]
    described = _admin(kafka_address).list_topics(topic, timeout=10)
    assert message.cluster == described.cluster_id
    assert len(message.topic_id or "") == 22
    assert (typed[0].key, typed[0].value, typed[0].topic_id) == ("key", 1, message.topic_id)


def test_retention_that_overtook_the_reader_is_told_and_reading_goes_on(
    kafka_address: str, caplog: pytest.LogCaptureFixture
) -> None:
    topic = new_topic(kafka_address, partitions=1)
    _write(kafka_address, topic, 0, 10)
    _, _, states = read_all(kafka(kafka_address), topics=topic, count=10)
    _write(kafka_address, topic, 10, 20)
    _remove(kafka_address, topic, 15)

    values, errs, _ = read_all(kafka(kafka_address), states, topics=topic, count=5)

    assert values == _numbers(15, 20)
    (missed,) = errs
    assert "5 offsets, 10 to 14, were removed before they were read" in missed.err.str()
    assert (missed.msg.topic, missed.msg.partition, missed.msg.offset) == (topic, 0, 10)
    assert "5 offsets, 10 to 14" in caplog.text


def test_retention_that_overtakes_a_running_reader_is_told(kafka_address: str) -> None:
    topic = new_topic(kafka_address, partitions=1)
    _write(kafka_address, topic, 0, 10)
    with Reading(kafka(kafka_address), topics=topic) as reading:
        reading.until(lambda: len(reading.values) == 10)
        _write(kafka_address, topic, 10, 20)
        # Removed before librdkafka can ask for them: its consumer is moved back to them.
        feed = reading.parts[f"0-{topic}"]._part._feed
        _remove(kafka_address, topic, 15)
        reading.parts[f"0-{topic}"]._part._reader.move(feed, 12)
        reading.items.clear()

        reading.until(lambda: reading.errs and len(reading.values) >= 5)

        assert reading.values[-5:] == _numbers(15, 20)
        assert "3 offsets, 12 to 14, were removed" in reading.errs[0].err.str()


@pytest.mark.parametrize("count", [0, 5, 30], ids=["empty", "shorter", "longer"])
def test_topic_made_again_between_runs_stops_the_resume(kafka_address: str, count: int) -> None:
    topic = new_topic(kafka_address, partitions=1)
    _write(kafka_address, topic, 0, 10)
    _, _, states = read_all(kafka(kafka_address), topics=topic, count=10)
    _make_again(kafka_address, topic)
    _write(kafka_address, topic, 0, count)

    with pytest.raises(SourceError, match="was deleted and made again since it was read") as e:
        Reading(kafka(kafka_address), states, topics=topic)

    assert (e.value.topic, e.value.offset) == (topic, 10)


def test_topic_made_again_with_fewer_partitions_is_one_clear_error(
    kafka_address: str, tmp_path: Path
) -> None:
    topic = new_topic(kafka_address, partitions=6)
    _write(kafka_address, topic, 0, 10)
    store = recovery_store(tmp_path / "store")
    run(_reading(kafka(kafka_address), topic, [], [], tail=False), store=store)
    _make_again(kafka_address, topic, partitions=2)

    with pytest.raises(BytewaxRuntimeError) as failed:
        run(_reading(kafka(kafka_address), topic, [], [], tail=False), store=store)

    assert isinstance(root_cause(failed.value), SourceError)
    assert "was deleted and made again" in str(root_cause(failed.value))


@pytest.mark.parametrize("count", [0, 5, 60], ids=["empty", "shorter", "longer"])
def test_topic_made_again_while_it_is_read_stops_the_run(
    kafka_address: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bytewax_jetstream.kafka.source.watch.ID_SECONDS", 1.0)
    topic = new_topic(kafka_address, partitions=1)
    _write(kafka_address, topic, 0, 50)
    with Reading(kafka(kafka_address), topics=topic, on_error="errs") as reading:
        reading.until(lambda: len(reading.values) == 50)
        _make_again(kafka_address, topic)
        _write(kafka_address, topic, 0, count)

        with pytest.raises(SourceError, match="made again"):
            reading.until(lambda: False)


def test_offset_beyond_the_log_stops_the_resume(kafka_address: str) -> None:
    topic = new_topic(kafka_address, partitions=1)
    _write(kafka_address, topic, 0, 10)
    _, _, states = read_all(kafka(kafka_address), topics=topic, count=10)
    kind, version, _, topic_id, epoch = states[f"0-{topic}"]
    states[f"0-{topic}"] = kind, version, 11, topic_id, epoch

    with pytest.raises(SourceError, match="was read up to offset 11, and now ends at 10") as e:
        Reading(kafka(kafka_address), states, topics=topic)

    assert (e.value.topic, e.value.partition, e.value.offset) == (topic, 0, 11)


def test_log_that_lost_messages_of_an_earlier_leader_stops_the_resume(
    own_kafka_server: KafkaServer,
) -> None:
    address = own_kafka_server.bootstrap
    topic = new_topic(address, partitions=1)
    _write(address, topic, 0, 10)
    _, _, states = read_all(kafka(address), topics=topic, count=10)
    own_kafka_server.restart()  # begins a new leader epoch, at offset 10
    _write(address, topic, 10, 30)
    kind, version, position, topic_id, epoch = states[f"0-{topic}"]
    assert position == 10

    assert read_all(kafka(address), states, topics=topic, count=20)[0] == _numbers(10, 30)
    # The first leader had five messages more, and they were read; the second never had them.
    states[f"0-{topic}"] = kind, version, 15, topic_id, epoch
    with (
        Reading(kafka(address), states, topics=topic) as reading,
        pytest.raises(SourceError, match="was read up to offset 15, and now ends at 30, or has"),
    ):
        reading.until(lambda: False)
    assert reading.items == []


def test_leader_epoch_that_the_log_does_not_have_stops_the_resume(kafka_address: str) -> None:
    topic = new_topic(kafka_address, partitions=1)
    _write(kafka_address, topic, 0, 10)
    _, _, states = read_all(kafka(kafka_address), topics=topic, count=10)
    kind, version, position, topic_id, epoch = states[f"0-{topic}"]
    states[f"0-{topic}"] = kind, version, position, topic_id, epoch + 1

    with pytest.raises(SourceError, match="the brokers have lost messages that were read"):
        Reading(kafka(kafka_address), states, topics=topic)


def test_offsets_stored_by_an_earlier_version_resume_with_one_warning(
    kafka_address: str, caplog: pytest.LogCaptureFixture
) -> None:
    topic = new_topic(kafka_address, partitions=4)
    for partition in range(4):
        _write(kafka_address, topic, 10 * partition, 10 * partition + 10, partition)
    old = {f"0-{topic}": 5, f"1-{topic}": 10, f"2-{topic}": -2, f"3-{topic}": -1}

    values, errs, states = read_all(kafka(kafka_address), old, topics=topic, count=15)

    assert values == [*_numbers(5, 10), *_numbers(20, 30)]
    assert errs == []
    assert [line.levelname for line in caplog.records if "earlier version" in line.message] == [
        "WARNING"
    ]
    assert [states[f"{number}-{topic}"][2] for number in range(4)] == [10, 10, 10, 10]


def test_start_new_keeps_the_end_of_an_idle_partition_from_the_first_run(
    kafka_address: str,
) -> None:
    topic = new_topic(kafka_address, partitions=2)
    _write(kafka_address, topic, 0, 10, 0)
    _write(kafka_address, topic, 10, 20, 1)
    with Reading(kafka(kafka_address), topics=topic, start="new") as reading:
        reading.turn()
        states = reading.states()
    _write(kafka_address, topic, 20, 30, 1)

    values, errs, _ = read_all(kafka(kafka_address), states, topics=topic, start="new", count=10)

    assert values == _numbers(20, 30)
    assert errs == []


def test_start_new_misses_no_message_that_comes_while_the_source_opens(
    kafka_address: str,
) -> None:
    topic = new_topic(kafka_address, partitions=1)
    _write(kafka_address, topic, 0, 10)
    with Reading(kafka(kafka_address), topics=topic, start="new") as reading:
        _write(kafka_address, topic, 10, 15)
        reading.until(lambda: len(reading.values) >= 5)
        assert reading.values == _numbers(10, 15)


def test_start_at_an_offset_reads_from_there_or_says_why_not(kafka_address: str) -> None:
    topic = new_topic(kafka_address, partitions=1)
    _write(kafka_address, topic, 0, 10)
    _remove(kafka_address, topic, 4)

    at, errs, _ = read_all(kafka(kafka_address), topics=topic, start=6, count=4)
    assert (at, errs) == (_numbers(6, 10), [])
    below, errs, _ = read_all(kafka(kafka_address), topics=topic, start=1, count=6)
    assert below == _numbers(4, 10)
    assert "3 offsets, 1 to 3, were removed" in errs[0].err.str()
    with pytest.raises(SourceError, match="start=11 is beyond the end of partition 0 of topic"):
        Reading(kafka(kafka_address), topics=topic, start=11)


def test_partitions_added_while_reading_are_read_from_their_first_offset(
    kafka_address: str,
) -> None:
    topic = new_topic(kafka_address, partitions=1)
    _write(kafka_address, topic, 0, 10)
    with Reading(kafka(kafka_address), topics=topic, start="new") as reading:
        reading.turn()
        before = reading.states()
        _grow(kafka_address, topic, 3)
        _write(kafka_address, topic, 10, 20, 1)
        _write(kafka_address, topic, 20, 30, 2)

        reading.until(lambda: len(reading.values) >= 20)

        assert reading.values == _numbers(10, 30)
        states = reading.states()
    assert before[f"1-{topic}"][2] is None, "an absent partition is stored as absent"
    _write(kafka_address, topic, 30, 40, 2)
    assert read_all(kafka(kafka_address), states, topics=topic, count=10)[0] == _numbers(30, 40)
    # A crash before the next epoch: what came into the new partitions meanwhile is read again.
    again = read_all(kafka(kafka_address), before, topics=topic, start="new", count=30)
    assert again[0] == _numbers(10, 40)


def test_nothing_more_is_read_of_an_overgrown_topic_until_the_epoch_is_committed(
    kafka_address: str,
) -> None:
    topic = new_topic(kafka_address, partitions=1)
    _write(kafka_address, topic, 0, 10)
    with Reading(kafka(kafka_address), topics=topic) as reading:
        reading.until(lambda: len(reading.values) == 10)
        _grow(kafka_address, topic, 17)
        part = reading.parts[f"0-{topic}"]._part
        reading.until(lambda: part._overgrown)
        _write(kafka_address, topic, 10, 20)
        end = time.monotonic() + 1
        reading.until(lambda: time.monotonic() > end)
        states = reading.states()
        with pytest.raises(SourceError, match="has 17 partitions now, and this run can read 16"):
            reading.until(lambda: False)

        assert reading.values == _numbers(0, 10)
    assert read_all(kafka(kafka_address), states, topics=topic, count=10)[0] == _numbers(10, 20)


def test_more_partitions_than_a_run_can_read_end_it_after_a_commit(
    kafka_address: str, tmp_path: Path
) -> None:
    topic = new_topic(kafka_address, partitions=1)
    _write(kafka_address, topic, 0, 10)
    store, found, errs = recovery_store(tmp_path / "store"), list[Any](), list[Any]()
    settings = kafka(kafka_address)
    timer = threading.Timer(1.0, _grow, (kafka_address, topic, 20))
    timer.start()

    with pytest.raises(BytewaxRuntimeError) as failed:
        run(_reading(settings, topic, found, errs), store=store)
    timer.join()
    _write(kafka_address, topic, 10, 20, 19)
    again: list[Any] = []
    run(_reading(settings, topic, again, errs, tail=False), store=store)

    assert _sorted(found) == _numbers(0, 10)
    assert str(root_cause(failed.value)).startswith(
        f"topic {topic} has 20 partitions now, and this run can read 16: start the flow again"
    )
    assert _sorted(again) == _numbers(10, 20)
    assert errs == []


def test_overgrown_topic_is_read_from_its_first_offsets_after_the_restart(
    kafka_address: str,
) -> None:
    topic = new_topic(kafka_address, partitions=1)
    with Reading(kafka(kafka_address), topics=topic, start="new") as reading:
        reading.turn()
        states = reading.states()
    _grow(kafka_address, topic, 20)
    _write(kafka_address, topic, 0, 10, 3)
    _write(kafka_address, topic, 10, 20, 19)

    values, errs, _ = read_all(kafka(kafka_address), states, topics=topic, start="new", count=20)

    assert (values, errs) == (_numbers(0, 20), [])


def test_one_dataflow_may_be_run_again_at_once(kafka_address: str, tmp_path: Path) -> None:
    topic = new_topic(kafka_address, partitions=1)
    store, found = recovery_store(tmp_path / "store"), list[Any]()
    flow = _reading(kafka(kafka_address), topic, found, [], tail=False)
    for number in range(3):
        _write(kafka_address, topic, number * 10, number * 10 + 10)
        run(flow, store=store)

    assert [one.value for one in found] == _numbers(0, 30)


def _sorted(found: list[Any]) -> list[bytes]:
    return sorted((one.value for one in found), key=int)


def test_topic_deleted_while_it_is_read_is_an_error(kafka_address: str) -> None:
    topic = new_topic(kafka_address, partitions=2)
    _write(kafka_address, topic, 0, 10)
    with Reading(kafka(kafka_address), topics=topic) as reading:
        reading.until(lambda: len(reading.values) == 10)
        _delete(kafka_address, topic)

        with pytest.raises(SourceError, match=f"^topic {topic} is not there any more") as e:
            reading.until(lambda: False, 30)

    assert (e.value.topic, e.value.code) == (topic, 3)


def test_topic_deleted_while_it_is_read_is_one_item_with_on_error_errs(
    kafka_address: str,
) -> None:
    topic, other = new_topic(kafka_address, partitions=2), new_topic(kafka_address, partitions=1)
    with Reading(kafka(kafka_address), topics=[topic, other], on_error="errs") as reading:
        reading.turn()
        _delete(kafka_address, topic)

        reading.until(lambda: reading.errs, 30)
        _write(kafka_address, other, 0, 10)
        reading.until(lambda: len(reading.values) == 10)

    (error,) = reading.errs
    assert error.msg.topic == topic
    assert "is not there any more" in error.err.str()


def test_reading_makes_no_topic_on_brokers_that_make_them_when_asked() -> None:
    with KafkaServer(config="auto.create.topics.enable=true\n") as server:
        address = server.bootstrap
        topic = new_topic(address, partitions=1)
        with pytest.raises(TopicError, match="there is no topic nowhere to read"):
            Reading(kafka(address), topics="nowhere")
        with Reading(kafka(address), topics=topic) as reading:
            reading.turn()
            _delete(address, topic)
            with pytest.raises(SourceError, match="is not there any more"):
                reading.until(lambda: False, 30)

        assert not {topic, "nowhere"} & _admin(address).list_topics(timeout=10).topics.keys()


def test_brokers_that_stay_away_are_an_error_after_the_delivery_timeout(
    own_kafka_server: KafkaServer,
) -> None:
    address = own_kafka_server.bootstrap
    topic = new_topic(address, partitions=2)
    with Reading(kafka(address, delivery_timeout=3), topics=topic) as reading:
        reading.turn()
        own_kafka_server.kill()
        with pytest.raises(SourceError, match=r"no broker has answered for \d+ s .*refused"):
            reading.until(lambda: False, 40)
        began = time.monotonic()
    assert time.monotonic() - began < 10, "the end of the run waits for the broker"


def test_brokers_that_come_back_are_read_on_with_on_error_errs(
    own_kafka_server: KafkaServer,
) -> None:
    address = own_kafka_server.bootstrap
    topic = new_topic(address, partitions=2)
    _write(address, topic, 0, 10)
    with Reading(kafka(address, delivery_timeout=2), topics=topic, on_error="errs") as reading:
        reading.until(lambda: len(reading.values) == 10)
        own_kafka_server.kill()
        reading.until(lambda: reading.errs)
        own_kafka_server.start()
        _write(address, topic, 10, 20)
        reading.until(lambda: len(reading.values) == 20)

    assert reading.values == _numbers(0, 20)
    assert len(reading.errs) == 1


def test_transactions_end_where_they_should_and_resume(kafka_address: str) -> None:
    topic = new_topic(kafka_address, partitions=1)
    producer = Producer({"bootstrap.servers": kafka_address, "transactional.id": topic})
    producer.init_transactions(60)
    for first, commit in ((0, True), (5, False), (10, True)):
        producer.begin_transaction()
        for number in range(first, first + 5):
            producer.produce(topic, b"%d" % number)
        if commit:
            producer.commit_transaction(60)
        else:
            producer.flush(30)
            producer.abort_transaction(60)

    with Reading(kafka(kafka_address), topics=topic, tail=False) as reading:
        part = reading.parts[f"0-{topic}"]
        reading.to_the_end()
    state = part.snapshot()
    _write(kafka_address, topic, 15, 20)
    values, errs, _ = read_all(kafka(kafka_address), {f"0-{topic}": state}, topics=topic, count=5)

    assert reading.values == [*_numbers(0, 5), *_numbers(10, 15)]
    assert (values, errs) == (_numbers(15, 20), [])


@pytest.mark.alone
def test_two_hundred_partitions_cost_one_consumer_for_each_worker(kafka_address: str) -> None:
    topic = new_topic(kafka_address, partitions=200)
    for partition in range(0, 200, 20):
        _write(kafka_address, topic, partition, partition + 1, partition)
    process, most = psutil.Process(), 0
    before = process.num_threads()
    found: list[Any] = []
    flow = Dataflow("reading")
    items = jop.input("in", flow, kafka(kafka_address), topics=topic, tail=False)

    def count(item: Any) -> Any:
        nonlocal most
        most = max(most, process.num_threads())
        return item

    op.output("out", op.map("count", items.oks, count), TestingSink(found))
    workers = 2
    run(flow, workers=workers)

    assert len(found) == 10
    assert 0 < most - before - workers <= workers * (1 + 4) + 1
    assert process.num_threads() <= before + 1


def test_batches_and_reading_ahead_stay_within_their_bounds(kafka_address: str) -> None:
    topic = new_topic(kafka_address, partitions=8)
    for partition in range(8):
        _write(kafka_address, topic, partition * 500, partition * 500 + 500, partition)
    with Reading(kafka(kafka_address), topics=topic, batch_size=50) as reading:
        feeds = [part._part._feed for part in reading.parts.values() if part._part._feed]
        end = time.monotonic() + 60
        while len(reading.values) < 4000:
            assert time.monotonic() < end
            for part in reading.parts.values():
                batch = part.next_batch()
                part.next_awake()
                assert len(batch) <= 50
                assert sum(len(feed.items) for feed in feeds) <= 100
                reading.items += batch
    assert reading.values == _numbers(0, 4000)


@pytest.mark.parametrize("workers", [1, 2])
def test_crashes_miss_nothing_and_repeat_one_epoch_at_most(
    kafka_address: str, tmp_path: Path, workers: int
) -> None:
    topic = new_topic(kafka_address, partitions=3)
    for partition in range(3):
        _write(kafka_address, topic, partition * 400, partition * 400 + 400, partition)
    store, seen = recovery_store(tmp_path / "store"), list[bytes]()

    for attempt in range(4):
        flow = Dataflow("crashing")
        items = jop.input("in", flow, kafka(kafka_address), topics=topic, tail=False, batch_size=20)
        left = [200 if attempt < 3 else 10_000]

        def take(message: Any, left: list[int] = left) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise RuntimeError("crash")
            seen.append(message.value)
            return message

        op.output("out", op.map("take", items.oks, take), TestingSink([]))
        try:
            run(flow, store=store, workers=workers)
        except BytewaxRuntimeError:
            assert attempt < 3

    assert sorted(set(seen), key=int) == _numbers(0, 1200)
    assert len(seen) <= 1200 + 3 * 200

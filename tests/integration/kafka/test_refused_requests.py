"""A broker refuses a whole request: only the message at fault is rejected, and order is kept."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka.admin import AclOperation

from bytewax_jetstream.envelope import Envelope, Outcome, PublishResult
from bytewax_jetstream.pool.lane import Lane
from bytewax_jetstream.settings import KafkaSettings
from bytewax_jetstream.testing import KafkaServer
from tests.support.kafka import audit, lower_limit, new_topic, records
from tests.support.kafka_rights import (
    DESCRIBE,
    WRITE,
    acting_as,
    allow,
    asking_for_passwords,
    forbid,
)
from tests.support.lanes import broker_of, kafka, opened, publish, settle
from tests.support.streams import FLAWLESS, envelopes
from tests.support.waiting import until


@pytest.fixture(scope="module")
def guarded() -> Iterator[KafkaServer]:
    with asking_for_passwords() as server:
        yield server


def _unreadable(server: KafkaServer, **config: Any) -> tuple[str, KafkaSettings]:
    """A topic that bob may write to, but whose configuration he may not read."""
    topic = new_topic(server.internal, partitions=2, **config)
    allow(server, topic, WRITE, DESCRIBE)
    return topic, acting_as("bob", server)


def _outcomes(results: dict[str, PublishResult]) -> set[tuple[Outcome, str | None]]:
    return {(each.outcome, each.reason) for each in results.values()}


STORED = {(Outcome.STORED, None)}


@pytest.mark.parametrize("count", [2, 100, 3_000])
@pytest.mark.parametrize("keyless", [False, True], ids=["aggregates", "keyless"])
def test_small_messages_are_stored_after_the_topics_limit_was_lowered(
    kafka_address: str, count: int, keyless: bool
) -> None:
    topic, other = new_topic(kafka_address), new_topic(kafka_address)
    batch = envelopes(count, topic, first=10)
    if keyless:
        batch = [each._replace(aggregate_id=None) for each in batch]
    beside = envelopes(count, other, first=100_000)
    mixed = [each for pair in zip(batch, beside, strict=True) for each in pair]
    with opened(kafka(kafka_address, topics=(topic,))) as (pool, lane):
        first = envelopes(10, topic)
        settle(lane, first)
        lower_limit(kafka_address, topic, 150)
        results = settle(lane, mixed)
        later = envelopes(20, topic, first=200_000)

        assert _outcomes(results) == _outcomes(settle(lane, later)) == STORED
        assert lane.stop_reason is None
        assert broker_of(pool)["producers_stopped"] == 1
    assert audit(kafka_address, topic, first + batch + later) == FLAWLESS
    assert audit(kafka_address, other, beside) == FLAWLESS


def test_small_requests_do_not_overtake_a_refused_one(kafka_address: str) -> None:
    settings = kafka(kafka_address, batch_bytes=1_000, linger=0.05)
    for count in range(20, 80, 6):
        topic = new_topic(kafka_address, partitions=1)
        # Full requests are too large then; the last one is not, for some of these counts.
        batch = envelopes(count, topic, first=1, aggregates=1)
        with opened(settings) as (_, lane):
            first = envelopes(1, topic, aggregates=1)
            settle(lane, first)
            lower_limit(kafka_address, topic, 700)
            lane.submit(batch)
            until(lambda: lane.unsettled == 0)

            assert {(each.outcome, each.reason) for each in lane.flush()} == STORED
        assert audit(kafka_address, topic, first + batch) == FLAWLESS


def test_only_messages_above_a_lowered_limit_are_rejected(kafka_address: str) -> None:
    topic = new_topic(kafka_address)
    batch = [
        each._replace(payload=b"1" * 5_000) if number % 50 == 7 else each
        for number, each in enumerate(envelopes(500, topic, first=10))
    ]
    with opened(kafka(kafka_address, topics=(topic,))) as (_, lane):
        settle(lane, envelopes(10, topic))
        lower_limit(kafka_address, topic, 3_000)
        results = settle(lane, batch)

        assert lane.stop_reason is None
    rejected = {each.event_id for each in batch if len(each.payload or b"") == 5_000}
    for event_id, result in results.items():
        expected = Outcome.REJECTED if event_id in rejected else Outcome.STORED
        assert result.outcome is expected, result
        assert expected is Outcome.STORED or "split the message" in str(result.reason)
    stored = envelopes(10, topic) + [each for each in batch if each.event_id not in rejected]
    assert audit(kafka_address, topic, stored) == FLAWLESS


def test_small_messages_are_stored_below_a_limit_that_may_not_be_read(
    guarded: KafkaServer,
) -> None:
    topic, settings = _unreadable(guarded, max_message_bytes="200")
    batch = envelopes(2_000, topic, aggregates=40)

    assert _outcomes(publish(settings, *batch)) == STORED
    assert audit(guarded.internal, topic, batch) == FLAWLESS


def test_slower_requests_are_named_in_the_log(
    kafka_address: str, caplog: pytest.LogCaptureFixture
) -> None:
    topic = new_topic(kafka_address, max_message_bytes="1000")

    publish(kafka(kafka_address), *envelopes(200, topic))

    (said,) = [each for each in caplog.messages if "requests of their own" in each]
    assert said.startswith(f"topic {topic}: a request was refused")
    assert "lower batch_bytes to the topic's max.message.bytes" in said


@pytest.mark.parametrize("keyless", [{50}, {0, 99}, {3, 4, 70}], ids=str)
def test_compacted_topic_that_may_not_be_described_rejects_only_what_has_no_key(
    guarded: KafkaServer, keyless: set[int]
) -> None:
    topic, settings = _unreadable(guarded, cleanup_policy="compact")
    batch = [
        each._replace(aggregate_id=None) if number in keyless else each
        for number, each in enumerate(envelopes(100, topic))
    ]
    with opened(settings) as (pool, lane):
        results = settle(lane, batch)
        stopped = broker_of(pool)["producers_stopped"]
        later = settle(lane, [each._replace(event_id=f"{each.event_id}-2") for each in batch])

        assert lane.stop_reason is None
        assert broker_of(pool)["producers_stopped"] == stopped, "it is known by now"
    for some in (results, later):
        refused = {each.event_id for each in some.values() if each.outcome is not Outcome.STORED}
        assert {each.removesuffix("-2") for each in refused} == {f"e-{each}" for each in keyless}
        assert {some[each].outcome for each in refused} == {Outcome.REJECTED}
        assert all("aggregate id" in str(some[each].reason) for each in refused)


def test_misdated_message_is_rejected_alone_where_the_limit_may_not_be_read(
    guarded: KafkaServer,
) -> None:
    topic, settings = _unreadable(guarded, message_timestamp_before_max_ms="3600000")
    batch = envelopes(100, topic)
    batch[30] = batch[30]._replace(timestamp=datetime.now(UTC) - timedelta(days=1))

    results = publish(settings, *batch)

    assert results.pop("e-30").outcome is Outcome.REJECTED
    assert _outcomes(results) == STORED
    assert audit(guarded.internal, topic, batch[:30] + batch[31:]) == FLAWLESS


# Rights


def _submit_denied(lane: Lane, topic: str, first: int, count: int) -> list[Envelope]:
    batch = envelopes(count, topic, first=first, aggregates=7)
    lane.submit(batch)
    return batch


@pytest.mark.parametrize("rights", [[WRITE], [WRITE, DESCRIBE]], ids=["write", "all"])
def test_write_permission_that_comes_back_stores_everything_in_order(
    guarded: KafkaServer, rights: list[AclOperation]
) -> None:
    topic, settings = _unreadable(guarded)
    other = new_topic(guarded.internal)
    allow(guarded, other, WRITE, DESCRIBE)
    with opened(settings) as (pool, lane):
        batch = envelopes(100, topic, aggregates=7)
        settle(lane, batch)
        for right in rights:
            forbid(guarded, topic, right)
        batch += _submit_denied(lane, topic, 100, 300)
        until(lambda: broker_of(pool)["producers_stopped"] == 1)
        batch += _submit_denied(lane, topic, 400, 100)
        lane.submit(envelopes(50, other, first=10_000))
        until(lambda: pool.statistics()["stored"] == 150)
        allow(guarded, topic, *rights)
        results = lane.flush()

        assert {(each.outcome, each.reason) for each in results} == STORED
        assert lane.stop_reason is None
    assert audit(guarded.internal, topic, batch) == FLAWLESS
    assert audit(guarded.internal, other, envelopes(50, other, first=10_000)) == FLAWLESS


def test_rights_taken_and_given_while_publishing_keep_every_message_in_order(
    guarded: KafkaServer,
) -> None:
    topic, settings = _unreadable(guarded)
    end = threading.Event()

    def change() -> None:
        for _ in range(4):
            forbid(guarded, topic, WRITE)
            end.wait(0.3)
            allow(guarded, topic, WRITE)
            end.wait(0.3)
        end.set()

    with opened(settings) as (pool, lane):
        batch = envelopes(100, topic, aggregates=7)
        settle(lane, batch)
        thread = threading.Thread(target=change, daemon=True)
        thread.start()
        results = []
        while not end.wait(0.01):
            batch += _submit_denied(lane, topic, len(batch), 50)
            results += lane.collect()
        results += lane.flush()
        thread.join()

        assert {(each.outcome, each.reason) for each in results} == STORED
        assert broker_of(pool)["producers_stopped"] > 0
    assert audit(guarded.internal, topic, batch) == FLAWLESS


def test_write_permission_that_stays_away_ends_unknown_at_the_delivery_timeout(
    guarded: KafkaServer,
) -> None:
    topic = new_topic(guarded.internal)
    allow(guarded, topic, WRITE, DESCRIBE)
    with opened(acting_as("bob", guarded, delivery_timeout=4)) as (pool, lane):
        settle(lane, envelopes(100, topic))
        forbid(guarded, topic, WRITE)
        lane.submit(envelopes(100, topic, first=100))
        until(lambda: broker_of(pool)["producers_stopped"] == 1)
        until(lambda: broker_of(pool)["topics_one_by_one"] == 1)

        assert lane.collect() == []
        results = lane.flush()

        assert lane.stop_reason is not None
    assert {each.outcome for each in results} == {Outcome.UNKNOWN}
    assert all("grant this user WRITE" in str(each.reason) for each in results)
    assert len(records(guarded.internal, topic)) == 100


def test_topic_that_never_allowed_anything_is_rejected_and_others_are_stored(
    guarded: KafkaServer,
) -> None:
    topic = new_topic(guarded.internal)
    allow(guarded, topic, DESCRIBE)
    other, settings = _unreadable(guarded)
    batch = envelopes(200, topic)
    mixed = [
        each
        for pair in zip(batch, envelopes(200, other, first=1_000), strict=True)
        for each in pair
    ]
    with opened(settings) as (pool, lane):
        results = settle(lane, mixed)
        results |= settle(lane, envelopes(200, topic, first=500))

        assert lane.stop_reason is None
        assert broker_of(pool)["producers_stopped"] == 1
    for result in results.values():
        denied = result.topic == topic
        assert result.outcome is (Outcome.REJECTED if denied else Outcome.STORED), result
        assert not denied or "grant this user WRITE on the topic" in str(result.reason)
    assert records(guarded.internal, topic) == []

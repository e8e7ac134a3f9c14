"""The broker in memory: what it stores, what it says of it, and each of its faults."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from bytewax_jetstream.envelope import (
    Envelope,
    Headers,
    HeaderValue,
    Outcome,
    PublishOptions,
    PublishResult,
)
from bytewax_jetstream.errors import ConnectError, PoolClosedError
from bytewax_jetstream.jetstream.publisher import JetStreamPublisher
from bytewax_jetstream.kafka.publisher import KafkaPublisher
from bytewax_jetstream.pool.ack_pool import AckPool
from bytewax_jetstream.publishing import Refusal, Verdict
from bytewax_jetstream.settings import JetStreamSettings, KafkaSettings, PoolSettings
from bytewax_jetstream.testing.memory import MemoryBroker, Stored
from tests.support.lanes import broker_of, opened, publish, settle
from tests.support.streams import envelopes
from tests.support.waiting import until

NO = Refusal(Verdict.REJECT, "never", 400)
LATER = Refusal(Verdict.RETRY, "not now", 503)
STOP = Refusal(Verdict.STOP, "the stream is gone", 404)
QUICK = PoolSettings(ack_timeout=0.05, delivery_timeout=1)


each_way = pytest.mark.parametrize("like", ["batches", "singles", "kafka"])


def _broker(like: str, pool: PoolSettings | None = None) -> MemoryBroker:
    """One of the three that differ in how messages reach them."""
    if like == "kafka":
        return MemoryBroker("kafka", pool=pool)
    return MemoryBroker("jetstream", batches=like == "batches", pool=pool)


def _ids(messages: list[Stored]) -> list[str]:
    return [message.event_id for message in messages]


def _refuse(refusal: Refusal, *event_ids: str) -> Callable[[Envelope], Refusal | None]:
    return lambda envelope: refusal if envelope.event_id in event_ids else None


# What it stores


def test_a_stored_message_has_all_that_its_envelope_had() -> None:
    broker = MemoryBroker()
    envelope = Envelope("orders", b"1", "order-1", "a-1", "created", {"trace": "x"})

    publish(broker.settings, envelope, Envelope("other", b"2", "order-2"))

    assert broker.stored_on("orders") == [
        Stored("orders", b"1", "order-1", "a-1", "created", {"trace": "x"}, "MEMORY", None, 1)
    ]
    assert _ids(broker.stored) == ["order-1", "order-2"]


def test_like_kafka_an_aggregate_has_one_partition_and_rising_offsets() -> None:
    broker = MemoryBroker("kafka", partitions=3)

    publish(broker.settings, *envelopes(60, "orders", aggregates=30))

    partitions: dict[str | None, set[int | None]] = {}
    offsets: dict[int | None, list[int]] = {}
    for message in broker.stored:
        partitions.setdefault(message.aggregate_id, set()).add(message.partition)
        offsets.setdefault(message.partition, []).append(message.sequence)
    assert all(len(found) == 1 for found in partitions.values())
    assert set(offsets) == {0, 1, 2}
    assert all(found == list(range(len(found))) for found in offsets.values())


def test_like_kafka_an_envelope_goes_to_the_partition_it_names_if_there_is_one() -> None:
    broker = MemoryBroker("kafka", partitions=2)
    batch = [Envelope("orders", b"", f"e-{n}", partition=n) for n in (1, 2)]

    results = publish(broker.settings, *batch)

    assert results["e-1"].partition == 1
    assert results["e-2"].outcome is Outcome.REJECTED
    assert results["e-2"].reason == "topic orders has no partition 2: give one of 0 to 1, or None"


def test_like_kafka_a_replay_is_stored_again() -> None:
    broker = MemoryBroker("kafka")

    for _ in range(2):
        publish(broker.settings, Envelope("orders", b"", "e-0"))

    assert _ids(broker.stored) == ["e-0", "e-0"]


@pytest.mark.parametrize(
    ("options", "last"),
    [
        (PublishOptions(expected_last_sequence=1), 1),
        (PublishOptions(expected_last_subject_sequence=1), 1),
        (PublishOptions(expected_last_sequence=0), 0),
        (PublishOptions(expected_last_subject_sequence=7), 0),
    ],
)
def test_an_expected_sequence_is_met_or_the_envelope_is_rejected(
    options: PublishOptions, last: int
) -> None:
    broker = MemoryBroker()
    batch = [Envelope("orders", b"", "e-0"), Envelope("orders", b"", "e-1", options=options)]

    with opened(broker.settings) as (_, lane):
        settle(lane, batch[:1])
        result = settle(lane, batch[1:])["e-1"]

    assert result.outcome is (Outcome.STORED if last else Outcome.REJECTED)
    assert result.code == (None if last else 10071)
    assert len(broker.stored) == 1 + last


@each_way
def test_a_bad_envelope_is_rejected_with_a_sentence_and_harms_no_other(like: str) -> None:
    broker = _broker(like)
    bad = [
        Envelope(topic="", payload=b"", event_id="no topic"),
        Envelope(topic=7, payload=b"", event_id="a topic of 7"),  # type: ignore[arg-type]
        Envelope("orders", "text", event_id="a text"),  # type: ignore[arg-type]
        Envelope("orders", b"", event_id="a number", aggregate_id=7),  # type: ignore[arg-type]
        Envelope("orders", b"", event_id="headers", headers={"n": 1}),  # type: ignore[dict-item]
        Envelope("orders", b"", event_id="no headers", headers=[7]),  # type: ignore[list-item]
    ]
    if like == "kafka":
        bad.append(Envelope("orders", b"", "options", options=PublishOptions()))
        bad.append(Envelope("orders", b"", "a negative partition", partition=-1))

    results = publish(broker.settings, *bad, Envelope("orders", b"", "good"))

    assert results.pop("good").outcome is Outcome.STORED
    assert {result.outcome for result in results.values()} == {Outcome.REJECTED}
    assert all(": " in str(result.reason) for result in results.values())
    assert _ids(broker.stored) == ["good"]


@each_way
def test_tombstones_times_and_repeated_headers_are_stored(like: str) -> None:
    broker, time = _broker(like), datetime(2026, 11, 30, tzinfo=UTC)
    pairs: list[tuple[str, HeaderValue]] = [("a", "1"), ("a", b"\xff"), ("b", None)]

    publish(broker.settings, Envelope("orders", None, "e-1", headers=pairs, timestamp=time))

    (message,) = broker.stored
    assert (message.payload, message.timestamp) == (None, time)
    assert message.headers == Headers(pairs)
    assert message.headers["a"] == "1"


def test_another_message_under_an_event_id_of_its_batch_is_rejected() -> None:
    broker = MemoryBroker()
    batch = [Envelope("orders", b"1", "e-1"), Envelope("orders", b"2", "e-1")]

    with opened(broker.settings) as (_, lane):
        lane.submit(batch)
        outcomes = {result.outcome for result in lane.flush()}

    assert outcomes == {Outcome.STORED, Outcome.REJECTED}
    assert [message.payload for message in broker.stored] == [b"1"]


# Where it stands for a real one


def test_settings_are_equal_for_one_broker_and_never_for_two() -> None:
    one, other = MemoryBroker(), MemoryBroker()

    assert one.settings == one.settings
    assert len({one.settings, one.settings, other.settings}) == 2


def test_lanes_to_one_broker_share_a_connection_and_those_to_two_do_not() -> None:
    one, other = MemoryBroker(), MemoryBroker()
    with AckPool() as pool:
        for broker in (one, one, other):
            pool.lane(broker.publisher(), name="lane")

        assert [each["lanes"] for each in pool.statistics()["brokers"]] == [2, 1]


def test_envelopes_are_sent_and_retried_as_for_a_real_broker() -> None:
    pool = PoolSettings(ack_timeout=2, delivery_timeout=20)

    jetstream = JetStreamPublisher(JetStreamSettings(pool=pool))
    kafka = KafkaPublisher(KafkaSettings(pool=pool))

    for real, like in (
        (jetstream, MemoryBroker(pool=pool)),
        (kafka, MemoryBroker("kafka", pool=pool)),
    ):
        assert like.publisher().policy == real.policy
        assert like.publisher().broker == real.broker


def test_a_broker_is_like_one_of_two() -> None:
    with pytest.raises(ValueError, match=r"^like is 'rabbit': give 'jetstream' or 'kafka'$"):
        MemoryBroker("rabbit")  # type: ignore[arg-type]


# Faults


@each_way
def test_a_refusal_concerns_the_envelopes_it_is_for(like: str) -> None:
    broker = _broker(like)
    broker.refuses = _refuse(NO, "e-0", "e-7", "e-8", "e-19")

    results = publish(broker.settings, *envelopes(20, "orders", aggregates=3))

    rejected = {each for each, result in results.items() if result.outcome is Outcome.REJECTED}
    assert rejected == {"e-0", "e-7", "e-8", "e-19"}
    assert {results[each].code for each in rejected} == {400}
    assert sorted(_ids(broker.stored)) == sorted(set(results) - rejected)


def test_nothing_of_a_batch_is_stored_from_a_refused_message_on() -> None:
    broker = MemoryBroker()
    broker.refuses = _refuse(NO, "e-5")
    with opened(broker.settings) as (pool, lane):
        results = settle(lane, envelopes(10, "orders", aggregates=None))

        assert broker_of(pool)["batches"] == 2
    attempts = [results[f"e-{n}"].attempts for n in range(10)]
    assert attempts == [1] * 6 + [2] * 4
    assert _ids(broker.stored) == [f"e-{n}" for n in range(10) if n != 5]


def test_a_long_batch_is_acknowledged_before_it_ends() -> None:
    broker = MemoryBroker()
    with opened(broker.settings) as (pool, lane):
        lane.submit(envelopes(20_000, "orders"))
        results = lane.flush()

        assert broker_of(pool)["batches"] < 20
        assert broker_of(pool)["retries"] == 0
    assert {result.outcome for result in results} == {Outcome.STORED}
    assert len(broker.stored) == 20_000


def test_a_refusal_that_concerns_everything_tells_the_lane_to_stop() -> None:
    broker = MemoryBroker()
    broker.refuses = lambda envelope: STOP
    with opened(broker.settings) as (_, lane):
        result = settle(lane, [Envelope("orders", b"", "e-0")])["e-0"]

        assert lane.stop_reason is not None
    assert result.outcome is Outcome.REJECTED
    assert result.reason == "the stream is gone"


def test_an_error_in_the_function_that_refuses_ends_the_wait_for_results() -> None:
    broker = MemoryBroker()

    def refuses(envelope: Envelope) -> None:
        raise AssertionError(f"{envelope.event_id} was not expected")

    broker.refuses = refuses
    with opened(broker.settings) as (_, lane):
        lane.submit([Envelope("orders", b"", "e-0")])
        with pytest.raises(PoolClosedError, match="e-0 was not expected"):
            lane.flush()


def test_like_kafka_an_answer_does_not_come_while_the_broker_is_down() -> None:
    broker = MemoryBroker("kafka", pool=PoolSettings(ack_timeout=0.05, delivery_timeout=1.2))
    broker.loses_answers = 1.0
    with opened(broker.settings) as (_, lane):
        lane.submit([Envelope("orders", b"", "e-0")])
        until(lambda: broker.stored)
        broker.go_down()
        broker.loses_answers = 0.0
        (result,) = lane.flush()

    assert result.outcome is Outcome.UNKNOWN
    assert "the broker is down" in str(result.reason)


def test_like_kafka_a_refusal_for_now_holds_up_its_partition_only() -> None:
    broker = MemoryBroker("kafka", partitions=2)
    batch = [Envelope("orders", b"", f"e-{n}", partition=n % 2) for n in range(6)]
    broker.refuses = _refuse(LATER, "e-0")
    with opened(broker.settings) as (_, lane):
        lane.submit(batch)
        until(lambda: lane.unsettled == 3)
        assert _ids(broker.stored) == ["e-1", "e-3", "e-5"]

        broker.refuses = lambda envelope: None
        lane.flush()

    assert _ids(broker.stored) == ["e-1", "e-3", "e-5", "e-0", "e-2", "e-4"]


@each_way
def test_answers_are_held_back_until_the_delay_is_over(like: str) -> None:
    broker = _broker(like)
    broker.delay = math.inf
    with opened(broker.settings) as (_, lane):
        lane.submit(envelopes(20, "orders"))
        until(lambda: len(broker.stored) == 20)
        assert lane.unsettled == 20

        broker.delay = 0.05
        results = lane.flush()

    assert {result.outcome for result in results} == {Outcome.STORED}
    assert min(result.ack_seconds for result in results) >= 0.05
    assert {result.attempts for result in results} == {1}


def test_answers_on_a_connection_that_is_reset_never_arrive() -> None:
    broker = MemoryBroker(batches=False)
    broker.delay = math.inf
    with opened(broker.settings) as (_, lane):
        lane.submit(envelopes(20, "orders", aggregates=None))
        until(lambda: len(broker.stored) == 20)
        broker.reset()
        broker.delay = 0
        results = lane.flush()

    assert {result.duplicate for result in results} == {True}
    assert {result.attempts for result in results} == {2}


def test_like_kafka_a_reset_ends_the_wait_for_an_answer() -> None:
    broker = MemoryBroker("kafka", pool=PoolSettings(ack_timeout=50))
    broker.loses_requests = 1.0
    with opened(broker.settings) as (_, lane):
        lane.submit(envelopes(20, "orders"))
        until(lambda: broker.lost_requests)
        broker.loses_requests = 0.0
        broker.reset()
        results = lane.flush(timeout=20)

    assert {result.outcome for result in results} == {Outcome.STORED}


@each_way
def test_messages_that_never_reach_it_are_not_stored_and_unknown(like: str) -> None:
    broker = _broker(like, QUICK)
    broker.loses_requests = 1.0

    results = publish(broker.settings, *envelopes(20, "orders"))

    assert {result.outcome for result in results.values()} == {Outcome.UNKNOWN}
    assert "no a" in str(results["e-0"].reason)
    assert broker.stored == []


@each_way
def test_lost_messages_and_answers_are_retried_until_all_is_stored_once(like: str) -> None:
    broker = _broker(like, PoolSettings(ack_timeout=0.05))
    broker.loses_requests, broker.loses_answers = 0.2, 0.5

    results = publish(broker.settings, *envelopes(60, "orders", aggregates=30))

    assert {result.outcome for result in results.values()} == {Outcome.STORED}
    assert sorted(_ids(broker.stored)) == sorted(results)
    for aggregate in range(30):
        of_it = [m.event_id for m in broker.stored if m.aggregate_id == f"a-{aggregate}"]
        assert of_it == [f"e-{aggregate}", f"e-{aggregate + 30}"]
    assert broker.lost_requests > 5
    assert broker.lost_answers > 0  # a batch has few


def _whose_answer_was_lost(seed: int) -> set[str]:
    broker = MemoryBroker(seed=seed, batches=False, pool=PoolSettings(ack_timeout=0.05))
    broker.loses_answers = 0.2
    results: dict[str, PublishResult] = {}
    with opened(broker.settings) as (_, lane):
        for part in range(2):
            results |= settle(lane, envelopes(40, "orders", first=40 * part, aggregates=None))
    return {event_id for event_id, result in results.items() if result.duplicate}


def test_the_same_seed_loses_the_same_answers_and_another_others() -> None:
    lost = _whose_answer_was_lost(seed=1)

    assert 5 < len(lost) < 40
    assert _whose_answer_was_lost(seed=1) == lost
    assert _whose_answer_was_lost(seed=2) != lost


def test_a_broker_that_is_down_takes_no_lanes_until_it_comes_up() -> None:
    broker = MemoryBroker()
    broker.go_down()
    with AckPool() as pool:
        with pytest.raises(ConnectError, match=r"down: call its come_up\(\) first"):
            pool.lane(broker.publisher(), name="lane")

        broker.come_up()
        lane = pool.lane(broker.publisher(), name="lane")
        assert settle(lane, envelopes(1, "orders"))["e-0"].outcome is Outcome.STORED


@each_way
def test_a_broker_that_goes_down_stores_nothing_and_everything_once_when_it_is_back(
    like: str,
) -> None:
    broker = _broker(like)
    with opened(broker.settings) as (pool, lane):
        settle(lane, envelopes(10, "orders"))
        broker.go_down()
        lane.submit(envelopes(10, "orders", first=10))
        until(lambda: broker_of(pool)["reconnects"] == 1)
        assert (lane.unsettled, len(broker.stored)) == (10, 10)

        broker.come_up()
        results = lane.flush()

    assert {result.outcome for result in results} == {Outcome.STORED}
    assert sorted(_ids(broker.stored)) == sorted(f"e-{n}" for n in range(20))


@pytest.mark.parametrize("batches", [True, False])
def test_nothing_is_stored_after_the_moment_at_which_it_goes_down(batches: bool) -> None:
    broker = MemoryBroker(batches=batches)

    def go_down(envelope: Envelope) -> None:
        if envelope.event_id == "e-3":
            broker.go_down()

    broker.refuses = go_down
    with opened(broker.settings) as (pool, lane):
        lane.submit(envelopes(10, "orders", aggregates=None))
        until(lambda: broker_of(pool)["reconnects"] == 1)

        assert _ids(broker.stored) == ["e-0", "e-1", "e-2", "e-3"]


@each_way
def test_a_broker_that_stays_down_leaves_envelopes_unknown(like: str) -> None:
    broker = _broker(like, QUICK)
    with opened(broker.settings) as (_, lane):
        settle(lane, envelopes(1, "orders"))
        broker.go_down()
        results = settle(lane, envelopes(5, "orders", first=1))

    assert {result.outcome for result in results.values()} == {Outcome.UNKNOWN}
    assert len(broker.stored) == 1


@each_way
def test_publishers_that_fail_leave_everything_unknown(like: str) -> None:
    broker = _broker(like)
    broker.delay = math.inf
    with opened(broker.settings) as (_, lane):
        lane.submit(envelopes(5, "orders"))
        until(lambda: broker.stored)

        broker.fail("the producer was fenced")
        results = lane.flush() + list(settle(lane, envelopes(5, "orders", first=5)).values())

        assert lane.stop_reason is not None
    assert {result.outcome for result in results} == {Outcome.UNKNOWN}
    assert {result.reason for result in results} == {"the producer was fenced"}


@pytest.mark.parametrize("partitions", [0, -1, "4", None])
def test_partitions_must_be_a_positive_number(partitions: Any) -> None:
    with pytest.raises(ValueError, match="give 1 or more"):
        MemoryBroker("kafka", partitions=partitions)


@pytest.mark.parametrize("seconds", [-1, math.nan, "1", None])
def test_delay_must_be_seconds(seconds: Any) -> None:
    with pytest.raises(ValueError, match="give seconds, 0 or more"):
        MemoryBroker().delay = seconds


@pytest.mark.parametrize("options", ["x", 1, (), {}])
def test_options_of_another_type_are_rejected(options: Any) -> None:
    broker = MemoryBroker()
    with AckPool(broker.pool) as pool:
        lane = pool.lane(broker.publisher(), name="lane")
        lane.submit([Envelope("orders", b"", "e", options=options)])
        (result,) = lane.flush()

    assert result.outcome is Outcome.REJECTED
    assert "give PublishOptions" in str(result.reason)

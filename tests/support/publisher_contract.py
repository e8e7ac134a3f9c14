"""What every publisher promises, whatever its broker does, as tests that each publisher passes.

A test class takes the promises that apply to its broker as base classes, and has a fixture
`subject` that says how that broker is disturbed and what it has stored.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from bytewax_jetstream.envelope import Envelope, Outcome, PublishResult
from bytewax_jetstream.pool.ack_pool import AckPool
from bytewax_jetstream.settings import BrokerSettings
from bytewax_jetstream.testing.memory import Stored
from tests.support.lanes import broker_of, opened, publish, settle
from tests.support.streams import envelopes
from tests.support.waiting import PATIENCE, until

__all__ = ["Happened", "KnowsEventIds", "PublisherContract", "Subject", "has_retried"]

Happened = Callable[[AckPool], bool]
"""Whether the broker has done to a pool's messages what it was told to do."""

CLOSE_SECONDS = 20.0
"""What the pool gives its publishers to close is 5 s; this machine may be busy."""


class Subject(ABC):
    """A broker with an empty topic, and what a test can do to it."""

    topic: str
    receipt: tuple[str, ...] = ("stream", "sequence")
    """The fields of a result that say where the message of a single is stored."""
    receipt_of_many: tuple[str, ...] = receipt
    """The same for messages that are submitted together."""

    @abstractmethod
    def settings(
        self, *, ack_timeout: float = 1.0, delivery_timeout: float = 30.0
    ) -> BrokerSettings:
        """How a pool reaches it."""

    @abstractmethod
    def stored(self) -> list[Stored]:
        """What it has on the topic; an aggregate's messages in the order in which they lie."""

    @abstractmethod
    def too_large(self, event_id: str) -> Envelope:
        """An envelope that it refuses for good."""

    @abstractmethod
    def refusing_for_now(self) -> AbstractContextManager[Happened]:
        """It stores little or nothing until the end of the block, and says so or nothing."""

    @abstractmethod
    def silence(self) -> AbstractContextManager[Happened]:
        """It stores, and its answers are lost until the end of the block."""

    @abstractmethod
    def reset(self) -> None:
        """Every connection is reset, with what is on its way."""


def has_retried(pool: AckPool) -> bool:
    """For brokers whose retries are the pool's."""
    return int(broker_of(pool)["retries"]) > 0


class PublisherContract:
    """The promises of all publishers."""

    def test_a_stored_single_has_the_receipt_of_where_it_lies(self, subject: Subject) -> None:
        with opened(subject.settings()) as (_, lane):
            results = [settle(lane, [each])[each.event_id] for each in _batch(subject, 5)]

        _lie_where_they_say(results, subject, subject.receipt)
        _each_once_in_order(subject, 5)

    def test_envelopes_stored_together_have_receipts_of_where_they_lie(
        self, subject: Subject
    ) -> None:
        results = publish(subject.settings(), *_batch(subject, 50))

        _lie_where_they_say(list(results.values()), subject, subject.receipt_of_many)
        _each_once_in_order(subject, 50)

    def test_a_final_refusal_rejects_its_envelope_and_no_other(self, subject: Subject) -> None:
        batch = [*_batch(subject, 2), subject.too_large("large"), *_batch(subject, 2, first=2)]
        with opened(subject.settings()) as (_, lane):
            results = settle(lane, batch)

            assert lane.stop_reason is None
        large = results.pop("large")
        assert large.outcome is Outcome.REJECTED
        assert large.reason
        assert large.code is not None
        assert large.envelope == batch[2]
        assert {result.outcome for result in results.values()} == {Outcome.STORED}
        _each_once_in_order(subject, 4)

    def test_envelopes_refused_for_now_are_stored_when_the_broker_takes_them(
        self, subject: Subject
    ) -> None:
        with opened(subject.settings()) as (pool, lane):
            settle(lane, _batch(subject, 10))
            with subject.refusing_for_now() as happened:
                lane.submit(_batch(subject, 30, first=10))
                until(lambda: happened(pool))
                assert lane.unsettled
            results = lane.flush()

        assert {result.outcome for result in results} == {Outcome.STORED}
        _each_once_in_order(subject, 40)

    def test_an_aggregate_keeps_its_order_through_refusals_and_resets(
        self, subject: Subject
    ) -> None:
        with opened(subject.settings()) as (pool, lane):
            settle(lane, _batch(subject, 10))
            for part in range(3):
                with subject.refusing_for_now() as happened:
                    lane.submit(_batch(subject, 300, first=10 + 300 * part))
                    until(lambda: happened(pool))  # called here only
                subject.reset()
            results = lane.flush()

        assert {result.outcome for result in results} == {Outcome.STORED}
        assert len(results) == 900
        _each_once_in_order(subject, 910)

    def test_a_reset_with_messages_in_flight_loses_and_repeats_nothing(
        self, subject: Subject
    ) -> None:
        # So long that nothing but the reset makes anybody try again, and well within the time for
        # which a stream remembers ids.
        with opened(subject.settings(ack_timeout=PATIENCE / 2, delivery_timeout=4 * PATIENCE)) as (
            _,
            lane,
        ):
            settle(lane, _batch(subject, 10))
            with subject.silence():
                lane.submit(_batch(subject, 200, first=10))
                until(lambda: len(subject.stored()) > 10)
                assert lane.unsettled
            subject.reset()
            results = lane.flush()

        assert {result.outcome for result in results} == {Outcome.STORED}
        assert max(result.ack_seconds for result in results) < PATIENCE / 2
        _each_once_in_order(subject, 210)

    def test_silence_beyond_the_ack_timeout_is_retried_and_stored_once(
        self, subject: Subject
    ) -> None:
        with opened(subject.settings(ack_timeout=0.3)) as (pool, lane):
            settle(lane, _batch(subject, 10))
            with subject.silence() as happened:
                lane.submit(_batch(subject, 50, first=10))
                until(lambda: happened(pool))
                assert lane.unsettled == 50
            results = lane.flush()

        assert {result.outcome for result in results} == {Outcome.STORED}
        _each_once_in_order(subject, 60)

    def test_silence_until_the_delivery_timeout_is_unknown_with_the_envelope(
        self, subject: Subject
    ) -> None:
        batch = _batch(subject, 20, first=10)
        with opened(subject.settings(ack_timeout=0.3, delivery_timeout=2)) as (_, lane):
            settle(lane, _batch(subject, 10))
            with subject.silence():
                results = settle(lane, batch)

            assert lane.stop_reason is not None
        for envelope in batch:
            result = results[envelope.event_id]
            assert result.outcome is Outcome.UNKNOWN
            assert result.envelope == envelope
            assert result.reason
            assert result.ack_seconds < 20

    def test_closing_with_messages_in_flight_is_bounded_and_leaves_them_unknown(
        self, subject: Subject
    ) -> None:
        batch = _batch(subject, 50, first=10)
        with opened(subject.settings()) as (pool, lane):
            settle(lane, _batch(subject, 10))
            with subject.silence():
                lane.submit(batch)
                until(lambda: len(subject.stored()) > 10)
                began = time.monotonic()

                pool.close(0.0)

                assert time.monotonic() - began < CLOSE_SECONDS
            results = lane.collect()
        assert [result.outcome for result in results] == [Outcome.UNKNOWN] * 50
        assert {result.event_id for result in results} == {each.event_id for each in batch}


class KnowsEventIds:
    """What brokers promise that know event ids."""

    def test_a_known_event_id_is_a_duplicate_and_stored_once(self, subject: Subject) -> None:
        batch = _batch(subject, 20)
        publish(subject.settings(), *batch)

        with opened(subject.settings()) as (_, lane):
            alone = settle(lane, batch[7:8])["e-7"]
            together = settle(lane, batch)

        assert alone.outcome is Outcome.STORED
        assert alone.duplicate is True
        assert alone.sequence == 8
        assert {result.outcome for result in together.values()} == {Outcome.STORED}
        # Of a batch, the broker does not say which of its messages it had.
        assert {result.duplicate for result in together.values()} <= {True, None}
        _each_once_in_order(subject, 20)


def _batch(subject: Subject, count: int, *, first: int = 0) -> list[Envelope]:
    return envelopes(count, subject.topic, first=first, aggregates=3)


def _lie_where_they_say(
    results: Sequence[PublishResult], subject: Subject, receipt: tuple[str, ...]
) -> None:
    found = {message.event_id: message for message in subject.stored()}
    for result in results:
        message = found[result.event_id]
        assert result.outcome is Outcome.STORED
        for field in ("stream", "partition", "sequence"):
            said = getattr(message, field) if field in receipt else None
            assert getattr(result, field) == said, f"{field} of {result.event_id}"


def _each_once_in_order(subject: Subject, count: int) -> None:
    """Envelopes 0 to `count` are stored once each, every aggregate's in rising order."""
    found = subject.stored()
    assert sorted(message.event_id for message in found) == sorted(f"e-{n}" for n in range(count))
    by_aggregate: dict[str | None, list[int]] = {}
    for message in found:
        by_aggregate.setdefault(message.aggregate_id, []).append(int(message.payload or b""))
    for numbers in by_aggregate.values():
        assert numbers == sorted(numbers)

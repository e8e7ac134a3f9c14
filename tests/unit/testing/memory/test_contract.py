"""The broker in memory keeps the promises of every publisher, like JetStream and like Kafka."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest

from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.pool.ack_pool import AckPool
from bytewax_jetstream.publishing import Refusal, Verdict
from bytewax_jetstream.settings import BrokerSettings, PoolSettings
from bytewax_jetstream.testing.memory import MemoryBroker, Stored
from tests.support.publisher_contract import (
    Happened,
    KnowsEventIds,
    PublisherContract,
    Subject,
    has_retried,
)

TOO_LARGE = Refusal(Verdict.REJECT, "more than 1,000 bytes", 10054)
FULL = Refusal(Verdict.RETRY, "no room", 10077)


class _InMemory(Subject):
    topic = "orders"

    def __init__(self, like: Literal["jetstream", "kafka"], *, batches: bool = True) -> None:
        self.broker = MemoryBroker(like, batches=batches)
        self._full = False
        self._refused = 0
        self.broker.refuses = self._refuses
        if like == "kafka":
            self.receipt = self.receipt_of_many = ("partition", "sequence")
        elif batches:
            self.receipt_of_many = ("stream",)

    def settings(
        self, *, ack_timeout: float = 1.0, delivery_timeout: float = 30.0
    ) -> BrokerSettings:
        self.broker.pool = PoolSettings(ack_timeout=ack_timeout, delivery_timeout=delivery_timeout)
        return self.broker.settings

    def stored(self) -> list[Stored]:
        return self.broker.stored_on(self.topic)

    def too_large(self, event_id: str) -> Envelope:
        return Envelope(self.topic, b"." * 1_001, event_id)

    @contextmanager
    def refusing_for_now(self) -> Iterator[Happened]:
        before, self._full = self._refused, True
        yield lambda pool: self._refused > before
        self._full = False

    @contextmanager
    def silence(self) -> Iterator[Happened]:
        self.broker.loses_answers = 1.0
        yield has_retried if self.broker.like == "jetstream" else self._was_asked_twice
        self.broker.loses_answers = 0.0

    def reset(self) -> None:
        self.broker.reset()

    def _refuses(self, envelope: Envelope) -> Refusal | None:
        if len(envelope.payload or b"") > 1_000:
            return TOO_LARGE
        self._refused += self._full
        return FULL if self._full else None

    def _was_asked_twice(self, pool: AckPool) -> bool:
        return self.broker.lost_answers > len(self.stored())


class TestLikeJetStreamInBatches(PublisherContract, KnowsEventIds):
    @pytest.fixture
    def subject(self) -> Subject:
        return _InMemory("jetstream")


class TestLikeJetStreamAsSingles(PublisherContract, KnowsEventIds):
    @pytest.fixture
    def subject(self) -> Subject:
        return _InMemory("jetstream", batches=False)


class TestLikeKafka(PublisherContract):  # which knows no event ids
    @pytest.fixture
    def subject(self) -> Subject:
        return _InMemory("kafka")

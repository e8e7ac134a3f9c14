"""The JetStream publisher keeps the promises of every publisher, in batches and as singles."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.settings import BrokerSettings
from bytewax_jetstream.testing import NatsServer
from bytewax_jetstream.testing.memory import Stored
from tests.support import streams
from tests.support.lanes import jetstream
from tests.support.proxy import Proxy
from tests.support.publisher_contract import (
    Happened,
    KnowsEventIds,
    PublisherContract,
    Subject,
    has_retried,
)


class _Stream(Subject):
    """A stream of its own on the server for all tests, behind a proxy."""

    def __init__(self, server: NatsServer, proxy: Proxy, name: str, *, batches: bool) -> None:
        self.topic = f"{name}.orders"
        if batches:
            self.receipt_of_many = ("stream",)
        self._url = server.url
        self._proxy = proxy
        self._name = name
        streams.make_stream(
            server.url, name, f"{name}.>", allow_batched=batches, max_msg_size=1_000, discard="new"
        )

    def settings(
        self, *, ack_timeout: float = 1.0, delivery_timeout: float = 30.0
    ) -> BrokerSettings:
        return jetstream(
            self._proxy.url, ack_timeout=ack_timeout, delivery_timeout=delivery_timeout
        )

    def stored(self) -> list[Stored]:
        return [
            Stored(
                topic=message.subject,
                payload=message.payload,
                event_id=message.headers["Nats-Msg-Id"],
                aggregate_id=message.headers.get("Aggregate-Id"),
                event_type=message.headers.get("Event-Type"),
                headers=message.headers,
                stream=self._name,
                partition=None,
                sequence=message.sequence,
            )
            for message in streams.stored(self._url, self._name)
        ]

    def too_large(self, event_id: str) -> Envelope:
        return Envelope(self.topic, b"." * 1_001, event_id)

    @contextmanager
    def refusing_for_now(self) -> Iterator[Happened]:
        """A stream that is full, and then has room again."""
        full = max(1, len(self.stored()))
        streams.change_stream(self._url, self._name, max_msgs=full)
        yield has_retried
        streams.change_stream(self._url, self._name, max_msgs=-1)

    @contextmanager
    def silence(self) -> Iterator[Happened]:
        self._proxy.answers.loses = lambda frame: frame.startswith(b"MSG _INBOX")
        yield has_retried
        self._proxy.answers.loses = lambda frame: False

    def reset(self) -> None:
        self._proxy.cut_all()


class TestBatches(PublisherContract, KnowsEventIds):
    @pytest.fixture
    def subject(self, nats_server: NatsServer, proxy: Proxy, names: streams.Names) -> Subject:
        return _Stream(nats_server, proxy, names(), batches=True)


class TestSingles(PublisherContract, KnowsEventIds):
    @pytest.fixture
    def subject(self, nats_server: NatsServer, proxy: Proxy, names: streams.Names) -> Subject:
        return _Stream(nats_server, proxy, names(), batches=False)

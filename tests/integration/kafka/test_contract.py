"""The Kafka publisher keeps the promises of every publisher that Kafka can keep."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.pool.ack_pool import AckPool
from bytewax_jetstream.settings import BrokerSettings
from bytewax_jetstream.testing import KafkaServer
from bytewax_jetstream.testing.memory import Stored
from tests.support.kafka import new_topic, records
from tests.support.lanes import kafka
from tests.support.proxy import Proxy
from tests.support.publisher_contract import Happened, PublisherContract, Subject


class _Topic(Subject):
    """A topic of its own, on a broker behind a proxy."""

    receipt = receipt_of_many = ("partition", "sequence")

    def __init__(self, server: KafkaServer, proxy: Proxy) -> None:
        self.topic = new_topic(server.bootstrap, max_message_bytes="2000")
        self._server = server
        self._proxy = proxy

    def settings(
        self, *, ack_timeout: float = 1.0, delivery_timeout: float = 30.0
    ) -> BrokerSettings:
        return kafka(
            f"127.0.0.1:{self._proxy.port}",
            topics=(self.topic,),
            batch_bytes=2_000,
            ack_timeout=ack_timeout,
            delivery_timeout=delivery_timeout,
        )

    def stored(self) -> list[Stored]:
        return [
            Stored(
                topic=self.topic,
                payload=record.payload,
                event_id=record.headers["Event-Id"].decode(),
                aggregate_id=None if record.key is None else record.key.decode(),
                event_type=None,
                headers={},
                stream=None,
                partition=record.partition,
                sequence=record.offset,
            )
            for record in records(self._server.bootstrap, self.topic)
        ]

    def too_large(self, event_id: str) -> Envelope:
        """One that the broker refuses: its library would let it go."""
        return Envelope(self.topic, b"." * 3_000, event_id)

    @contextmanager
    def refusing_for_now(self) -> Iterator[Happened]:
        """A broker that is paused for longer than an attempt: a single one refuses nothing that it
        would take later.
        """
        self._server.pause()
        try:
            yield self._reconnects()
        finally:
            self._server.resume()

    @contextmanager
    def silence(self) -> Iterator[Happened]:
        self._proxy.answers.loses = lambda piece: True
        try:
            yield self._reconnects()
        finally:
            # The rest of an answer whose beginning was lost must not arrive.
            self._proxy.cut_all()
            self._proxy.answers.loses = lambda piece: False

    def reset(self) -> None:
        self._proxy.cut_all()

    def _reconnects(self) -> Happened:
        """Whether the library has given an attempt up: then it makes another connection."""
        before = self._proxy.connections

        def happened(pool: AckPool) -> bool:
            return self._proxy.connections > before

        return happened


@pytest.fixture(scope="module")
def proxied() -> Iterator[tuple[KafkaServer, Proxy]]:
    """A broker that sends its clients back to the proxy before it."""
    with (
        Proxy("kafka://127.0.0.1:1", opaque=True) as proxy,
        KafkaServer(proxied_as=proxy.port) as server,
    ):
        proxy.aim(f"kafka://{server.proxied}")
        yield server, proxy


class TestKafka(PublisherContract):  # which knows no event ids: a replay is stored again
    @pytest.fixture
    def subject(self, proxied: tuple[KafkaServer, Proxy]) -> Subject:
        return _Topic(*proxied)

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bytewax_jetstream.testing import KafkaServer, KafkaUnavailableError, NatsServer

pytest.register_assert_rewrite("tests.support.publisher_contract")


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer]:
    """One server for all tests, never killed or paused; each test uses its own stream names."""
    with NatsServer() as server:
        yield server


@pytest.fixture
def own_nats_server() -> Iterator[NatsServer]:
    """A server of the test's own, to be killed, paused and restarted."""
    with NatsServer() as server:
        yield server


@pytest.fixture(scope="session")
def kafka_address() -> Iterator[str]:
    """One Kafka broker for all tests, never killed or paused; each test uses its own topics."""
    if given := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield given
        return
    with _kafka_server() as server:
        yield server.bootstrap


@pytest.fixture
def own_kafka_server() -> Iterator[KafkaServer]:
    """A broker of the test's own, to be killed, paused and restarted."""
    with _kafka_server() as server:
        yield server


@contextmanager
def _kafka_server() -> Iterator[KafkaServer]:
    server = KafkaServer()
    try:
        server.start()
    except KafkaUnavailableError as error:
        if os.environ.get("REQUIRE_BROKERS") == "1":
            raise
        pytest.skip(str(error))
    with server:
        yield server

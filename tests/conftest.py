from collections.abc import Iterator

import pytest

from bytewax_jetstream.testing import NatsServer


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer]:
    """A server for all tests, never to be killed or paused: each test uses stream names of its own."""
    with NatsServer() as server:
        yield server


@pytest.fixture
def own_nats_server() -> Iterator[NatsServer]:
    """A server of the test's own, to be killed, paused and restarted."""
    with NatsServer() as server:
        yield server

import pytest

from bytewax_jetstream.testing import NatsServer


@pytest.fixture
def url(nats_server: NatsServer) -> str:
    """Where the server for all tests is."""
    return nats_server.url

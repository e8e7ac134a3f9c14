from collections.abc import Iterator
from functools import partial
from itertools import count

import pytest

from bytewax_jetstream.testing import NatsCluster, NatsServer
from tests.support.proxy import Proxy
from tests.support.streams import Names, remake_stream

_numbers = count(1)


@pytest.fixture
def names() -> Names:
    """Names for streams that no other test uses."""
    return lambda: f"S{next(_numbers)}"


@pytest.fixture(params=[False, True], ids=["singles", "batches"])
def batched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Runs the tests of a module twice: with streams that take batches, and with streams that do
    not. The value says which.
    """
    monkeypatch.setattr(
        request.module, "make_stream", partial(remake_stream, allow_batched=request.param)
    )
    return bool(request.param)


@pytest.fixture
def proxy(nats_server: NatsServer) -> Iterator[Proxy]:
    """A proxy before the server for all tests."""
    with Proxy(nats_server.url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def cluster() -> Iterator[NatsCluster]:
    """Three servers for all tests of a module."""
    with NatsCluster() as cluster:
        yield cluster


@pytest.fixture
def own_cluster() -> Iterator[NatsCluster]:
    """Three servers of the test's own, to be killed and paused."""
    with NatsCluster() as cluster:
        yield cluster

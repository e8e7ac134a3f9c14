"""The links that the proxy makes."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.proxy import Proxy
from tests.support.waiting import until


class _Sink:
    """A server that reads everything, and says how much that was."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.read = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        connection, _ = self._listening.accept()
        with connection, contextlib.suppress(ConnectionResetError):  # at the proxy's end
            while piece := connection.recv(65_536):
                self.read += len(piece)

    def close(self) -> None:
        self._listening.close()


@pytest.fixture
def sink() -> Iterator[_Sink]:
    made = _Sink()
    yield made
    made.close()


def test_link_carries_no_more_than_its_rate_and_loses_nothing(sink: _Sink) -> None:
    with Proxy(f"any://127.0.0.1:{sink.port}", opaque=True, rate=200_000) as proxy:
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            client.sendall(bytes(100_000))
            until(lambda: sink.read == 100_000)

    assert time.monotonic() - began >= 0.45


def test_paused_link_passes_what_came_meanwhile_when_it_goes_on(sink: _Sink) -> None:
    with (
        Proxy(f"any://127.0.0.1:{sink.port}", opaque=True) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port)) as client,
    ):
        proxy.requests.paused = True
        client.sendall(bytes(10))
        until(lambda: proxy.requests.frames)
        assert sink.read == 0
        proxy.requests.paused = False
        until(lambda: sink.read == 10)

"""A peer that speaks enough of the NATS protocol for a client to connect, on one event loop."""

import asyncio
import json
from collections.abc import Callable
from typing import Any, Self

__all__ = ["Peer", "until_true"]


async def until_true(condition: Callable[[], object]) -> None:
    """Wait; the caller sets the deadline."""
    while not condition():  # noqa: ASYNC110  # what it waits for sets no event
        await asyncio.sleep(0.001)


class Peer:
    """Answers pings as a server does, and keeps all it was sent.

    :arg mute: It accepts connections, and says nothing.
    :arg user_limit: The payload limit of the user, which a server says after its first PONG.
    :arg on_data: Called with what each read brought; returns whether the connection goes on.
    """

    def __init__(
        self,
        pong: bool = True,
        on_data: Callable[[bytes], bool] = lambda data: True,
        mute: bool = False,
        user_limit: int | None = None,
        **info: Any,
    ) -> None:
        self.received = bytearray()
        self.connections = 0
        self.pong = pong
        self.reading = asyncio.Event()
        """Cleared, it reads nothing more."""
        self.reading.set()
        self.piece = 65_536
        """Most bytes of one read."""
        self.info = {"server_id": "PEER", "headers": True, "max_payload": 4096, **info}
        self.writer: asyncio.StreamWriter | None = None
        self._on_data = on_data
        self._mute = mute
        self._user_limit = user_limit
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=4096)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.reading.set()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writer = writer
        self._writers.add(writer)
        try:
            if not self._mute:
                self.send_info()
            while data := await reader.read(self.piece):
                self.received += data
                if self._mute:
                    continue
                if not self._on_data(data):
                    break
                if self.pong:
                    writer.write(b"PONG\r\n" * data.count(b"PING\r\n"))
                if self._user_limit is not None and b"CONNECT " in data:
                    self.send_info(max_payload=self._user_limit)
                await self.reading.wait()
        except OSError:
            pass
        finally:
            writer.transport.abort()
            self._writers.discard(writer)

    def send(self, data: bytes) -> None:
        assert self.writer is not None
        self.writer.write(data)

    def send_info(self, **info: Any) -> None:
        self.send(b"INFO " + json.dumps({**self.info, **info}).encode() + b"\r\n")

    def hang_up(self) -> None:
        """Close the connection that came last."""
        assert self.writer is not None
        self.writer.close()

    async def until_received(self, data: bytes) -> None:
        await until_true(lambda: data in self.received)

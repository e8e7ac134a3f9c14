"""A TCP proxy before a nats-server that loses, delays and cuts on demand, and counts what passes.

It knows where a NATS frame ends, so a lost message leaves the protocol intact: TCP loses no packet
by itself, in practice an answer is lost, or the connection.
"""

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Self
from urllib.parse import urlsplit

from tests.support.waiting import PATIENCE

__all__ = ["Direction", "Proxy"]

NARROW = 65_536
"""Bytes that a link with a rate has on their way; loopback would take megabytes at once."""
TICK = 0.02
"""Seconds for which a link with a rate sends in one piece."""


class Direction:
    """One way through the proxy, and what is done to it from now on; attributes may be set at any
    time.
    """

    def __init__(self) -> None:
        self.loses: Callable[[bytes], bool] = lambda frame: False
        """Which frames vanish."""
        self.cuts: Callable[[bytes], bool] = lambda frame: False
        """The frame in whose middle the connection is cut; then no other is."""
        self.delay = 0.0
        """Seconds before each frame goes on."""
        self.piece = 0
        """Bytes that go on at once; 0 for all."""
        self.rate = 0
        """Bytes a second that all connections share; 0 for no limit."""
        self.paused = False
        """Whether nothing passes, on no connection; what came meanwhile passes later."""
        self.changes: Callable[[bytes], bytes] = lambda frame: frame
        """What becomes of each frame."""
        self.lost = 0
        self.cut = 0
        self.frames: list[bytes] = []
        """The first line of each frame that came, lost ones included."""
        self._free_at = 0.0

    def pieces(self, frame: bytes) -> Iterator[bytes]:
        """The frame in the pieces in which it goes on."""
        size = self.piece or int(self.rate * TICK) or len(frame) or 1
        return (frame[start : start + size] for start in range(0, len(frame), size))

    async def room_for(self, piece: bytes) -> None:
        """Wait until the link has carried this piece, and those before it."""
        while self.paused:  # noqa: ASYNC110  # another thread sets it
            await asyncio.sleep(0.01)
        if self.rate:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + len(piece) / self.rate
            if self._free_at > now + TICK / 4:
                await asyncio.sleep(self._free_at - now)

    def messages_to(self, subject: bytes) -> int:
        """How many messages came whose subject begins with that."""
        return sum(_subject(line).startswith(subject) for line in self.frames)


class Proxy:
    """Use it as a context manager; `url` is what a client connects to.

    :arg target: URL of the server behind it.
    :arg opaque: What passes is not to be understood, being encrypted: every piece that arrives is a
    frame.
    :arg rate: Bytes a second that pass each way; 0 for no limit.
    """

    def __init__(self, target: str, *, opaque: bool = False, rate: int = 0) -> None:
        self.requests = Direction()
        """From the client to the server."""
        self.answers = Direction()
        """From the server to the client."""
        self.requests.rate = self.answers.rate = rate
        self.connections = 0
        self._opaque = opaque
        self._target = urlsplit(target)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy")
        self._listening = threading.Event()
        self._port = 0
        self._streams: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._frozen: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    def aim(self, target: str) -> None:
        """Send new connections to another server, which must know this proxy already."""
        self._target = urlsplit(target)

    def cut_all(self) -> None:
        """Reset every connection that stands, with whatever is on its way; returns when that is
        done.
        """
        done = threading.Event()
        self._loop.call_soon_threadsafe(self._cut_all)
        self._loop.call_soon_threadsafe(done.set)
        assert done.wait(PATIENCE), "the proxy does not cut"

    def freeze_all(self) -> None:
        """From now on nothing passes on the connections that stand, and neither side is told; new
        ones work.
        """
        self._loop.call_soon_threadsafe(self._freeze_all)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listening.wait(PATIENCE), "the proxy does not listen"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        listening = socket.create_server(("127.0.0.1", 0))
        if self.requests.rate:  # accepted sockets inherit it
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW)
        self._port = listening.getsockname()[1]
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, sock=listening))
        self._listening.set()
        self._loop.run_forever()
        self._turn()  # asyncio leaks what it has accepted when the server closes in the next moment
        server.close()
        self._turn()  # a connection that was just accepted gets its task
        self._cut_all()
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._turn()  # what was aborted is closed
        self._loop.close()

    def _turn(self) -> None:
        """Let everything happen that is due."""
        for _ in range(10):
            self._loop.run_until_complete(asyncio.sleep(0))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        try:
            server_reader, server_writer = await asyncio.open_connection(
                self._target.hostname, self._target.port
            )
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
            return
        both = {writer, server_writer}
        self._streams |= both
        ways = {
            asyncio.create_task(self._pass(reader, server_writer, self.requests)),
            asyncio.create_task(self._pass(server_reader, writer, self.answers)),
        }
        try:
            with contextlib.suppress(asyncio.CancelledError):  # at the proxy's end
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._streams -= both
            for each in both:
                each.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Direction
    ) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            async for line, frame in _pieces(reader) if self._opaque else _frames(reader):
                way.frames.append(line)
                if writer in self._frozen:
                    await asyncio.Event().wait()
                if way.loses(frame):
                    way.lost += 1
                    continue
                if way.cuts(frame):
                    way.cuts = lambda frame: False
                    way.cut += 1
                    writer.write(frame[: len(frame) // 2])
                    await writer.drain()
                    return
                if way.delay:
                    await asyncio.sleep(way.delay)
                for piece in way.pieces(way.changes(frame)):
                    await way.room_for(piece)
                    writer.write(piece)
                    await writer.drain()

    def _cut_all(self) -> None:
        for writer in self._streams:
            connection = writer.get_extra_info("socket")
            if connection.fileno() >= 0:  # or its other side has closed it meanwhile
                # Lingering for no time at all makes the close a reset.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()

    def _freeze_all(self) -> None:
        self._frozen |= self._streams


async def _frames(reader: asyncio.StreamReader) -> AsyncIterator[tuple[bytes, bytes]]:
    """Complete protocol frames, each with its first line."""
    while line := await reader.readline():
        words = line.split()
        if words and words[0] in (b"PUB", b"HPUB", b"MSG", b"HMSG"):
            yield line, line + await reader.readexactly(int(words[-1]) + 2)
        else:
            yield line, line


async def _pieces(reader: asyncio.StreamReader) -> AsyncIterator[tuple[bytes, bytes]]:
    while piece := await reader.read(65_536):
        yield piece, piece


def _subject(line: bytes) -> bytes:
    words = line.split()
    return words[1] if len(words) > 1 and words[0] in (b"PUB", b"HPUB", b"MSG", b"HMSG") else b""

"""The one connection all source partitions of a process share, for as long as one of them is open."""

import asyncio
import contextlib
import os
import threading
import time
from typing import Protocol

from ...errors import ConnectError, SourceError, StreamError
from ...loop_thread import LoopThread
from ...settings import JetStreamSettings
from ..connection import Connection, JetStreamApiError
from ..streams import ensure_streams

__all__ = ["Link", "lease", "release"]

SETUP_SECONDS = 30.0
"""For what is declared in the settings to be made or checked, after the connection stands."""
TICK_SECONDS = 0.5
CLOSE_SECONDS = 3.0


class Listener(Protocol):
    """What hears of the connection; always on the link's thread."""

    def hand_over(self) -> None:
        """All messages of one read were handled."""

    def end(self, reason: str) -> None:
        """The connection is lost."""

    def denied(self, message: str) -> None:
        """The server forbade something to somebody on this connection."""

    def check_silence(self, now: float) -> None:
        """Some time has passed."""


class Link:
    """A connection on a thread of its own, apart from the publisher's: neither holds the other up."""

    def __init__(self, settings: JetStreamSettings) -> None:
        self.settings = settings
        self.listeners: set[Listener] = set()
        self.loop = LoopThread("bytewax_jetstream-source")
        self.connection = Connection(
            settings,
            on_up=lambda: None,
            on_down=self._down,
            on_read=self._read,
            on_denied=self._denied,
        )
        self.users = 0

    def __repr__(self) -> str:
        state = "up" if self.connection.is_up else "down"
        return f"<Link {', '.join(self.settings.servers)}, {state}, {self.users} users>"

    def open(self) -> None:
        """Connect; make or check the streams the settings declare, so that a flow may read what
        another will write.

        :raises ConnectError: when there is no connection within the connect timeout.
        :raises StreamError: when a declared stream is missing or too weak.
        """
        self.loop.start()
        seconds = self.settings.connect_timeout + SETUP_SECONDS
        try:
            self.loop.run(self._open(), seconds)
        except BaseException as error:
            self.close()
            if isinstance(error, TimeoutError):
                servers = ", ".join(self.settings.servers)
                raise ConnectError(
                    f"the streams at {servers} were not ready within {seconds:g} s: "
                    "check the server's log",
                    broker="jetstream",
                    servers=self.settings.servers,
                    seconds=seconds,
                ) from None
            raise

    def close(self) -> None:
        """Let go of the connection and end the thread; bounded, and never raises."""
        with contextlib.suppress(Exception):
            self.loop.run(self.connection.close(), CLOSE_SECONDS)
        with contextlib.suppress(Exception):
            self.loop.stop()

    def check(self) -> None:
        """Raise when the thread is no longer of use.

        :raises SourceError: with why.
        """
        if self.loop.crash is not None or not self.loop.alive:
            raise SourceError(
                f"the source's thread has failed ({self.loop.crash!r}): start the flow again"
            )

    async def _open(self) -> None:
        await self.connection.open()
        if self.settings.streams:
            try:
                await ensure_streams(self.connection, self.settings)
            except JetStreamApiError as error:
                raise StreamError(
                    f"the streams cannot be listed: {error}; check the server's log",
                    code=error.code,
                ) from None
        self.loop.create_task(self._tick(), name="jetstream-source-tick")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            for listener in tuple(self.listeners):
                listener.check_silence(now)

    def _read(self) -> None:
        for listener in self.listeners:
            listener.hand_over()

    def _down(self, reason: str) -> None:
        for listener in tuple(self.listeners):
            listener.end(reason)

    def _denied(self, message: str) -> None:
        for listener in tuple(self.listeners):
            listener.denied(message)


_links: dict[tuple[int, JetStreamSettings], Link] = {}
_lock = threading.Lock()


def lease(settings: JetStreamSettings) -> Link:
    """The process's link with these settings, opened for its first user; give it back with
    `release`.

    :raises ConnectError: when there is no connection within the connect timeout.
    :raises StreamError: when a declared stream is missing or too weak.
    """
    key = (os.getpid(), settings)  # a forked child has its parent's dictionary, but not its threads
    with _lock:
        link = _links.get(key)
        if link is None or not link.loop.alive or link.loop.crash is not None:
            link = Link(settings)
            link.open()
            _links[key] = link
        link.users += 1
        return link


def release(link: Link) -> None:
    """Give a link back; the last user's goodbye closes it. Never raises."""
    with _lock:
        link.users -= 1
        if link.users:
            return
        key = (os.getpid(), link.settings)
        if _links.get(key) is link:
            del _links[key]
    link.close()

"""The connection that all source partitions of a process share while one of them is open."""

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from ...errors import ConnectError, PoolClosedError, SourceError, StreamError
from ...loop_thread import LoopThread
from ...settings import JetStreamSettings
from ..connection import Connection, JetStreamApiError
from ..streams import ensure_streams
from .prefetch import Prefetch

__all__ = ["SharedConnection", "lease", "release"]

log = logging.getLogger(__name__)

SETUP_SECONDS = 30.0
"""How long it may take to make or check the declared streams, once connected."""
TICK_SECONDS = 0.1
ACTIVE_SECONDS = 2.0
"""A connection that is lost so soon after messages were requested or arrived may have been cut by
the server, because more waited to be sent than it allows. A server says so only in its own log.
"""
CLOSE_SECONDS = 3.0


class Listener(Protocol):
    """Is told what happens to the connection, always on the connection's thread."""

    def hand_over(self) -> None:
        """All messages of one read have been handled."""

    def end(self, reason: str) -> None:
        """The connection is lost."""

    def denied(self, message: str) -> None:
        """The server denied something to a user of this connection."""

    def check_silence(self, now: float) -> None:
        """Called every tenth of a second."""


class SharedConnection:
    """A connection on its own thread, so that reading and publishing never wait for each other."""

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
        self.prefetch = Prefetch(lambda: self.connection.max_payload)
        self._tickers: set[Callable[[float], None]] = set()
        self.users = 0
        self.losses = 0
        """How often the connection was lost."""
        self._active_at = -ACTIVE_SECONDS

    def __repr__(self) -> str:
        state = "up" if self.connection.is_up else "down"
        return f"<SharedConnection {', '.join(self.settings.servers)}, {state}, {self.users} users>"

    def open(self) -> None:
        """Connect, and make or check the declared streams, so that a flow can read a stream that
        another flow will write to.

        :raises ConnectError: when there is no connection within the connect timeout.
        :raises StreamError: when a declared stream is missing, or keeps less than declared.
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
        """Close the connection and end the thread, within a bounded time; never raises."""
        with contextlib.suppress(Exception):
            self.loop.run(self.connection.close(), CLOSE_SECONDS)
        with contextlib.suppress(Exception):
            self.loop.stop()

    def check(self) -> None:
        """Raise if the thread has failed or ended.

        :raises SourceError: with the reason.
        """
        if self.loop.crash is not None or not self.loop.alive:
            raise SourceError(
                f"the source's thread has failed ({self.loop.crash!r}): start the flow again",
                run_again=True,
            )

    def keep_calling(self, ticker: Callable[[float], None]) -> None:
        """Call this every tenth of a second with the time, on the connection's thread."""
        self.loop.call(partial(self._tickers.add, ticker))

    def stop_calling(self, ticker: Callable[[float], None]) -> None:
        """Call this no more, once what is under way is done; never raises."""
        with contextlib.suppress(PoolClosedError):
            self.loop.call(partial(self._tickers.discard, ticker))

    def active(self) -> None:
        """Messages were requested, or have arrived."""
        self._active_at = time.monotonic()

    async def _open(self) -> None:
        deadline = time.monotonic() + self.settings.connect_timeout
        await self.connection.open()
        if self.settings.streams:
            ensure = partial(ensure_streams, self.connection, self.settings)
            try:
                await self.connection.repeat_until_answered(ensure, deadline)
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
            self.prefetch.grow(now)
            for listener in tuple(self.listeners):
                listener.check_silence(now)
            for ticker in tuple(self._tickers):
                ticker(now)

    def _read(self) -> None:
        for listener in self.listeners:
            listener.hand_over()

    def _down(self, reason: str) -> None:
        self.losses += 1
        now = time.monotonic()
        if now - self._active_at < ACTIVE_SECONDS:
            log.info(
                "the connection was lost while messages came (%s): from now on at most %d bytes "
                "are requested at once",
                reason,
                self.prefetch.cut(now),
            )
        for listener in tuple(self.listeners):
            listener.end(reason)

    def _denied(self, message: str) -> None:
        for listener in tuple(self.listeners):
            listener.denied(message)


_connections: dict[tuple[int, JetStreamSettings], SharedConnection] = {}
_lock = threading.Lock()


def _unlock_after_fork() -> None:
    """A child that is forked while another thread opens a connection must not wait for it."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_unlock_after_fork)


def lease(settings: JetStreamSettings) -> SharedConnection:
    """The process's connection with these settings; the first user opens it.

    Every user gives it back with `release`.

    :raises ConnectError: when there is no connection within the connect timeout.
    :raises StreamError: when a declared stream is missing, or keeps less than declared.
    """
    key = (os.getpid(), settings)  # a forked child has its parent's dictionary, but no threads
    with _lock:
        shared = _connections.get(key)
        if shared is None or not shared.loop.alive or shared.loop.crash is not None:
            shared = SharedConnection(settings)
            shared.open()
            _connections[key] = shared
        shared.users += 1
        shared.prefetch.partitions = shared.users
        return shared


def release(shared: SharedConnection) -> None:
    """Give a connection back; the last user's release closes it. Never raises."""
    with _lock:
        shared.users -= 1
        shared.prefetch.partitions = shared.users
        if shared.users:
            return
        key = (os.getpid(), shared.settings)
        if _connections.get(key) is shared:
            del _connections[key]
    shared.close()

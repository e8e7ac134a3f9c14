"""`Reader`: opens a partition's feed, and reopens it after a lost connection or consumer."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from random import uniform
from typing import Any

from nats.errors import Error as NatsError

from ...errors import ConnectError, JetStreamPipelineError, SourceError, StreamError
from ..connection import JetStreamApiError, words
from ..message import UnreadableMessage
from .feed import Feed
from .reading import Found, Reading
from .shared_connection import SharedConnection
from .skipped import Skipped

__all__ = ["IDLE", "Reader", "UnreadableCount"]

log = logging.getLogger(__name__)

SETUP_SECONDS = 30.0
"""How long it may take to find or make a consumer."""
GONE_SECONDS = 5.0
"""How long a stream may be missing: after a restart a server may still be loading it."""
CLOSE_SECONDS = 2.0
LOOK_SECONDS = 0.25
PAUSE_SECONDS = 0.05
IDLE = timedelta(milliseconds=2)
"""How soon an idle partition looks again: while it sleeps, no other source's epoch can end."""


class Reader:
    """Opens a partition's feeds one after the other, each at the partition's position.

    Its methods are for the partition's thread, except where a comment says otherwise.

    :arg find: Finds or makes the consumer, given the position to read from; None the first time.
    """

    def __init__(
        self,
        shared: SharedConnection,
        reading: Reading,
        find: Callable[[int | None], Awaitable[Found]],
        batch_size: int,
    ) -> None:
        self._shared = shared
        self._reading = reading
        self._find = find
        self._batch_size = batch_size
        self._feed: Feed | None = None
        self._failure: JetStreamPipelineError | None = None
        self._opening: asyncio.Task[None] | None = None
        self._failing_since: float | None = None
        self._pause = 0.02
        self._looking: asyncio.Task[None] | None = None
        self._looked = float("-inf")
        self._stream_seen: dict[str, Any] | None = None
        self.reopened = 0

    def open(self, position: int | None) -> Found:
        """Open the first feed.

        :raises ConnectError: when the server does not answer, or denies it.
        :raises StreamError: when the stream is missing.
        :raises SourceError: when the stream cannot be read as the settings require.
        """
        try:
            self._feed = self._first_feed(position)
        except JetStreamApiError as error:
            raise SourceError(
                f"{self._reading} cannot be read: the server refused the consumer: {error}",
                stream=self._reading.stream,
                subject=self._reading.subject,
                consumer=self._reading.durable,
                code=error.code,
            ) from None
        except (NatsError, OSError, TimeoutError) as error:
            why = words(error)
            raise ConnectError(
                f"{self._reading} cannot be read: the connection failed ({why}): start the flow "
                "again",
                broker="jetstream",
                servers=self._shared.settings.servers,
                seconds=0.0,
                reason=why,
            ) from None
        return self._feed.found

    def _first_feed(self, position: int | None) -> Feed:
        """Try again when the connection is lost meanwhile: partitions that are open already may be
        cut as slow consumers until it is known how much the server holds for them.
        """
        shared = self._shared
        deadline = time.monotonic() + max(SETUP_SECONDS, shared.settings.pool.delivery_timeout)
        while True:
            was_up, losses = shared.connection.is_up, shared.losses
            try:
                return shared.loop.run(self._attempt(position), SETUP_SECONDS)
            except (ConnectError, NatsError, OSError, TimeoutError):
                lost = not was_up or shared.losses != losses or not shared.connection.is_up
                if not lost or time.monotonic() > deadline:
                    raise
            time.sleep(PAUSE_SECONDS)

    def current(self) -> Feed | None:
        """The feed to take from; None while one is being opened.

        :raises SourceError: when no feed can be opened any more.
        """
        self._shared.check()
        if self._failure is not None:
            raise self._failure
        if self._feed is not None and self._feed.forbidden is not None:
            raise SourceError(
                f"{self._reading} cannot be read: {self._feed.forbidden}",
                stream=self._reading.stream,
                subject=self._reading.subject,
                consumer=self._reading.durable,
            )
        return self._feed

    def look_at_gaps(self, skipped: Skipped) -> None:
        """See which gaps the stream's limits have made; asks at most every quarter second, and
        never waits.
        """
        if not skipped.is_unsure:
            return
        now, seen = time.monotonic(), self._stream_seen
        if seen is not None:
            self._stream_seen = None
            skipped.settle(seen["state"]["first_seq"], now)
        elif now - self._looked >= LOOK_SECONDS:
            self._looked = now
            skipped.ask()
            self._shared.loop.call(self._start_look)

    def report_skipped(self, skipped: Skipped) -> None:
        """Count the last gaps, and log what was not logged; ends within a bounded time."""
        if skipped.is_unsure:
            skipped.ask()
            # Without an answer they stay uncounted: they may have been there at the start.
            with contextlib.suppress(JetStreamPipelineError, JetStreamApiError, TimeoutError):
                info = self._shared.loop.run(self._stream_info(), CLOSE_SECONDS)
                skipped.settle(info["state"]["first_seq"], time.monotonic())
        skipped.report()

    @property
    def feed(self) -> Feed | None:
        """The feed; None while one is being opened. For the connection's thread."""
        return self._feed

    def reopen(self, position: int, reason: str) -> None:
        """Give up the feed and open another; `current` returns it once it is open."""
        feed, self._feed = self._feed, None
        assert feed is not None, "the partition has no feed to give up"
        self.reopened += 1
        self._shared.loop.call(partial(self._start, feed, position, reason))

    def close(self, uncommitted: Sequence[bytes] = ()) -> None:
        """Give uncommitted messages back to the server, which delivers them again at once; a
        consumer by sequence is deleted.

        Ends within a bounded time and never raises: messages that cannot be given back are
        delivered again after ack_wait.
        """
        with contextlib.suppress(Exception):
            self._shared.loop.run(self._close(uncommitted), 2 * CLOSE_SECONDS)

    # The shared connection's thread

    def _start_look(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = self._shared.loop.create_task(self._look(), name="jetstream-look")

    async def _look(self) -> None:
        with contextlib.suppress(ConnectError, JetStreamApiError):  # then it is asked again
            self._stream_seen = await self._stream_info()

    async def _stream_info(self) -> dict[str, Any]:
        return await self._shared.connection.request(f"STREAM.INFO.{self._reading.stream}")

    async def _attempt(self, position: int | None) -> Feed:
        found = await self._find(position)
        feed = Feed(self._shared, self._reading, found, self._batch_size)
        try:
            await feed.start()
        except BaseException as error:
            feed.end(str(error))
            raise
        return feed

    def _start(self, feed: Feed, position: int, reason: str) -> None:
        feed.end(reason)
        if feed.proved or self._failing_since is None:
            self._failing_since = time.monotonic()
            self._pause = 0.02
        log.info("%s is read again from sequence %d: %s", self._reading, position, reason)
        self._opening = self._shared.loop.create_task(
            self._reopen(position, reason), name="jetstream-reopen"
        )

    async def _reopen(self, position: int, reason: str) -> None:
        """Try until a feed is open or the time is up.

        The time runs from the first failure. A feed that never heard from the server does not
        start it again.
        """
        assert self._failing_since is not None
        limit = self._shared.settings.pool.delivery_timeout
        gone_since: float | None = None
        while True:
            await asyncio.sleep(uniform(0.5, 1.0) * self._pause)
            now = time.monotonic()
            failing = now - self._failing_since
            if failing > limit or (gone_since is not None and now - gone_since > GONE_SECONDS):
                self._failure = SourceError(
                    f"{self._reading} could not be read for {failing:.0f} s: {reason}",
                    stream=self._reading.stream,
                    subject=self._reading.subject,
                    consumer=self._reading.durable,
                    sequence=position - 1,
                    seconds=failing,
                    limit=limit,
                    run_again=gone_since is None,
                )
                return
            self._pause = min(2 * self._pause, 1.0)
            try:
                self._feed = await self._attempt(position)
                return
            except StreamError as error:
                reason = str(error)
                gone_since = gone_since or now
            except SourceError as error:
                self._failure = error
                return
            except (ConnectError, JetStreamApiError, NatsError, OSError, TimeoutError) as error:
                gone_since = None
                reason = words(error)

    async def _close(self, uncommitted: Sequence[bytes]) -> None:
        for task in (self._opening, self._looking):
            if task is not None:
                task.cancel()
        feed, self._feed = self._feed, None
        if feed is None:
            return
        verb = "DELETE"
        if self._reading.durable is not None:
            verb = "INFO"
            await feed.drain()
            replies = [*uncommitted, *feed.left()]
            self._shared.connection.write(
                b"".join([b"PUB %s 4\r\n-NAK\r\n" % reply for reply in replies])
            )
        feed.end("closed")
        # Closing a connection drops unsent bytes. The answer to this request shows that everything
        # written before it has arrived.
        request = f"CONSUMER.{verb}.{self._reading.stream}.{feed.found.name}"
        await self._shared.connection.request(request, seconds=CLOSE_SECONDS)


log = logging.getLogger(__name__)


class UnreadableCount:
    """Counts a partition's unreadable messages; logs the first, and the count at the end."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._count = 0

    def add(self, message: UnreadableMessage) -> None:
        """Count a message."""
        self._count += 1
        if self._count == 1:
            log.warning(
                "%s: message %d cannot be read: %s", self._reading, message.sequence, message.reason
            )

    def report(self) -> None:
        """Log how many there were, if more than one."""
        if self._count > 1:
            log.warning("%s: %d messages could not be read", self._reading, self._count)

"""`Topics`: ensures the streams; the stream of each subject; which streams take batches."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import ConnectError
from ...publishing import Refusal, Route, Verdict
from ...settings import JetStreamSettings
from ..connection import Connection, JetStreamApiError
from ..streams import Coverage, Covered, ensure_streams, read_coverage
from .encoding import check_topic

__all__ = ["Topics"]

log = logging.getLogger(__name__)

KNOWN_TOPICS = 100_000
"""Most topics that are remembered as checked; then all are forgotten, and checked again."""
REFRESH_SECONDS = 1.0
"""The streams are listed again after a pause of at most this long."""
REFRESH_SHARE = 20
"""The pause is this many times as long as the last list took, if that is less."""
LATE_ACKS = 10_000
"""Most acks of unlisted streams that wait for the next list."""


class Topics:
    """What is known of the streams, and so of the topics. The server is never asked per message.

    :arg on_listed: Called when the streams were listed again.
    """

    def __init__(
        self,
        connection: Connection,
        settings: JetStreamSettings,
        on_listed: Callable[[], None] = lambda: None,
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._on_listed = on_listed
        self._coverage: Coverage | None = None
        """None with the strategy `skip`: no stream is known, and every valid topic is published."""
        self.checked: set[str] = set()
        """Topics that may be published on."""
        self._answered: set[str] = set()
        """Topics that no listed stream covers, but a stream has answered on."""
        self._routes: dict[str, Route | None] = {}
        self._elsewhere: dict[str, str] = {}
        """Streams that answer on a topic although another one covers it."""
        self._singles_only: dict[str, str] = {}
        """Streams that take no batches, each with the reason."""
        self._told: set[str] = set()
        """Streams that were warned of."""
        self._uncovered_since: dict[str, float] = {}
        self._streams: dict[bytes, str] = {}
        self._unlisted: list[tuple[str, str | None, Callable[[], None]]] = []
        """Acks of streams that were not there when last looked: stream, topic, and what to do if
        the ack counts."""
        self._reading: asyncio.Task[None] | None = None
        self._wanted = False
        """Whether the streams must be listed once more."""
        self._waiting: list[asyncio.Future[str | None]] = []
        self._list_failed = False
        self._next_list = 0.0
        self.listed_at = 0.0
        """When the list that is there was asked for."""

    async def ensure(self) -> None:
        """Create or check the streams that the settings declare.

        :raises StreamError: when a declared stream or topic is missing or too weak.
        """
        self._coverage = await ensure_streams(self._connection, self._settings)
        if self._coverage is not None:
            for stream in self._settings.streams:
                self._tell(stream.name)
            for topic in self._settings.topics:
                covered = self._coverage.of(topic)
                if covered is not None:
                    self._tell(covered.stream)

    def close(self) -> None:
        """Stop listing the streams."""
        if self._reading is not None:
            self._reading.cancel()

    def check(self, topic: str) -> bool:
        """Check a topic's form, unless that was done before; returns whether it may be published
        on. If not by now, that is decided when it is sent: what is known may be out of date.

        :raises EnvelopeError: when it can never be published on.
        """
        try:
            if topic in self.checked:
                return True
        except TypeError:  # it cannot be hashed, so it is no str: check_topic says so
            pass
        check_topic(topic)
        return self.is_open(topic)

    def is_open(self, topic: str) -> bool:
        """Whether a topic may be published on, by what is known of the streams."""
        if topic in self.checked:
            return True
        if self._coverage is not None and topic not in self._answered:
            covered = self._coverage.of(topic)
            if covered is None or covered.weakness is not None:
                return False
            self._tell(covered.stream)
        if len(self.checked) >= KNOWN_TOPICS:
            self.checked.clear()
            self._routes.clear()
        self.checked.add(topic)
        return True

    def weakness(self, topic: str) -> Refusal | None:
        """Why the stream that covers a topic must not get its messages; None if it may, or if no
        stream is known to cover it.
        """
        covered = self._covered(topic)
        if covered is None or covered.weakness is None:
            return None
        verdict = Verdict.STOP if covered.stops else Verdict.REJECT
        return Refusal(verdict, f"topic {topic}: {covered.weakness}")

    def is_uncovered(self, topic: str) -> bool:
        """Whether definitely no stream of this account covers a topic."""
        return self._coverage is not None and self._coverage.lacks(topic)

    def answered(self, topic: str) -> None:
        """A stream has answered on a topic that no listed stream covers: it may be published on."""
        if self._coverage is not None and self._coverage.of(topic) is None:
            if len(self._answered) >= KNOWN_TOPICS:
                self._answered.clear()
            self._answered.add(topic)

    def route(self, topic: str) -> Route | None:
        """The stream that takes the messages of a topic in batches; None if they go as singles."""
        try:
            return self._routes[topic]
        except KeyError:
            route = self._routes[topic] = self._new_route(topic)
            return route

    def duplicate_window(self, topic: str) -> float | None:
        """For how many seconds a topic's stream remembers event ids; None if that is not known."""
        covered = self._covered(topic)
        if self._coverage is None or covered is None or not self._settings.dedupe:
            return None
        return self._coverage.window(covered.stream)

    def stream_of(self, topic: str) -> str | None:
        """The stream that stores a topic, if it is known."""
        elsewhere = self._elsewhere.get(topic)
        if elsewhere is not None:
            return elsewhere
        covered = self._covered(topic)
        return covered.stream if covered is not None else None

    def stored_in(self, topic: str, stream: str) -> None:
        """A stream has answered on a topic: another one than covers it, if the account maps the
        subject, or the stream was replaced.
        """
        if self._coverage is not None and stream != self.stream_of(topic):
            if len(self._elsewhere) >= KNOWN_TOPICS:
                self._elsewhere.clear()
            self._elsewhere[topic] = stream
            self._routes.pop(topic, None)

    def was_empty(self, stream: str | None) -> bool:
        """Whether nothing was ever stored in a stream when it was last listed."""
        return self._coverage is not None and stream in self._coverage.empty

    def config(self, stream: str | None) -> Mapping[str, Any] | None:
        """The configuration of a stream as it was when last listed, if it is known."""
        return self._coverage.configs.get(stream or "") if self._coverage is not None else None

    def is_gone(self, topic: str) -> bool:
        """Whether no stream covers a topic, and has not for longer than the ack timeout: that is
        more than the election of a leader takes.
        """
        if topic in self._answered:
            return False  # its stream was never listed, so the list does not tell
        now = time.monotonic()
        since = self._uncovered_since.setdefault(topic, now)
        self.read_again()
        return self.is_uncovered(topic) and now - since > self._settings.pool.ack_timeout

    def stream(self, name: bytes) -> str | None:
        """The name of an ack's stream if there is such a stream, else None.

        Anybody who subscribes to a topic can answer its messages: an ack of a stream that does not
        exist proves nothing.
        """
        stream = self._streams.get(name)
        if stream is None:
            stream = name.decode("utf-8", "replace")
            if self._coverage is not None and not self._coverage.knows(stream):
                return None
            self._streams[name] = stream
        return stream

    def when_listed(self, stream: str, topic: str | None, ack: Callable[[], None]) -> None:
        """Look for the stream of an ack that is not among those listed, before the ack counts.

        It counts if the stream is there by now, or if no listed stream covers the topic: then the
        account imports the topic, or maps it, and another account's streams are not in the list.

        :arg topic: None if it is not known; then only a listed stream counts.
        :arg ack: Called if it counts.
        """
        if len(self._unlisted) < LATE_ACKS:  # beyond that the attempt ends unanswered
            self._unlisted.append((stream, topic, ack))
        self.read_again()

    def takes_no_batches(self, stream: str, reason: str) -> None:
        """Send a stream's messages as singles from now on; logged once."""
        if stream not in self._singles_only:
            self._singles_only[stream] = reason
            log.warning("stream %s takes one message at a time: %s", stream, reason)
        self._routes.clear()

    def connected(self) -> None:
        """Look at the streams again: a new connection may lead to another server, and streams may
        have changed meanwhile.
        """
        self._routes.clear()
        self.read_again()

    def read_again(self) -> None:
        """List the streams again, in the background."""
        if self._coverage is None:
            return
        self._wanted = True
        if self._reading is None or self._reading.done():
            self._reading = asyncio.get_running_loop().create_task(self._read_while_wanted())

    async def fresh(self) -> str | None:
        """Wait for a list of the streams that is asked for from now on; returns why there is none,
        or None.
        """
        listed: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(listed)
        self.read_again()
        return await listed

    @property
    def without_batches(self) -> int:
        """How many streams take no batches."""
        return len(self._singles_only)

    def _covered(self, topic: str) -> Covered | None:
        return self._coverage.of(topic) if self._coverage is not None else None

    # Listing the streams

    async def _read_while_wanted(self) -> None:
        while self._wanted:
            await asyncio.sleep(max(0.0, self._next_list - time.monotonic()))
            self._wanted = False
            waiting, self._waiting = self._waiting, []
            unlisted, self._unlisted = self._unlisted, []
            failure: str | None = "the list of the streams was not read to its end"
            began = time.monotonic()
            try:
                failure = await self._read()
            finally:
                took = time.monotonic() - began
                self._next_list = time.monotonic() + min(REFRESH_SECONDS, REFRESH_SHARE * took)
                for listed in waiting:
                    if not listed.done():
                        listed.set_result(failure)
            self._judge_acks(unlisted, failure)
            self._on_listed()

    async def _read(self) -> str | None:
        """List the streams; returns why that failed, or None."""
        began = time.monotonic()
        try:
            coverage = await read_coverage(
                self._connection, self._coverage, self._settings.pool.ack_timeout
            )
        except (ConnectError, JetStreamApiError) as error:
            if not self._list_failed:
                self._list_failed = True
                log.warning("the streams could not be listed again: %s", error)
            return f"the streams could not be listed: {error}"
        self._coverage, self.listed_at, self._list_failed = coverage, began, False
        self._uncovered_since = {
            t: at for t, at in self._uncovered_since.items() if coverage.lacks(t)
        }
        self._streams.clear()
        self._elsewhere.clear()
        self._routes.clear()
        return None

    def _judge_acks(
        self, acks: list[tuple[str, str | None, Callable[[], None]]], failure: str | None
    ) -> None:
        for stream, topic, ack in acks:
            if failure is None and self._coverage is not None and self._coverage.knows(stream):
                ack()
            elif failure is None and topic is not None and self._covered(topic) is None:
                if stream not in self._told:
                    self._told.add(stream)
                    log.warning(
                        "stream %r stores topic %s, and this account does not list that stream: "
                        "whether it keeps what it acknowledges, and for how long it remembers "
                        "event ids, is not checked",
                        stream[:80],
                        topic,
                    )
                ack()
            else:
                log.warning(
                    "ignored an ack of stream %r: %s",
                    stream[:80],
                    failure or "there is no such stream",
                )

    # What is worth a warning

    def _tell(self, stream: str) -> None:
        """Warn, once, of what a stream's acks do not promise although its messages are published:
        it is there, and may be meant like that.
        """
        coverage = self._coverage
        if stream in self._told or coverage is None or stream not in coverage.configs:
            return
        self._told.add(stream)
        config = coverage.configs[stream]
        declared = {each.name: each for each in self._settings.streams}.get(stream)
        if config.get("storage") == "memory" and (declared is None or declared.storage == "file"):
            log.warning(
                "stream %s keeps its messages in memory, so a restart of its servers loses what "
                "it has acknowledged: use file storage, or declare it with storage=memory",
                stream,
            )
        if config.get("retention") == "interest" and not coverage.consumers.get(stream, 0):
            log.warning(
                "stream %s has retention interest and no consumer, so it acknowledges messages "
                "and keeps none of them: create a consumer first",
                stream,
            )
        window, pool = coverage.window(stream), self._settings.pool
        if self._settings.dedupe and window is not None and window < pool.delivery_timeout:
            log.warning(
                "stream %s remembers event ids for %g s, less than the delivery timeout of %g s: "
                "an envelope is unknown once no attempt can be answered within that time, and a "
                "replay after it is stored twice; raise its duplicate_window",
                stream,
                window,
                pool.delivery_timeout,
            )

    def _new_route(self, topic: str) -> Route | None:
        covered, stream = self._covered(topic), self.stream_of(topic)
        config = self.config(stream)
        if (
            self._coverage is None
            or covered is None
            or covered.weakness is not None
            or stream is None
            or config is None
            or stream in self._singles_only
        ):
            return None
        if not self._connection.takes_batches:
            self.takes_no_batches(stream, "batches need nats-server 2.14")
            return None
        if not config.get("allow_batched"):
            self.takes_no_batches(
                stream,
                "its allow_batched is off; stream_strategy=create_or_update turns it on for a "
                "declared stream",
            )
            return None
        # Several servers may know an id before a message is stored, and answer a retry as a
        # duplicate. One server stores before it answers; and without message ids there are no
        # duplicates.
        several = config.get("num_replicas", 1) > 1 or self._connection.is_clustered
        return Route(
            stream,
            several and self._settings.dedupe,
            stream in self._coverage.created,
        )

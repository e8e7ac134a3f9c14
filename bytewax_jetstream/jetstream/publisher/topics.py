"""`Topics`: ensures the streams; the stream of each subject; which streams take batches."""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from ...errors import ConnectError, EnvelopeError
from ...publishing import Route
from ...settings import JetStreamSettings
from ..connection import Connection, JetStreamApiError
from ..streams import REMEDY, Coverage, ensure_streams, read_coverage
from .encoding import check_topic

__all__ = ["Topics"]

log = logging.getLogger(__name__)

KNOWN_TOPICS = 100_000
"""Most topics that are remembered as checked; then all are forgotten, and checked again."""
REFRESH_SECONDS = 1.0
"""The streams are listed again at most this often, and only when they may have changed."""


class Topics:
    """What is known of the streams, and so of the topics. The server is never asked per message."""

    def __init__(self, connection: Connection, settings: JetStreamSettings) -> None:
        self._connection = connection
        self._settings = settings
        self._coverage: Coverage | None = None
        """None with the strategy `skip`: no stream is known, and every valid topic is published."""
        self.checked: set[str] = set()
        """Topics that may be published on."""
        self._routes: dict[str, Route | None] = {}
        self._elsewhere: dict[str, str] = {}
        """Streams that answer on a topic although another one covers it."""
        self._singles_only: dict[str, str] = {}
        """Streams that take no batches, each with the reason."""
        self._uncovered_since: dict[str, float] = {}
        self._streams: dict[bytes, str] = {}
        self._refresh: asyncio.Task[None] | None = None
        self._refreshed = 0.0

    async def ensure(self) -> None:
        """Create or check the streams that the settings declare.

        :raises StreamError: when a declared stream or topic is missing or too weak.
        """
        self._coverage = await ensure_streams(self._connection, self._settings)

    def close(self) -> None:
        """Stop listing the streams."""
        if self._refresh is not None:
            self._refresh.cancel()

    def check(self, topic: str) -> None:
        """Check a topic's form and the stream that covers it, unless that was done before.

        :raises EnvelopeError: when it cannot be published on.
        """
        try:
            if topic in self.checked:
                return
        except TypeError:  # it cannot be hashed, so it is no str: check_topic says so
            pass
        check_topic(topic)
        if self._coverage is not None:
            covered = self._coverage.of(topic)
            if covered is None:
                self.read_again()
                if self._coverage.lacks(topic):
                    raise EnvelopeError(
                        f"no stream covers topic {topic}: {REMEDY}", field="topic", topic=topic
                    )
            elif covered.weakness is not None:
                raise EnvelopeError(
                    f"topic {topic}: {covered.weakness}", field="topic", topic=topic
                )
        if len(self.checked) >= KNOWN_TOPICS:
            self.checked.clear()
            self._routes.clear()
        self.checked.add(topic)

    def route(self, topic: str) -> Route | None:
        """The stream that takes the messages of a topic in batches; None if they go as singles."""
        try:
            return self._routes[topic]
        except KeyError:
            route = self._routes[topic] = self._new_route(topic)
            return route

    def stream_of(self, topic: str) -> str | None:
        """The stream that stores a topic, if it is known."""
        elsewhere = self._elsewhere.get(topic)
        if elsewhere is not None or self._coverage is None:
            return elsewhere
        covered = self._coverage.of(topic)
        return covered.stream if covered is not None else None

    def answered(self, topic: str, stream: str) -> None:
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
        now = time.monotonic()
        since = self._uncovered_since.setdefault(topic, now)
        self.read_again()
        gone = self._coverage is not None and self._coverage.lacks(topic)
        return gone and now - since > self._settings.pool.ack_timeout

    def stream(self, name: bytes) -> str | None:
        """The name of an ack's stream if there is such a stream, else None.

        Anybody who subscribes to a topic can answer its messages: an ack of a stream that does not
        exist proves nothing.
        """
        stream = self._streams.get(name)
        if stream is None:
            stream = name.decode("utf-8", "replace")
            if self._coverage is not None and not self._coverage.knows(stream):
                log.warning(
                    "ignored an ack of stream %r, which was not there when last looked", stream[:80]
                )
                self.read_again()
                return None
            self._streams[name] = stream
        return stream

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
        """List the streams again, in the background, unless they were listed within a second."""
        if self._coverage is None or time.monotonic() - self._refreshed < REFRESH_SECONDS:
            return
        self._refreshed = time.monotonic()
        self._refresh = asyncio.get_running_loop().create_task(self._read())

    @property
    def without_batches(self) -> int:
        """How many streams take no batches."""
        return len(self._singles_only)

    async def _read(self) -> None:
        try:
            coverage = await read_coverage(self._connection, self._coverage)
        except (ConnectError, JetStreamApiError) as error:
            log.warning("the streams could not be listed again: %s", error)
            return
        self._coverage = coverage
        self._uncovered_since = {
            t: at for t, at in self._uncovered_since.items() if coverage.lacks(t)
        }
        self._streams.clear()
        self._elsewhere.clear()
        self._routes.clear()

    def _new_route(self, topic: str) -> Route | None:
        if self._coverage is None:
            return None
        stream = self.stream_of(topic)
        config = self.config(stream)
        if stream is None or config is None or stream in self._singles_only:
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

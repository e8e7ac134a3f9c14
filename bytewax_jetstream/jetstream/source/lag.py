"""`Lag`: how many messages of a stream wait to be read, for the metrics.

While a dataflow is blocked, it takes no messages, and those that it took before say nothing of what
was stored since. So the server is asked, when somebody scrapes and on the connection's own thread.
The answer is in the next scrape.
"""

import asyncio
import contextlib
import time
from typing import Any

from ...errors import ConnectError, PoolClosedError
from ..connection import JetStreamApiError
from .reading import Found, Reading
from .shared_connection import SharedConnection

__all__ = ["Lag"]

ASK_SECONDS = 1.0
"""How often the server is asked at most."""


class Lag:
    """Asks for no more than the partition had to be allowed to ask before it could read."""

    def __init__(self, shared: SharedConnection, reading: Reading, found: Found) -> None:
        self._shared = shared
        self._request: str | None = None
        if reading.durable is not None:
            self._request = f"CONSUMER.INFO.{reading.stream}.{reading.durable}"
        elif reading.subject is None:
            self._request = f"STREAM.INFO.{reading.stream}"
        self._stream = found.stream if reading.durable is None else None
        self._undelivered = found.pending
        self._asked = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """Ask again, unless that was just done; never waits. For any thread."""
        now = time.monotonic()
        if self._request is not None and now - self._asked >= ASK_SECONDS:
            self._asked = now
            with contextlib.suppress(PoolClosedError):  # it was closed meanwhile
                self._shared.loop.call(self._start)

    def from_position(self, position: int, last: int | None) -> int:
        """How many sequences a stream that is read without a filter has from a position on.

        :arg last: The last sequence that is to be read, if reading ends there.
        """
        assert self._stream is not None, "a stream that is read by sequence is asked for"
        state = self._stream["state"]
        end = state["last_seq"] if last is None else min(last, state["last_seq"])
        return int(max(0, end + 1 - max(position, state["first_seq"])))

    def behind_consumer(self, queued: int) -> int:
        """How many a durable consumer has not delivered, and how many wait here."""
        return self._undelivered + queued

    # The shared connection's thread

    def _start(self) -> None:
        if self._asking is None or self._asking.done():
            self._asking = self._shared.loop.create_task(self._ask(), name="jetstream-lag")

    async def _ask(self) -> None:
        assert self._request is not None, "it is asked"
        with contextlib.suppress(ConnectError, JetStreamApiError):  # then it is asked again
            self._take(await self._shared.connection.request(self._request))

    def _take(self, answer: dict[str, Any]) -> None:
        if self._stream is not None:
            self._stream = answer
        else:
            self._undelivered = answer.get("num_pending", 0)

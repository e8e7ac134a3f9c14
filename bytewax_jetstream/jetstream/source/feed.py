"""Messages pulled ahead of the dataflow, within bounds, through one connection for all partitions.

A *feed* is one consumer for as long as nothing can be missing: it ends with its connection, with
its consumer, after silence, or when the server has sent what did not arrive. What it brought before
is still good. Then the partition, which alone knows what it emitted, has its reader open the next
one there.

What is written here runs on the link's thread, but for the methods that say the partition's thread.
The two share a deque and a few attributes that one of them writes, and nothing waits for the other.
"""

import asyncio
import contextlib
import json
import re
import time
from collections import deque
from functools import partial
from typing import Any, NamedTuple

from ...errors import ConnectError
from ..connection import JetStreamApiError
from ..message import RawMessage
from .consumers import Found, Reading
from .shared_connection import Link

__all__ = ["Feed"]

PREFETCH_BATCHES = 4
"""How many batches may be in memory, or on their way, for each partition."""
PREFETCH_LEAST = 256
PREFETCH_BYTES = 32 * 1024 * 1024
EXPIRE_SECONDS = 30.0
"""A pull request that was not filled by then ends, and the next is made."""
HEARTBEAT_SECONDS = 2.0
SILENCE_SECONDS = 2.5 * HEARTBEAT_SECONDS
LOOK_SECONDS = 0.05

LAST_CONSUMER = re.compile(rb"Nats-Last-Consumer: (\d+)").search
# Ends of a single request, after which the next one is served: timeout, nothing there, its bytes
# are used up.
REQUEST_ENDS = re.compile(rb"NATS/1\.0 (408|404|409 Message Size Exceeds MaxBytes)").match
COMPLETED = re.compile(rb"NATS/1\.0 409 Batch Completed").match
NOT_ALL_ARRIVED = "the server has sent messages that did not arrive"
HEARTBEAT = b"NATS/1.0 100"


class _Pull:
    """A place for one pull request at a time; its inbox tells whose messages come."""

    __slots__ = ("inbox", "left", "number", "reply", "room")

    def __init__(self, inbox: str) -> None:
        self.inbox = inbox
        self.number = 0
        self.reply = b""
        """The last request's part of the inbox: what the server says is of that one, or too late to
        matter.
        """
        self.left = 0
        """Messages asked for and not here yet."""
        self.room = 0
        """Bytes asked for and not here yet."""


class _Chunk(NamedTuple):
    """The messages of one read from the socket."""

    messages: list[RawMessage]
    size: int
    arrived: float


class Feed:
    """What one consumer delivers, in order, from its first pull to its end."""

    def __init__(self, link: Link, reading: Reading, found: Found, batch_size: int) -> None:
        connection = link.connection
        config = found.config
        self.found = found
        self.ended: str | None = None
        """Why nothing comes any more; what is in the queue is still good."""
        self.proved = False
        """Whether the server has answered a request of this feed."""
        self.forbidden: str | None = None
        """What this user may not do and the feed needs."""
        self.confirmed = 0
        """Number of the last acks the server has confirmed."""
        self.look_seen: tuple[int, dict[str, Any]] | None = None
        """What `look` was given, and what the server answered."""
        self._link = link
        self._reading = reading
        self._numbered = reading.durable is None
        self._next = (
            f"{link.settings.js_prefix}.CONSUMER.MSG.NEXT.{reading.stream}.{found.name}".encode()
        )
        self._most = max(PREFETCH_LEAST, PREFETCH_BATCHES * batch_size)
        self._size = _least(self._most // 2, config.get("max_batch", 0))
        # A share must take in the largest message there can be, or nothing would ever come.
        share = max(PREFETCH_BYTES // 2, connection.max_payload + 64 * 1024)
        self._share = _least(share, config.get("max_bytes", 0))
        self._expires = _least(round(EXPIRE_SECONDS * 1e9), config.get("max_expires", 0))
        inbox = connection.new_inbox()
        self._acks = f"{inbox}.ack"
        self._pulls = (_Pull(f"{inbox}.0"), _Pull(f"{inbox}.1"))
        self._received = 0
        self._received_bytes = 0
        self._chunk: list[RawMessage] = []
        self._chunk_bytes = 0
        self._queue: deque[_Chunk] = deque()
        self._heard = time.monotonic()
        self._looking: asyncio.Task[None] | None = None
        # The partition's thread
        self._rest: list[RawMessage] = []
        self._rest_at = 0
        self._rest_arrived = 0.0
        self._taken = 0
        self._taken_bytes = 0
        self._looked = 0.0
        self._hungry = False
        """Whether a pull waits for room; read by the partition's thread, which makes room."""

    def __repr__(self) -> str:
        state = self.ended or "delivering"
        return f"<Feed {self._reading}, consumer {self.found.name}, {self._received - self._taken} queued, {state}>"

    # The link's thread

    async def start(self) -> None:
        """Subscribe and begin to pull.

        :raises ConnectError: when the server forbids it or the connection is lost.
        """
        self._link.listeners.add(self)
        try:
            await self._start()
        except ConnectError:
            if self.forbidden is None:
                raise
        if self.ended is not None:
            raise ConnectError(self.ended)

    async def _start(self) -> None:
        first, second = self._pulls
        connection = self._link.connection
        for pull in self._pulls:
            await connection.subscribe(f"{pull.inbox}.*", partial(self._arrived, pull))
        # The second is half the first, so that they never end together and the server always has
        # one to serve.
        self._pull(first, self._size)
        self._pull(second, max(1, self._size // 2))
        # The requests are on their way before this round trip: if they are forbidden, that is known
        # when it ends.
        await connection.subscribe(f"{self._acks}.*", self._ack_confirmed)

    async def drain(self) -> None:
        """Ask for nothing more, and wait for what is on its way."""
        self.ended = "closed"
        for pull in self._pulls:
            await self._link.connection.drain(f"{pull.inbox}.*")

    def end(self, reason: str) -> None:
        """Nothing is taken from the server any more."""
        self._flush()  # before anybody is told
        if self.ended is None:
            self.ended = reason
        self._link.listeners.discard(self)
        if self._looking is not None:
            self._looking.cancel()
        for inbox in (*(pull.inbox for pull in self._pulls), self._acks):
            self._link.connection.unsubscribe(f"{inbox}.*")

    def hand_over(self) -> None:
        """Let the partition have what the last read brought, and ask for more."""
        if self._chunk:
            self._flush()
            self.pull()

    def _flush(self) -> None:
        if not self._chunk:
            return
        self.proved = True
        self._heard = time.monotonic()
        self._received += len(self._chunk)
        self._received_bytes += self._chunk_bytes
        self._queue.append(_Chunk(self._chunk, self._chunk_bytes, self._heard))
        self._chunk, self._chunk_bytes = [], 0

    def pull(self) -> None:
        """Make each request for which there is room."""
        waiting = self._received - self._taken + sum(pull.left for pull in self._pulls)
        size = (
            self._received_bytes
            - self._taken_bytes
            + sum(pull.room for pull in self._pulls if pull.left)
        )
        hungry = False
        for pull in self._pulls:
            if pull.left or self.ended is not None:
                continue
            if waiting + self._size <= self._most and size + self._share <= 2 * self._share:
                self._pull(pull, self._size)
                waiting += self._size
                size += self._share
            else:
                hungry = True
        self._hungry = hungry

    def _pull(self, pull: _Pull, count: int) -> None:
        pull.number += 1
        pull.reply = f"{pull.inbox}.{pull.number}".encode()
        pull.left, pull.room = count, self._share
        beat = min(round(HEARTBEAT_SECONDS * 1e9), self._expires // 2)
        body = json.dumps(
            {
                "batch": count,
                "max_bytes": self._share,
                "expires": self._expires,
                "idle_heartbeat": beat,
            }
        ).encode()
        frame = b"PUB %s %s %d\r\n%s\r\n" % (self._next, pull.reply, len(body), body)
        self._link.connection.write(frame)

    def _arrived(
        self, pull: _Pull, subject: bytes, reply: bytes, header: bytes | None, payload: bytes
    ) -> None:
        if not reply:
            if subject == pull.reply:
                self._status(pull, header or b"")
            return
        size = len(payload) + (len(header) if header else 0)
        pull.left -= 1
        pull.room -= size
        self._chunk_bytes += size
        self._chunk.append((subject, reply, header, payload))

    def _status(self, pull: _Pull, header: bytes) -> None:
        self._heard = time.monotonic()
        if header.startswith(HEARTBEAT):
            self.proved = True
            last = LAST_CONSUMER(header)
            # A durable's numbers count what others were sent too.
            if (
                self._numbered
                and last is not None
                and int(last[1]) != self._received + len(self._chunk)
            ):
                self.end(NOT_ALL_ARRIVED)
        elif COMPLETED(header):
            if pull.left:
                self.end(NOT_ALL_ARRIVED)
        elif REQUEST_ENDS(header) and (
            pull.room < self._share or not header.startswith(b"NATS/1.0 409")
        ):
            pull.left = 0
            self._flush()
            self.pull()
        else:
            said = header[9:].partition(b"\r\n")[0].decode("utf-8", "replace")
            self.end(f"the server said: {said}")

    def check_silence(self, now: float) -> None:
        """End when an open request has brought neither messages nor heartbeats."""
        if now - self._heard > SILENCE_SECONDS and any(pull.left for pull in self._pulls):
            self.end(f"the server was silent for {now - self._heard:.1f} s")

    def denied(self, message: str) -> None:
        """End when what this user may not do is ours."""
        if f".{self._reading.stream}.{self.found.name}".lower() in message.lower():
            self.forbidden = f"{message}: allow this user to use that subject"
            self.end(self.forbidden)

    def _ack_confirmed(
        self, subject: bytes, reply: bytes, header: bytes | None, payload: bytes
    ) -> None:
        number = subject[len(self._acks) + 1 :]
        if not header and number.isdigit():  # a header says that nobody took the ack
            self.confirmed = max(self.confirmed, int(number))

    async def _look(self, token: int) -> None:
        # Without an answer the partition asks again; a connection that is lost ends the feed.
        with contextlib.suppress(ConnectError, JetStreamApiError):
            request = f"CONSUMER.INFO.{self._reading.stream}.{self.found.name}"
            self.look_seen = (token, await self._link.connection.request(request))

    def _start_look(self, token: int) -> None:
        if self.ended is None and (self._looking is None or self._looking.done()):
            self._looking = self._link.loop.create_task(self._look(token), name="jetstream-look")

    # The partition's thread

    def take(self, limit: int) -> tuple[list[RawMessage], float]:
        """Up to so many messages, and when the first of them arrived; never waits."""
        taken: list[RawMessage] = []
        arrived = self._rest_arrived
        while len(taken) < limit:
            if self._rest_at == len(self._rest):
                if not self._queue:
                    break
                self._rest, size, self._rest_arrived = self._queue.popleft()
                self._rest_at = 0
                self._taken_bytes += size
            if not taken:
                arrived = self._rest_arrived
            part = self._rest[self._rest_at : self._rest_at + limit - len(taken)]
            taken += part
            self._rest_at += len(part)
        self._taken += len(taken)
        # Also when there was nothing: the other thread may have been about to say that it is
        # hungry.
        if self._hungry:
            self._hungry = False
            self._link.loop.call(self.pull)
        return taken, arrived

    def left(self) -> list[bytes]:
        """Reply subjects of what was never taken; for the end, when the partition takes nothing any
        more.
        """
        chunks = [self._rest[self._rest_at :], *(chunk.messages for chunk in self._queue)]
        return [reply for messages in chunks for _, reply, _, _ in messages]

    def look(self, token: int) -> None:
        """Ask the server how far the consumer is, not too often; the answer comes to `look_seen`."""
        now = time.monotonic()
        if now - self._looked > LOOK_SECONDS:
            self._looked = now
            self._link.loop.call(partial(self._start_look, token))

    def ack(self, number: int, replies: list[bytes]) -> None:
        """Acknowledge in one write; the server confirms the last, and with it all of them."""
        last = b" %s.%d 4\r\n+ACK\r\n" % (self._acks.encode(), number)
        self.write(b"PUB " + b" 4\r\n+ACK\r\nPUB ".join(replies) + last)

    def write(self, data: bytes) -> None:
        """Have protocol bytes written; they are lost when the connection is."""
        self._link.loop.call(partial(self._link.connection.write, data))


def _least(ours: int, theirs: int) -> int:
    """The smaller of two limits, the server's being 0 or absent for none."""
    return min(ours, theirs) if theirs > 0 else ours

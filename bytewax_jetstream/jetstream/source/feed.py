"""`Feed`: pull requests, heartbeats and messages of one consumer; acks until confirmed.

A feed lasts while no message can be missing. It ends when its connection or its consumer is gone,
when the server is silent, or when a message that the server sent has not arrived. Messages that
arrived before the end are still good. Then the partition has its reader open the next feed at its
position, because only the partition knows what it has emitted.

The methods run on the shared connection's thread, except those under "The partition's thread". The
two threads share a deque and a few attributes, each written by one of them, and never wait for each
other.
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
from ..message import RawMessage, parse_pending
from .prefetch import FIRST_BYTES
from .reading import Found, Reading
from .shared_connection import SharedConnection

__all__ = ["Feed"]

PREFETCH_BATCHES = 4
"""How many batches a partition may hold or have requested."""
PREFETCH_LEAST = 256
EXPIRE_SECONDS = 30.0
"""A pull request that is not filled by then ends, and the next one follows."""
LARGE_EXPIRE = 2_000_000_000
"""The nanoseconds after which a request for one large message ends: others may wait for theirs."""
HEARTBEAT_SECONDS = 2.0
SILENCE_SECONDS = 2.5 * HEARTBEAT_SECONDS
LOOK_SECONDS = 0.05

LAST_CONSUMER = re.compile(rb"Nats-Last-Consumer: (\d+)").search
# These end one request, and the server goes on with the next: timeout, no messages, no bytes left.
REQUEST_ENDS = re.compile(rb"NATS/1\.0 (408|404|409 Message Size Exceeds MaxBytes)").match
COMPLETED = re.compile(rb"NATS/1\.0 409 Batch Completed").match
NOT_ALL_ARRIVED = "the server has sent messages that did not arrive"
HEARTBEAT = b"NATS/1.0 100"


class _Pull:
    """One of a feed's two pull requests; its messages come to its own inbox."""

    __slots__ = ("asked", "held", "inbox", "is_large", "left", "number", "reply", "room")

    def __init__(self, inbox: str) -> None:
        self.inbox = inbox
        self.number = 0
        self.reply = b""
        """Where the server reports on the last request; a report on an earlier one is ignored."""
        self.left = 0
        """How many requested messages have not arrived."""
        self.room = 0
        """How many requested bytes have not arrived."""
        self.asked = 0
        """How many bytes the last request asked for."""
        self.held = 0
        """How many bytes the open request holds of the budget; 0 if none is open."""
        self.is_large = False
        """Whether it asks for a single message, of any size."""


class _Chunk(NamedTuple):
    """The messages of one read from the socket."""

    messages: list[RawMessage]
    size: int
    arrived: float


class Feed:
    """Delivers one consumer's messages in order, from its first pull request to its end."""

    def __init__(
        self, shared: SharedConnection, reading: Reading, found: Found, batch_size: int
    ) -> None:
        connection = shared.connection
        config = found.config
        self.found = found
        self.ended: str | None = None
        """Why it ended; what is in the queue is still good."""
        self.proved = False
        """Whether the server has answered a request of this feed."""
        self.forbidden: str | None = None
        """What the feed needs and the server denied."""
        self.confirmed = 0
        """Number of the last acks that the server has confirmed."""
        self.look_seen: tuple[int, dict[str, Any]] | None = None
        """The token given to `look`, and the server's answer."""
        self._shared = shared
        self._reading = reading
        self._numbered = reading.durable is None
        self._next = (
            f"{shared.settings.js_prefix}.CONSUMER.MSG.NEXT.{reading.stream}.{found.name}".encode()
        )
        self._most = max(PREFETCH_LEAST, PREFETCH_BATCHES * batch_size)
        self._size = _least(self._most // 2, config.get("max_batch", 0))
        self._most_bytes = config.get("max_bytes", 0)
        self._prefetch = shared.prefetch
        self._grown = FIRST_BYTES
        """How many bytes a request may have; it doubles while that is what ends them."""
        self._large_left = 0
        """How many messages are known to wait while the next of them is larger than this
        partition's share; 0 if that is not known.
        """
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
        """Whether a pull request waits for room, which the partition's thread makes."""

    def __repr__(self) -> str:
        state = self.ended or "delivering"
        queued = self._received - self._taken
        return f"<Feed {self._reading}, consumer {self.found.name}, {queued} queued, {state}>"

    # The shared connection's thread

    async def start(self) -> None:
        """Subscribe and begin to pull.

        :raises ConnectError: when the server denies it, or the connection is lost.
        """
        self._shared.listeners.add(self)
        try:
            await self._start()
        except ConnectError:
            if self.forbidden is None:
                raise
        if self.ended is not None:
            raise ConnectError(self.ended, broker="jetstream", seconds=0.0)

    async def _start(self) -> None:
        first, second = self._pulls
        connection = self._shared.connection
        for pull in self._pulls:
            await connection.subscribe(f"{pull.inbox}.*", partial(self._arrived, pull))
        # The second asks for half as many, so that they never end together and the server always
        # has a request to fill.
        self._pull(first, self._size)
        self._pull(second, max(1, self._size // 2))
        # The server answers in order: after this round trip, a denial of the pull requests has
        # arrived too.
        await connection.subscribe(f"{self._acks}.*", self._ack_confirmed)

    async def drain(self) -> None:
        """Request nothing more, and wait for the messages on their way."""
        self.ended = "closed"
        for pull in self._pulls:
            await self._shared.connection.drain(f"{pull.inbox}.*")

    def end(self, reason: str) -> None:
        """Take no more messages from the server."""
        self._flush()  # first, because the partition takes the queue when it sees `ended`
        if self.ended is None:
            self.ended = reason
        self._shared.listeners.discard(self)
        for pull in self._pulls:
            self._close_request(pull)
        if self._looking is not None:
            self._looking.cancel()
        for inbox in (*(pull.inbox for pull in self._pulls), self._acks):
            self._shared.connection.unsubscribe(f"{inbox}.*")

    def hand_over(self) -> None:
        """Queue the messages of the last read for the partition, and request more."""
        if self._chunk:
            self._shared.connection.proved_useful = True
            self._flush()
            self.pull()

    def _flush(self) -> None:
        if not self._chunk:
            return
        self.proved = True
        self._heard = time.monotonic()
        self._shared.active()
        self._received += len(self._chunk)
        self._received_bytes += self._chunk_bytes
        self._queue.append(_Chunk(self._chunk, self._chunk_bytes, self._heard))
        self._chunk, self._chunk_bytes = [], 0

    def pull(self) -> None:
        """Make each pull request for which there is room."""
        waiting = self._received - self._taken + sum(pull.left for pull in self._pulls)
        size = (
            self._received_bytes
            - self._taken_bytes
            + sum(pull.room for pull in self._pulls if pull.left)
        )
        share = self._share
        hungry = False
        for pull in self._pulls:
            if pull.left or self.ended is not None:
                continue
            if self._large_left:
                if sum(bool(other.held) and other.is_large for other in self._pulls) >= (
                    self._large_left
                ):
                    continue  # a request that nothing answers would keep others from theirs
                if waiting and (waiting >= self._most or size > share):
                    hungry = True
                elif held := self._prefetch.request_large(self.pull):
                    pull.held, pull.is_large = held, True
                    self._request(pull, 1, _least(held, self._most_bytes))
                    waiting += 1
                    size += pull.asked
            elif waiting + self._size <= self._most and size + share <= 2 * share:
                self._pull(pull, self._size)
                waiting += self._size
                size += share
            else:
                hungry = True
        self._hungry = hungry

    @property
    def _share(self) -> int:
        return _least(min(self._grown, self._prefetch.share), self._most_bytes)

    def _pull(self, pull: _Pull, count: int) -> None:
        share = self._share
        self._prefetch.request(share)
        pull.held, pull.is_large = share, False
        self._request(pull, count, share)

    def _request(self, pull: _Pull, count: int, size: int) -> None:
        pull.number += 1
        pull.reply = f"{pull.inbox}.{pull.number}".encode()
        pull.left = count
        pull.asked = pull.room = size
        expires = min(self._expires, LARGE_EXPIRE) if pull.is_large else self._expires
        beat = min(round(HEARTBEAT_SECONDS * 1e9), expires // 2)
        body = json.dumps(
            {
                "batch": count,
                "max_bytes": size,
                "expires": expires,
                "idle_heartbeat": beat,
            }
        ).encode()
        frame = b"PUB %s %s %d\r\n%s\r\n" % (self._next, pull.reply, len(body), body)
        self._shared.connection.write(frame)
        self._shared.active()

    def _close_request(self, pull: _Pull) -> None:
        """Give the bytes of an answered request back to the budget."""
        held, pull.held, pull.left = pull.held, 0, 0
        if held and pull.is_large:
            self._prefetch.end_large(held)
        elif held:
            self._prefetch.end(held)

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
        if pull.is_large:
            # The next one is probably as large, unless this one is small.
            self._large_left = parse_pending(reply) if size > self._share else 0
        if pull.left <= 0:
            self._close_request(pull)

    def _status(self, pull: _Pull, header: bytes) -> None:
        self._heard = time.monotonic()
        if header.startswith(HEARTBEAT):
            self.proved = True
            last = LAST_CONSUMER(header)
            # The numbers of a durable consumer also count messages that others received.
            if (
                self._numbered
                and last is not None
                and int(last[1]) != self._received + len(self._chunk)
            ):
                self.end(NOT_ALL_ARRIVED)
        elif COMPLETED(header):
            if pull.left:
                self.end(NOT_ALL_ARRIVED)
        elif REQUEST_ENDS(header) and self._may_request_again(pull, header):
            self._close_request(pull)
            self._flush()
            self.pull()
        else:
            said = header[9:].partition(b"\r\n")[0].decode("utf-8", "replace")
            self.end(f"the server said: {said}")

    def _may_request_again(self, pull: _Pull, header: bytes) -> bool:
        """Whether another request can bring more; adapts its size if the bytes did not suffice."""
        if not header.startswith(b"NATS/1.0 409"):
            if pull.is_large:
                self._large_left = 0
            return True
        brought = pull.room < pull.asked
        if not brought and pull.is_large:
            return False
        if self._grown < self._prefetch.share:
            self._grown *= 2
        elif not brought:
            self._large_left = max(1, self._large_left)
        return True

    def check_silence(self, now: float) -> None:
        """End when an open request has brought neither messages nor heartbeats."""
        if now - self._heard > SILENCE_SECONDS and any(pull.left for pull in self._pulls):
            self.end(f"the server was silent for {now - self._heard:.1f} s")

    def untaken_since(self) -> float | None:
        """When the first of the messages arrived that wait to be taken."""
        if self._rest_at < len(self._rest):
            return self._rest_arrived
        chunks = tuple(self._queue)  # a copy, because the partition's thread takes from it
        return chunks[0].arrived if chunks else None

    def untaken(self) -> list[bytes]:
        """Reply subjects of the messages that wait to be taken; some may be taken meanwhile."""
        messages = self._rest[self._rest_at :]
        for chunk in tuple(self._queue):
            messages += chunk.messages
        return [reply for _, reply, _, _ in messages]

    def denied(self, message: str) -> None:
        """End if the denied subject is one that this feed needs."""
        if f".{self._reading.stream}.{self.found.name}".lower() in message.lower():
            self.forbidden = f"{message}: allow this user to use that subject"
            self.end(self.forbidden)

    def _ack_confirmed(
        self, subject: bytes, reply: bytes, header: bytes | None, payload: bytes
    ) -> None:
        number = subject[len(self._acks) + 1 :]
        # A header would say that nobody received the ack.
        if not header and number.isdigit():
            self.confirmed = max(self.confirmed, int(number))

    async def _look(self, token: int) -> None:
        # Without an answer the partition asks again; a lost connection ends the feed.
        with contextlib.suppress(ConnectError, JetStreamApiError):
            request = f"CONSUMER.INFO.{self._reading.stream}.{self.found.name}"
            self.look_seen = (token, await self._shared.connection.request(request))

    def _start_look(self, token: int) -> None:
        if self.ended is None and (self._looking is None or self._looking.done()):
            self._looking = self._shared.loop.create_task(self._look(token), name="jetstream-look")

    # The partition's thread

    @property
    def queued(self) -> int:
        """How many messages have arrived and wait to be taken. For any thread."""
        return max(0, self._received - self._taken)

    def take(self, limit: int) -> tuple[list[RawMessage], float]:
        """Up to this many messages, and when the first of them arrived; never waits."""
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
        # Even if nothing was taken: the other thread may have set `_hungry` after the last look.
        if self._hungry:
            self._hungry = False
            self._shared.loop.call(self.pull)
        return taken, arrived

    def left(self) -> list[bytes]:
        """Reply subjects of the messages that were never taken; for the partition's end."""
        chunks = [self._rest[self._rest_at :], *(chunk.messages for chunk in self._queue)]
        return [reply for messages in chunks for _, reply, _, _ in messages]

    def look(self, token: int) -> None:
        """Ask the server how far the consumer is, at most every 50 ms; see `look_seen`."""
        now = time.monotonic()
        if now - self._looked > LOOK_SECONDS:
            self._looked = now
            self._shared.loop.call(partial(self._start_look, token))

    def ack(self, number: int, replies: list[bytes]) -> None:
        """Acknowledge in one write; when the server confirms the last ack, it has all of them."""
        last = b" %s.%d 4\r\n+ACK\r\n" % (self._acks.encode(), number)
        self.write(b"PUB " + b" 4\r\n+ACK\r\nPUB ".join(replies) + last)

    def write(self, data: bytes) -> None:
        """Write protocol bytes; if the connection is lost, they are lost too."""
        self._shared.loop.call(partial(self._shared.connection.write, data))


def _least(ours: int, theirs: int) -> int:
    """The smaller of two limits; the server's is 0 or -1 if there is none."""
    return min(ours, theirs) if theirs > 0 else ours

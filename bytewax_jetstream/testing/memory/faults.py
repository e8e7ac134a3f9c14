"""`Faults`: delays, silence, lost requests and answers of the broker in memory, by seed."""

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from typing import Protocol

from ...envelope import Envelope
from ...publishing import Refusal

__all__ = ["Faults", "Reachable"]


class Reachable(Protocol):
    """A connection, as far as faults concern it; all but `loop` is used on its loop's thread."""

    loop: asyncio.AbstractEventLoop

    def look(self) -> None:
        """Deliver the answers that are due."""

    def connect(self) -> None:
        """Connect again, unless it is connected or the broker is down."""

    def reset(self, reason: str) -> None:
        """Lose the connection, and the answers on it."""

    def fail(self, reason: str) -> None:
        """Fail for good."""


class Faults:
    """The faults of one broker, all of them off at first; each may be changed at any moment, from
    any thread.

    :arg seed: Decides which messages and answers are lost, by event id and attempt.
    """

    refuses: Callable[[Envelope], Refusal | None]
    """What the broker answers instead of storing a message; None to store it. Called on the pool's
    thread for each attempt that would be stored; it must not block. What it raises ends the pool's
    thread, and so the run, with `PoolClosedError`."""
    loses_requests: float
    """The share of messages that never reach the broker: not stored, not answered. With 1.0 it is
    silent and stores nothing."""
    loses_answers: float
    """The share of answers that never reach the publisher: the message is stored. With 1.0 the
    broker stores everything and is silent."""

    def __init__(self, seed: int) -> None:
        self.refuses = lambda envelope: None
        self.loses_requests = 0.0
        self.loses_answers = 0.0
        self.lost_requests = 0
        """How many messages were lost on their way to the broker."""
        self.lost_answers = 0
        """How many answers were lost by `loses_answers`."""
        self._seed = seed
        self._delay = 0.0
        self._is_down = False
        self._lock = threading.Lock()
        self._asked: Counter[tuple[str, str]] = Counter()
        self._connections: list[Reachable] = []

    @property
    def delay(self) -> float:
        """Seconds between storing a message and its answer; infinity holds answers back until it
        is set to less. Also those that are on their way take the new time.
        """
        return self._delay

    @delay.setter
    def delay(self, seconds: float) -> None:
        if type(seconds) not in (int, float) or not seconds >= 0:
            raise ValueError(f"delay is {seconds!r}: give seconds, 0 or more")
        self._delay = seconds
        self._each(lambda connection: connection.look())

    @property
    def is_down(self) -> bool:
        """Whether the broker takes no connections."""
        return self._is_down

    def reset(self) -> None:
        """Reset every connection: answers that are on their way are lost. Publishers connect again
        soon.
        """
        self._each(lambda connection: connection.reset("the broker reset the connection"))

    def go_down(self) -> None:
        """Reset every connection, and take none until `come_up`; what is stored stays.

        A lane that is opened meanwhile raises `ConnectError`.
        """
        self._is_down = True
        self._each(lambda connection: connection.reset("the broker is down"))

    def come_up(self) -> None:
        """Take connections again; publishers connect at once."""
        self._is_down = False
        self._each(lambda connection: connection.connect())

    def fail(self, reason: str) -> None:
        """Have every publisher fail for good, as a client library does that cannot go on: whatever
        is unsettled, or submitted later, is unknown.
        """
        self._each(lambda connection: connection.fail(reason))

    # For the publishers

    def loses_request(self, event_id: str) -> bool:
        """Whether another attempt never reaches the broker."""
        lost = self._is_down or self._happens(self.loses_requests, "request", event_id)
        self.lost_requests += lost
        return lost

    def loses_answer(self, event_id: str) -> bool:
        """Whether another answer never reaches the publisher."""
        lost = self._happens(self.loses_answers, "answer", event_id)
        self.lost_answers += lost
        return lost

    def join(self, connection: Reachable) -> None:
        """A publisher has connected."""
        with self._lock:
            self._connections.append(connection)

    def leave(self, connection: Reachable) -> None:
        """A publisher is closed, or has failed."""
        with self._lock, contextlib.suppress(ValueError):  # it had never connected
            self._connections.remove(connection)

    def _happens(self, share: float, what: str, event_id: str) -> bool:
        # Decided by message and attempt, not by the order of questions, which threads decide.
        with self._lock:
            self._asked[what, event_id] += 1
            attempt = self._asked[what, event_id]
        if not share:
            return False
        key = repr((self._seed, what, event_id, attempt)).encode()
        return int.from_bytes(blake2b(key, digest_size=4).digest()) < share * 2**32

    def _each(self, happen: Callable[[Reachable], None]) -> None:
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(RuntimeError):  # its pool's loop has ended
                connection.loop.call_soon_threadsafe(happen, connection)

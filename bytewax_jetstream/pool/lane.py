"""Lanes, through which producers reach the pool, and the budget that holds them back."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from ..dispatch.flight import LaneQueue
from ..dispatch.segment import places_by_aggregate, size_of
from ..envelope import Envelope, PublishResult
from ..errors import PoolClosedError, SettleTimeoutError
from ..publishing.publisher import Publisher
from ..settings import PoolSettings
from .results import Delivery

__all__ = ["PIECE", "Budget", "Lane"]

PIECE = 1_000
"""Messages a lane hands over at once: large enough that the hand-off costs nothing, small beside
the budget.
"""
SLICE = 0.1
"""Seconds a producer waits before it looks up again, so that signals and a dead pool are noticed.
"""


class Pool(Protocol):
    """What a lane asks of its pool."""

    budget: "Budget"
    settings: PoolSettings

    def hand_over(
        self, link: Any, lane: LaneQueue, envelopes: Sequence[Envelope], epoch: int
    ) -> None: ...

    def check(self, *, settling: bool = False) -> None: ...

    def release(self, lane: "Lane") -> None: ...


class Budget:
    """How many messages and bytes may be unsettled; whoever would exceed it waits.

    Given back by the pool's own thread when an envelope is settled, whether or not anybody has
    collected the result: so no step can block another step of its thread.
    """

    def __init__(self, messages: int, size: int) -> None:
        self.messages, self.bytes = messages, size
        self.used_messages = self.used_bytes = 0
        self.stalls = 0
        self._changed = threading.Condition()
        self._released = 0

    def acquire(self, messages: int, size: int, lane: "Lane", patience: float) -> None:
        """Wait for room; a piece larger than the whole budget goes when nothing else is out.

        :raises SettleTimeoutError: when nothing at all was settled for `patience` seconds.
        """
        with self._changed:
            if self._fits(messages, size):
                self._take(messages, size)
                return
            self.stalls += 1
            released, since = self._released, time.monotonic()
            while not self._fits(messages, size):
                lane.check()
                self._changed.wait(SLICE)
                if self._released != released:
                    released, since = self._released, time.monotonic()
                elif time.monotonic() - since > patience:
                    raise SettleTimeoutError(
                        f"the budget of {self.messages} messages is spent and nothing was settled for "
                        f"{patience:g} s: see whether the broker answers"
                    )
            self._take(messages, size)

    def release(self, messages: int, size: int) -> None:
        """Give room back."""
        with self._changed:
            self.used_messages -= messages
            self.used_bytes -= size
            self._released += 1
            self._changed.notify_all()

    def _fits(self, messages: int, size: int) -> bool:
        return not self.used_messages or (
            self.used_messages + messages <= self.messages and self.used_bytes + size <= self.bytes
        )

    def _take(self, messages: int, size: int) -> None:
        self.used_messages += messages
        self.used_bytes += size


Piece = tuple[Sequence[Envelope], int]
"""Envelopes that are handed over at once, and their payload bytes."""


def _pieces(envelopes: Sequence[Envelope], most: int, most_bytes: int) -> Iterator[Piece]:
    """Not more than that, or one that is larger."""
    start = 0
    while start < len(envelopes):
        piece = envelopes[start : start + most]
        size = sum(map(size_of, piece))
        while len(piece) > 1 and size > most_bytes:
            piece = piece[: len(piece) // 2]
            size = sum(map(size_of, piece))
        start += len(piece)
        yield piece, size


def _groups_apart(envelopes: Sequence[Envelope], most: int, most_bytes: int) -> Iterator[Piece]:
    """Likewise, with all of an aggregate in one piece, behind its first: they are stored all or
    none.
    """
    piece: list[Envelope] = []
    size = 0
    for places in places_by_aggregate(envelopes):
        group = [envelopes[place] for place in places]
        group_size = sum(map(size_of, group))
        if piece and (len(piece) + len(group) > most or size + group_size > most_bytes):
            yield piece, size
            piece, size = [], 0
        piece += group
        size += group_size
    if piece:
        yield piece, size


class Lane:
    """An ordered queue into the pool, for one thread to fill and to collect from.

    Whatever it accepts ends in exactly one `PublishResult`. A full budget blocks `submit`; nothing
    is ever dropped. A lane outlives neither its pool nor a fork.
    """

    def __init__(
        self,
        pool: Pool,
        link: Any,
        publisher: Publisher,
        name: str,
        worker: int,
        deadline: Callable[[], float],
    ) -> None:
        self.name = name
        self.worker = worker
        self.queue = LaneQueue(self)
        self._pool = pool
        self.link = link
        """The pool's own; passed through."""
        self._publisher = publisher
        self._cut = _groups_apart if publisher.policy.atomic else _pieces
        self._mailbox: deque[Delivery] = deque()
        self._news = threading.Condition()
        self._unsettled = 0
        self._stop_reason: str | None = None
        self._deadline = deadline
        self._closed = False

    def __repr__(self) -> str:
        return f"<Lane {self.name!r}, {self._unsettled} unsettled, {len(self._mailbox)} mails>"

    @property
    def unsettled(self) -> int:
        """How many accepted envelopes have no result yet."""
        return self._unsettled

    @property
    def stop_reason(self) -> str | None:
        """Why a dataflow must not commit: a result that is unknown, or refused for a reason that
        concerns all.
        """
        return self._stop_reason

    def submit(self, envelopes: Sequence[Envelope], *, epoch: int = 0) -> None:
        """Hand envelopes to the pool, in order; returns when all are accepted, before any is
        published.

        Blocks while the budget is spent. A bad envelope is accepted and becomes a rejected result.

        :raises PoolClosedError: when the lane is closed, or the pool is draining, closed, dead or
        of another process.
        :raises SettleTimeoutError: when the budget stays spent for longer than a delivery may take.
        """
        budget, patience = self._pool.budget, self._pool.settings.delivery_timeout + 10
        for piece, size in self._cut(
            envelopes, min(PIECE, max(1, budget.messages // 2)), budget.bytes // 2
        ):
            self.check()
            budget.acquire(len(piece), size, self, patience)
            with self._news:
                self._unsettled += len(piece)
            self._pool.hand_over(self.link, self.queue, piece, epoch)

    def collect(self) -> list[PublishResult]:
        """Take the results that are there, without waiting."""
        results: list[PublishResult] = []
        for delivery in self.take():
            results += delivery.oks
            results += delivery.errs
        return results

    def take(self) -> list[Delivery]:
        """Take the results that are there, as they were settled, without waiting."""
        mailbox = self._mailbox
        return [mailbox.popleft() for _ in range(len(mailbox))]

    def wait(self, below: int, until: float) -> bool:
        """Wait until fewer than `below` envelopes are unsettled; False at `until`
        (`time.monotonic`).

        :raises PoolClosedError: when the pool cannot settle them any more.
        """
        hurry = self._publisher.hurry
        while True:
            with self._news:
                if self._unsettled < below:
                    return True
            again = hurry()  # without the lock, which whoever settles has to take
            with self._news:
                if self._unsettled < below:
                    return True
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._pool.check(settling=True)
                self._check_deadline()
                self._news.wait(min(left, SLICE, again))

    def flush(self, timeout: float | None = None) -> list[PublishResult]:
        """Wait until nothing is unsettled, and take all results: the barrier.

        :arg timeout: Seconds; default a delivery timeout and an ack timeout, by when all is
        settled.
        :raises SettleTimeoutError: when something is still unsettled then.
        """
        settings = self._pool.settings
        seconds = (
            settings.delivery_timeout + settings.ack_timeout + 1 if timeout is None else timeout
        )
        if not self.wait(1, time.monotonic() + seconds):
            raise SettleTimeoutError(
                f"{self._unsettled} envelopes of lane {self.name} are not settled after {seconds:g} s: "
                "see whether the broker answers; they are published again when the epoch is replayed"
            )
        return self.collect()

    def check(self) -> None:
        """Raise when nothing can be submitted any more."""
        if self._closed:
            raise PoolClosedError(f"lane {self.name} is closed: open another")
        self._check_deadline()
        self._pool.check()

    def _check_deadline(self) -> None:
        if time.monotonic() > self._deadline():
            raise SettleTimeoutError(
                f"{self._unsettled} envelopes of lane {self.name} are not settled in time: see whether the broker "
                "answers; they are published again when the epoch is replayed"
            )

    def close(self) -> None:
        """Leave the pool, without waiting; never raises. Whatever is unsettled becomes unknown:
        flush first.
        """
        if not self._closed:
            self._closed = True
            self._pool.release(self)

    def deliver(self, delivery: Delivery, stop_reason: str | None) -> None:
        """Called by an ACK worker with what it has settled."""
        with self._news:
            if stop_reason is not None and self._stop_reason is None:
                self._stop_reason = (
                    stop_reason  # before anybody can take the results, to pass them on
                )
            self._mailbox.append(delivery)
            self._unsettled -= len(delivery.oks) + len(delivery.errs)
            self._news.notify_all()

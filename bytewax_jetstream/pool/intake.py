"""`Intake`: how envelopes get from the producers' threads to the pool's thread."""

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

from ..dispatch import LaneQueue
from ..envelope import Envelope
from ..errors import PoolClosedError
from ..loop_thread import LoopThread
from ..settings import PoolSettings
from .budget import Budget
from .shared_publisher import SharedPublisher

__all__ = ["LARGEST_SUBMISSION", "Intake", "PoolState"]

LARGEST_SUBMISSION = 1_000
"""Messages a lane hands over at once: large enough that the hand-over costs nothing, small beside
the budget."""
MOST_AT_ONCE = 4_000
"""Messages the pool's thread accepts before it reads answers again."""


class PoolState(StrEnum):
    """What an `AckPool` does: only a running one takes envelopes."""

    NEW = "new"
    RUNNING = "running"
    DRAINING = "draining"
    CLOSED = "closed"


class _HandedOver(NamedTuple):
    publisher: SharedPublisher
    queue: LaneQueue
    envelopes: Sequence[Envelope]
    epoch: int
    seen: int
    """How many unknown results of its lane the caller had collected."""
    at: float
    """When the caller handed it over."""


class Intake:
    """What lanes hand over, until the pool's thread accepts it; and whether the pool takes more.

    :arg thread: The pool's thread.
    :arg look: Run on that thread when something was handed over while it was idle.
    """

    def __init__(
        self, settings: PoolSettings, thread: LoopThread, look: Callable[[], None]
    ) -> None:
        self.settings = settings
        self.budget = Budget(settings.budget_messages, settings.budget_bytes)
        self.state = PoolState.NEW
        """The pool's; changed by the pool alone."""
        self._thread = thread
        self._look = look
        self._pid = os.getpid()
        self._handed_over: deque[_HandedOver] = deque()
        self._looking = False
        """Whether the pool's thread will look in here by itself."""

    def __len__(self) -> int:
        return len(self._handed_over)

    @property
    def is_own_process(self) -> bool:
        """Whether this is the process that made the pool."""
        return self._pid == os.getpid()

    @property
    def takes_calls(self) -> bool:
        """Whether the pool's thread still does what other threads ask of it."""
        return self.state is PoolState.RUNNING and self.is_own_process

    def check(self, *, settling: bool = False) -> None:
        """Raise when the pool takes nothing any more or, with `settling`, cannot even settle what
        it has.

        :raises PoolClosedError: with the reason.
        """
        working = self.state is PoolState.RUNNING or (settling and self.state is PoolState.DRAINING)
        if working and self._thread.crash is None and self.is_own_process:
            return
        if not self.is_own_process:
            raise PoolClosedError(
                f"this pool belongs to process {self._pid}: make a new one after a fork",
                process=self._pid,
            )
        if self._thread.crash is not None:
            raise PoolClosedError(
                f"the pool's thread has died of {self._thread.crash!r}: restart the flow, "
                "the epoch is replayed",
                state=str(self.state),
                thread=self._thread.name,
            ) from self._thread.crash
        raise PoolClosedError(
            f"the pool is {self.state}: it takes no envelopes any more", state=str(self.state)
        )

    def hand_over(
        self,
        publisher: SharedPublisher,
        queue: LaneQueue,
        envelopes: Sequence[Envelope],
        epoch: int,
        seen: int = 0,
    ) -> None:
        """Pass envelopes to the pool's thread, waking it only when it is idle.

        While something is in flight it looks by itself every millisecond, so envelopes that come
        one by one gather to a batch instead of costing a thread switch each.
        """
        at = time.monotonic()
        self._handed_over.append(_HandedOver(publisher, queue, envelopes, epoch, seen, at))
        if not self._looking:
            self._looking = True
            self._thread.call(self._look)

    def oldest(self) -> dict[str, float]:
        """Since when the oldest waits that was handed over and not accepted, for each broker."""
        waiting = list(self._handed_over)  # a copy, because the pool's thread takes from it
        return {each.publisher.publisher.broker: each.at for each in reversed(waiting)}

    # On the pool's thread

    def accept(self) -> bool:
        """Accept what was handed over, up to so much that answers are read in between; returns
        whether there is more.

        Small submissions of one lane and epoch are accepted as one, up to what a lane hands over
        at once: most of what an acceptance costs, it costs once. They then count as handed over
        with the first of them.
        """
        room = MOST_AT_ONCE
        gathered: dict[LaneQueue, tuple[SharedPublisher, list[Envelope], int, int, float]] = {}
        while self._handed_over and room > 0:
            publisher, queue, envelopes, epoch, seen, at = self._handed_over.popleft()
            room -= len(envelopes)
            nothing = publisher, list[Envelope](), epoch, seen, at
            _, before, its_epoch, its_seen, its_at = gathered.get(queue, nothing)
            if before and (
                (epoch, seen) != (its_epoch, its_seen)
                or not publisher.gathers
                or len(before) + len(envelopes) > LARGEST_SUBMISSION
            ):
                publisher.accept(queue, before, its_epoch, its_seen, its_at)
                before, its_at = [], at
            before += envelopes
            gathered[queue] = publisher, before, epoch, seen, its_at
        for queue, (publisher, before, epoch, seen, at) in gathered.items():
            publisher.accept(queue, before, epoch, seen, at)
        return room <= 0

    def accept_all(self) -> None:
        """Accept everything: what was handed over before must not come after an end."""
        while self._handed_over:
            self.accept()

    def go_idle(self) -> bool:
        """From now on a hand-over wakes the pool's thread; False when one has come meanwhile."""
        self._looking = False
        if self._handed_over:  # by a thread that saw that we were looking
            self._looking = True
            return False
        return True

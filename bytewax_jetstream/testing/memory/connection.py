"""`Connection`: between a publisher and the broker in memory; connects, waits, answers later."""

import asyncio
from collections import deque
from collections.abc import Callable

from ...errors import ConnectError
from ...publishing import PublisherEvents
from .faults import Faults

__all__ = ["Answer", "Connection"]

RECONNECT = 0.005
"""Seconds from a reset to the next connection."""

Answer = Callable[[], None]
"""Reports what the broker said."""


class Connection:
    """Carries the broker's answers to a publisher, in order; a reset loses those on their way.

    :arg on_up: Called when the publisher has connected again.
    :arg on_down: Called with the reason when the connection, and what was on it, is lost.
    """

    def __init__(
        self,
        faults: Faults,
        events: PublisherEvents,
        *,
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.is_up = True
        self.resets = 0
        self._faults = faults
        self._events = events
        self._on_up = on_up
        self._on_down = on_down
        self._closed = False
        self._answers: deque[tuple[float, Answer]] = deque()
        """Each with the time at which the broker gave it."""
        self._timer: asyncio.TimerHandle | None = None
        faults.join(self)
        if faults.is_down:  # looked at behind the join, so that no `go_down` is missed
            self.close()
            raise ConnectError("the broker in memory is down: call its come_up() first")

    def answer(self, answer: Answer) -> None:
        """Send an answer on its way, unless there is no connection; it is never delivered before
        this returns.
        """
        if not self.is_up:
            return
        self._answers.append((self.loop.time(), answer))
        if self._timer is None:
            self._wait()

    def look(self) -> None:
        """Deliver the answers that are due."""
        self._stop_waiting()
        answers, last = self._answers, self.loop.time() - self._faults.delay
        due = []
        while answers and answers[0][0] <= last:
            due.append(answers.popleft()[1])
        for answer in due:
            answer()
        self._wait()
        if due:
            self._events.process()

    def later(self, seconds: float, happen: Callable[[], None]) -> None:
        """Have something happen, unless the publisher is closed by then."""
        self.loop.call_later(seconds, self._unless_closed, happen)

    def connect(self) -> None:
        """Connect again, unless it is connected or the broker is down."""
        if not (self.is_up or self._closed or self._faults.is_down):
            self.is_up = True
            self._on_up()

    def reset(self, reason: str) -> None:
        """Lose the connection, and the answers on it."""
        if not self.is_up or self._closed:
            return
        self.is_up = False
        self.resets += 1
        self._stop_waiting()
        self._answers.clear()
        self.later(RECONNECT, self.connect)
        self._on_down(reason)

    def fail(self, reason: str) -> None:
        """Fail for good."""
        if not self._closed:
            self.close()
            self._events.failed(reason)

    def close(self) -> None:
        """Let go of everything; nothing is waited for."""
        self._closed = True
        self.is_up = False
        self._stop_waiting()
        self._answers.clear()
        self._faults.leave(self)

    def _wait(self) -> None:
        self._stop_waiting()
        if self._answers and self._faults.delay != float("inf"):
            due = self._answers[0][0] + self._faults.delay
            self._timer = self.loop.call_at(due, self.look)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _unless_closed(self, happen: Callable[[], None]) -> None:
        if not self._closed:
            happen()

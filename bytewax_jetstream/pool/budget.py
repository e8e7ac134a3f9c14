"""The budget: how many messages and bytes may be unsettled, over all lanes and brokers."""

import threading
import time
from collections.abc import Callable

from ..errors import SettleTimeoutError

__all__ = ["Budget"]

SLICE = 0.1
"""Seconds a producer waits before it looks again, to notice signals and a dead pool."""


class Budget:
    """Blocks a producer that would exceed it, and never drops anything.

    It is given back by the pool's own thread when an envelope is settled, whether or not anybody
    has collected the result: so no step can block another step of its thread.
    """

    def __init__(self, messages: int, size: int) -> None:
        self.messages, self.bytes = messages, size
        self.used_messages = self.used_bytes = 0
        self.stalls = 0
        """How often a producer had to wait."""
        self._changed = threading.Condition()
        self._released = 0

    def acquire(self, messages: int, size: int, check: Callable[[], None], patience: float) -> None:
        """Wait for room; a piece larger than the whole budget goes when nothing else is unsettled.

        :arg check: Called while waiting; raises when there is no point in waiting any longer.
        :raises SettleTimeoutError: when nothing at all was settled for `patience` seconds.
        """
        with self._changed:
            if self._fits(messages, size):
                self._take(messages, size)
                return
            self.stalls += 1
            released, since = self._released, time.monotonic()
            while not self._fits(messages, size):
                check()
                self._changed.wait(SLICE)
                if self._released != released:
                    released, since = self._released, time.monotonic()
                elif time.monotonic() - since > patience:
                    raise SettleTimeoutError(
                        f"the budget of {self.messages} messages is used up and nothing was "
                        f"settled for {patience:g} s: check that the broker answers",
                        unsettled=self.used_messages,
                        seconds=patience,
                        limit=self.messages,
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

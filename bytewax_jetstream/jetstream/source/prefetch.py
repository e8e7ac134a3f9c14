"""`Prefetch`: how many bytes the partitions of a connection may have requested from the server.

A server cuts a client off as a slow consumer when more than its `max_pending` (64 MB by default)
waits to be sent to it. It tells nobody this limit. So all partitions together keep below half the
default, and after each cut below half of what was requested when it came.

Half of the budget is for ordinary requests, in equal shares, two for each partition. The other half
is for messages that are larger than a share: each is requested by itself.

Everything runs on the shared connection's thread; `partitions` may be set on any.
"""

from collections.abc import Callable

__all__ = ["Prefetch"]

PREFETCH_BYTES = 32 * 1024 * 1024
FIRST_BYTES = 32 * 1024
"""A partition's first request; the next ones double, up to its share."""
LEAST_BYTES = 256 * 1024
"""No cut shrinks the budget further."""
HOLD_SECONDS = 60.0
"""How long a smaller budget stays before it doubles again; longer after each cut."""
LONGEST_HOLD_SECONDS = 6 * 3600.0


class Prefetch:
    """The budget of one connection.

    :arg largest: The size of the largest message that the server takes.
    """

    def __init__(self, largest: Callable[[], int]) -> None:
        self._largest = largest
        self._limit = PREFETCH_BYTES
        self._hold = HOLD_SECONDS
        self._shrunk = 0.0
        self._requested = 0
        self._large = 0
        """How many requests for a single large message are open."""
        self._waiting: list[Callable[[], None]] = []
        self.partitions = 1
        """How many partitions share the budget."""
        self.cuts = 0

    def __repr__(self) -> str:
        return f"<Prefetch {self._requested} of {self._limit} bytes requested, {self.cuts} cuts>"

    @property
    def limit(self) -> int:
        """The budget in bytes."""
        return self._limit

    @property
    def share(self) -> int:
        """The most bytes of one ordinary request."""
        return max(1, self._limit // (4 * max(1, self.partitions)))

    @property
    def large(self) -> int:
        """The bytes of a request for a single message of any size."""
        return self._largest() + 64 * 1024

    def request(self, size: int) -> None:
        """Count an ordinary request."""
        self._requested += size

    def request_large(self, again: Callable[[], None]) -> int:
        """Count a request for a large message; returns its bytes. If none may be made now, returns
        0, and `again` is called when one may.
        """
        size = self.large
        if self._large and (self._large + 1) * size > self._limit // 2:
            if again not in self._waiting:
                self._waiting.append(again)
            return 0
        self._large += 1
        self._requested += size
        return size

    def end(self, size: int) -> None:
        """An ordinary request is answered, or given up."""
        self._requested -= size

    def end_large(self, size: int) -> None:
        """A request for a large message is answered, or given up."""
        self._large -= 1
        self._requested -= size
        waiting, self._waiting = self._waiting, []
        for again in waiting:  # in turn; who has to wait further enters itself again
            again()

    def cut(self, now: float) -> int:
        """The server has cut the connection while it was sending; returns the new budget."""
        self.cuts += 1
        if self._requested:
            self._limit = max(LEAST_BYTES, min(self._limit, self._requested) // 2)
            self._shrunk = now
            self._hold = min(LONGEST_HOLD_SECONDS, HOLD_SECONDS * 2 ** min(self.cuts - 1, 20))
        return self._limit

    def grow(self, now: float) -> None:
        """Take back part of what a cut took away, if that was long ago."""
        if self._limit < PREFETCH_BYTES and now - self._shrunk > self._hold:
            self._limit = min(PREFETCH_BYTES, 2 * self._limit)
            self._shrunk = now

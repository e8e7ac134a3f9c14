"""`Window`: counts what is in flight over all lanes, and holds what goes out next."""

from collections import deque

from ..publishing import Outgoing, Policy

__all__ = ["Window"]

WELL_INSIDE = 4
"""A full window grows when it is answered within this part of an attempt's time, and shrinks when
it takes more than twice that."""


class Window:
    """Counts the messages and bytes in flight, numbers the sends, and limits both.

    How much may be in flight follows the link and the broker: more than they manage within an
    attempt's time would only be answered too late. Example: attempts of 5 s, a link of 2 MB/s.

        256 KiB in flight, answered after 0.13 s    -> 512 KiB, then 1 MiB, 2 MiB
        2 MiB in flight, answered after 1.0 s       -> 4 MiB
        4 MiB in flight, answered after 2.0 s       -> 4 MiB
        and if the link falls to 0.5 MB/s, 8.0 s    -> 2 MiB, after 2.5 s

    Attributes may be read by everyone in this package; only the methods change them.
    """

    __slots__ = (
        "_largest",
        "_seconds",
        "_smallest",
        "bytes",
        "full_at",
        "limit",
        "limit_bytes",
        "messages",
        "next_number",
        "outgoing",
        "position",
    )

    def __init__(self, policy: Policy) -> None:
        self.messages = 0
        """Messages that take a place in the window: awaited, or silent and held (see `Singles`)."""
        self.bytes = 0
        self.next_number = 1
        """The number of the next send that is not an append to a batch in flight."""
        self.position = 0
        """How many messages were sent so far: the position of the next."""
        self.outgoing: deque[Outgoing] = deque()
        """To be sent now, in order; it counts as in flight already. The dispatch takes from it."""
        self._largest = policy.window, policy.window_bytes
        self._smallest = (
            min(policy.first_window or policy.window, policy.window),
            min(policy.first_window_bytes, policy.window_bytes),
        )
        self.limit, self.limit_bytes = self._smallest
        """How many messages and bytes may be in flight; a group, or the last message, may exceed
        it."""
        self._seconds = policy.attempt_seconds / WELL_INSIDE
        self.full_at: tuple[int, float] | None = None
        """When the window was full: the position by then, and the time; until all before it are
        answered."""

    @property
    def last_number(self) -> int:
        """The number of the last send or batch."""
        return self.next_number - 1

    def send(self, outgoing: Outgoing, messages: int, size: int) -> None:
        """Put something in flight: it goes out with the next send."""
        self.messages += messages
        self.bytes += size
        self.position += messages or 1  # the end of a batch has a position too
        self.outgoing.append(outgoing)
        if outgoing.number == self.next_number:
            self.next_number += 1

    def release(self, messages: int, size: int) -> None:
        """So much is no longer in flight."""
        self.messages -= messages
        self.bytes -= size

    def withdraw(self) -> None:
        """Nothing of what was to go out next goes out: the connection is lost."""
        self.outgoing.clear()
        self.limit, self.limit_bytes = self._smallest  # the next one may be another link
        self.full_at = None

    def withdraw_numbers(self, numbers: set[int]) -> None:
        """These do not go out: their envelopes were settled as unknown."""
        if self.outgoing:
            self.outgoing = deque(each for each in self.outgoing if each.number not in numbers)

    def follow_link(self, now: float) -> None:
        """Grow when a full window was answered in good time, and shrink when it was not.

        To be called while it is full, and while `full_at` is set.
        """
        if self.full_at is None:
            self.full_at = self.position, now
            return
        position, since = self.full_at
        (least, least_bytes), (most, most_bytes) = self._smallest, self._largest
        if now - since > 2 * self._seconds:
            self.limit = max(least, self.limit // 2)
            self.limit_bytes = max(least_bytes, self.limit_bytes // 2)
        elif self.position - self.messages < position:
            return  # something of it is still in flight
        elif now - since <= self._seconds:
            self.limit = min(most, self.limit * 2)
            self.limit_bytes = min(most_bytes, self.limit_bytes * 2)
        self.full_at = None

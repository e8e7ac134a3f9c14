"""`Window`: counts what is in flight over all lanes, and holds what goes out next."""

from collections import deque

from ..publishing import Outgoing

__all__ = ["Window"]


class Window:
    """Counts the messages and bytes in flight, and numbers the sends.

    Attributes may be read by everyone in this package; only the methods change them.
    """

    __slots__ = ("bytes", "messages", "next_number", "outgoing", "position")

    def __init__(self) -> None:
        self.messages = 0
        """Messages that take a place in the window: awaited, or silent and held (see `Singles`)."""
        self.bytes = 0
        self.next_number = 1
        """The number of the next send that is not an append to a batch in flight."""
        self.position = 0
        """How many messages were sent so far: the position of the next."""
        self.outgoing: deque[Outgoing] = deque()
        """To be sent now, in order; it counts as in flight already. The dispatch takes from it."""

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

    def withdraw_numbers(self, numbers: set[int]) -> None:
        """These do not go out: their envelopes were settled as unknown."""
        if self.outgoing:
            self.outgoing = deque(each for each in self.outgoing if each.number not in numbers)

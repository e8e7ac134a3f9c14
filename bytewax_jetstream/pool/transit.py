"""`Transit`: which sends have bytes that the peer has not taken, to see that a slow link moves."""

from collections import deque

__all__ = ["Transit"]


class Transit:
    """Positions of sends, by the bytes with which they were written.

    Example: messages 0 to 9 were written as bytes 0 to 1,000, messages 10 to 19 as the next 1,000.
    When the peer has taken 300 bytes, it has taken some of the first send: the attempts of all
    twenty are renewed. At 1,200 it has taken some of the second.
    """

    def __init__(self) -> None:
        self._sends: deque[tuple[int, int]] = deque()
        """First position, and the byte behind the last, of each send not taken as a whole."""
        self._written = 0
        self._taken = 0

    def look(self, first: int, written: int, unsent: int) -> int | None:
        """The position from which on attempts are renewed; None when the peer took nothing more.

        :arg first: The first position written since the last call.
        """
        if written > self._written:
            self._sends.append((first, written))
            self._written = written
        taken = written - unsent
        if taken <= self._taken or not self._sends:
            return None
        self._taken = taken
        position = self._sends[0][0]
        while self._sends and self._sends[0][1] <= taken:
            self._sends.popleft()
        return position

    def clear(self) -> None:
        """The connection is lost, and what was written on it."""
        self._sends.clear()
        self._taken = self._written

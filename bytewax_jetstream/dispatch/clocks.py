"""The clocks of attempt, envelope and connection. `Answers`: when silent attempts were renewed.

A slow broker, or a slow link, must never end a delivery; a dead one must, and in time. So what
waits (for its turn, for room, behind its aggregate) has no clock, and there are three that run:

    attempt      failed when it is unanswered `ack_timeout` after the latest of
                 - its write,
                 - the last answer to something written before it on this connection,
                 - the last moment the peer took bytes of it, or of what was written before it.
                 An answer to something written after it says nothing about it.
    envelope     unknown `delivery_timeout` after its first attempt failed: not answered, or refused
                 to be retried. The clock stands still while it waits, see `Entry`. Nobody else's
                 progress renews it.
    connection   while nothing is settled by an answer for `delivery_timeout`, all that is unsettled
                 there becomes unknown. A refusal to be retried, a reconnect, a ping, or giving up
                 is no progress. What is in flight then and was only refused so far, for its own
                 sake, gets its answer first: another refusal rejects it.

How cases end, with an ack timeout of 5 s and a delivery timeout of 60 s:

    dead broker, idle or busy               connection: all unknown after 60 s
    one stuck subject beside other traffic  envelope: that one unknown after 65 s
    lost ack on a busy link                 attempt: tried again 5 s after what went before it
    a message of 1 MB, link of 0.2 MB/s     attempt: renewed while bytes are taken
    a peer that only says "retry"           connection: all unknown after 60 s
    16,000 of one aggregate, 10 ms each     only the first has a clock: stored after 160 s
    a message that cuts every connection    envelope: its clock runs through reconnects

Without retries of our own (Kafka), an attempt may take `delivery_timeout` and is unknown then.
"""

from bisect import bisect_left

__all__ = ["Answers"]


class Answers:
    """When something written before a position was last answered, or taken by the peer.

    A position counts the messages written on a connection. Example: 0 to 9 are in flight. 5 is
    answered at t = 1: this renews 6 to 9. 3 is answered at t = 2: this renews everything behind 3,
    so the answer of t = 1 need not be kept; 0 to 2 were never renewed.
    """

    def __init__(self) -> None:
        self._positions: list[int] = []
        """Of answers, ascending; so are their times."""
        self._times: list[float] = []

    def add(self, position: int, now: float) -> None:
        """What is behind this position is renewed."""
        positions, times = self._positions, self._times
        while positions and positions[-1] >= position:
            positions.pop()
            times.pop()
        if not times or times[-1] != now:
            positions.append(position)
            times.append(now)

    def since(self, position: int, written: float) -> float:
        """When the attempt at this position was last renewed, at the latest when it was written."""
        before = bisect_left(self._positions, position)
        return max(written, self._times[before - 1]) if before else written

    def forget_before(self, position: float) -> None:
        """Nothing before this position is awaited any more."""
        useless = bisect_left(self._positions, position) - 1
        if useless > 0:
            del self._positions[:useless], self._times[:useless]

    def clear(self) -> None:
        """The connection is lost: nothing that was written on it is awaited."""
        self._positions.clear()
        self._times.clear()

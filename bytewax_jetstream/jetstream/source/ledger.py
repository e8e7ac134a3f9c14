"""Which deliveries of a durable consumer may be acknowledged, and which must not be emitted again.

No I/O and no clock: it can be read in one sitting. A delivery is *open* when it is emitted,
*closed* when its epoch's snapshot is taken, *due* when that epoch is committed, *sent* when its ack
is written, and forgotten a while after the server has confirmed the ack. Only what is committed is
acknowledged.
"""

from collections import deque
from collections.abc import Iterable
from itertools import chain

from ...recovery_state import Ranges

__all__ = ["Ledger"]

REMEMBER_SECONDS = 2.0
"""How long a confirmed ack is remembered. A server that is killed forgets the acks of its last
tenth of a second, and delivers those messages again.
"""


class Ledger:
    """The deliveries of one durable consumer to one partition.

    :arg state: Of the last committed snapshot: what it holds was emitted for good, whatever the
    server knows of it.
    :arg ack_floor: Stream sequence up to which the server has all acks.
    """

    def __init__(self, state: Ranges = (), ack_floor: int = 0) -> None:
        self._recovered = {
            sequence: latest
            for first, last, latest in state
            for sequence in range(max(first, ack_floor + 1), last + 1)
        }
        self._open: dict[int, bytes] = {}
        self._closed: dict[int, bytes] = {}
        self._due: dict[int, bytes] = {}
        self._sent: dict[int, dict[int, bytes]] = {}
        self._acked: set[int] = set()
        """Everything due, sent or remembered."""
        self._remembered: deque[tuple[float, dict[int, bytes]]] = deque()
        self._sent_since: float | None = None
        self._latest = 0
        self._number = 0
        self.redelivered = 0

    def __repr__(self) -> str:
        return f"<Ledger {self.waiting} wait for a commit, {self.unsettled - self.waiting} for the server>"

    @property
    def waiting(self) -> int:
        """How many emitted deliveries are not committed."""
        return len(self._open) + len(self._closed)

    @property
    def unsettled(self) -> int:
        """How many emitted deliveries the server has not confirmed an ack for."""
        return self.waiting + len(self._due) + sum(map(len, self._sent.values()))

    @property
    def has_due(self) -> bool:
        """Whether there are acks to send."""
        return bool(self._due)

    def sent_since(self, now: float) -> float:
        """When the oldest ack that is not confirmed was first sent; now when there is none."""
        return now if self._sent_since is None else self._sent_since

    def take(self, sequence: int, nanoseconds: int, reply: bytes) -> bool:
        """Enter a delivery; whether it is to be emitted, or was emitted before."""
        for waiting in (self._open, self._closed):
            if sequence in waiting:
                waiting[sequence] = reply
                self.redelivered += 1
                return False
        self._latest = max(self._latest, nanoseconds)
        if sequence in self._acked or nanoseconds <= self._recovered.pop(sequence, -1):
            self._acked.add(sequence)
            self._due[sequence] = reply
            self.redelivered += 1
            return False
        self._open[sequence] = reply
        return True

    def close_epoch(self) -> Ranges:
        """The epoch's snapshot: what is open waits for its commit."""
        self._closed.update(self._open)
        self._open = {}
        committed = {
            sequence
            for each in (self._closed, self._due, *self._sent.values())
            for sequence in each
        }
        return _ranges(
            chain(
                sorted(self._recovered.items()),
                ((each, self._latest) for each in sorted(committed)),
            )
        )

    def commit(self) -> None:
        """The epoch of the last snapshot is committed: its acks are due."""
        if self._closed:
            self._due.update(self._closed)
            self._acked.update(self._closed)
            self._closed = {}

    def send(self, now: float) -> tuple[int, list[bytes]]:
        """A number for the acks that are due, and their reply subjects; they are sent from now on."""
        self._number += 1
        if self._sent_since is None:
            self._sent_since = now
        sent = self._sent[self._number] = self._due
        self._due = {}
        return self._number, list(sent.values())

    def lost(self) -> None:
        """What was sent may not have arrived: it is due again."""
        for sent in self._sent.values():
            self._due = {**sent, **self._due}
        self._sent = {}

    def confirm(self, number: int, now: float) -> None:
        """The server has all acks up to this number: it takes them in order."""
        for each in [each for each in self._sent if each <= number]:
            self._remembered.append((now, self._sent.pop(each)))
            self._sent_since = now if self._sent else None
        forgotten: list[dict[int, bytes]] = []
        while self._remembered and self._remembered[0][0] < now - REMEMBER_SECONDS:
            forgotten.append(self._remembered.popleft()[1])
        if forgotten:
            self._acked.difference_update(*forgotten)
            self._acked.update(
                self._due, *self._sent.values()
            )  # some may have come again meanwhile

    def uncommitted(self) -> list[bytes]:
        """Reply subjects of what was emitted and never committed."""
        return [*self._closed.values(), *self._open.values()]


def _ranges(sequences: Iterable[tuple[int, int]]) -> Ranges:
    """Runs of sequences with the same time, from (sequence, time) in order."""
    ranges: list[tuple[int, int, int]] = []
    first = last = latest = -1
    for sequence, time in sequences:
        if sequence == last + 1 and time == latest:
            last = sequence
            continue
        if first >= 0:
            ranges.append((first, last, latest))
        first, last, latest = sequence, sequence, time
    if first >= 0:
        ranges.append((first, last, latest))
    return tuple(ranges)

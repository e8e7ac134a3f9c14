"""`Ledger`: which deliveries of a durable consumer to acknowledge, and which not to emit again.

No I/O and no clock. A delivery is

- *open* when it is emitted,
- *closed* when its epoch's snapshot is taken,
- *due* when that epoch is committed,
- *sent* when its ack is written,
- forgotten a while after the server has confirmed the ack.

So a message is acknowledged only after its epoch is committed.
"""

from collections import deque
from collections.abc import Iterable
from itertools import chain

from ...recovery_state import Ranges

__all__ = ["Ledger"]

REMEMBER_SECONDS = 2.0
"""How long a confirmed ack is remembered. A server that is killed forgets the acks of the last
tenth of a second, and delivers those messages again.
"""


class Ledger:
    """The deliveries of one durable consumer to one partition.

    :arg state: The state of the last committed snapshot. Its messages were emitted for good, even
        if the server does not know it.
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
        """Sequences that are due, sent or remembered."""
        self._remembered: deque[tuple[float, dict[int, bytes]]] = deque()
        self._sent_since: float | None = None
        self._latest = 0
        self._number = 0
        self.redelivered = 0

    def __repr__(self) -> str:
        acks = self.unsettled - self.waiting
        return f"<Ledger {self.waiting} wait for a commit, {acks} for the server>"

    @property
    def waiting(self) -> int:
        """How many emitted deliveries wait for their epoch's commit."""
        return len(self._open) + len(self._closed)

    @property
    def unsettled(self) -> int:
        """How many emitted deliveries wait for a commit, or for the server to confirm the ack."""
        return self.waiting + len(self._due) + sum(map(len, self._sent.values()))

    @property
    def has_due(self) -> bool:
        """Whether there are acks to send."""
        return bool(self._due)

    def sent_since(self, now: float) -> float:
        """When the oldest unconfirmed ack was first sent; now if there is none."""
        return now if self._sent_since is None else self._sent_since

    def take(self, sequence: int, nanoseconds: int, reply: bytes) -> bool:
        """Enter a delivery; returns whether to emit it, or False if it was emitted before."""
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
        """Close the open deliveries; returns the state for the epoch's snapshot."""
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
        """Count the due acks as sent; returns a number for them and their reply subjects."""
        self._number += 1
        if self._sent_since is None:
            self._sent_since = now
        sent = self._sent[self._number] = self._due
        self._due = {}
        return self._number, list(sent.values())

    def lost(self) -> None:
        """The connection is lost: acks that were sent may not have arrived, and are due again."""
        for sent in self._sent.values():
            self._due = {**sent, **self._due}
        self._sent = {}

    def confirm(self, number: int, now: float) -> None:
        """The server, which takes acks in order, has all up to this number."""
        for each in [each for each in self._sent if each <= number]:
            self._remembered.append((now, self._sent.pop(each)))
            self._sent_since = now if self._sent else None
        forgotten: list[dict[int, bytes]] = []
        while self._remembered and self._remembered[0][0] < now - REMEMBER_SECONDS:
            forgotten.append(self._remembered.popleft()[1])
        if forgotten:
            self._acked.difference_update(*forgotten)
            # Some of them may have been delivered again meanwhile.
            self._acked.update(self._due, *self._sent.values())

    def held(self) -> list[bytes]:
        """Reply subjects of the messages that were emitted and whose acks are not sent."""
        return [*self._due.values(), *self.uncommitted()]

    def uncommitted(self) -> list[bytes]:
        """Reply subjects of the messages that were emitted and never committed."""
        return [*self._closed.values(), *self._open.values()]


def _ranges(sequences: Iterable[tuple[int, int]]) -> Ranges:
    """Runs of sequences with the same time, from ordered pairs (sequence, time)."""
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

"""`Lane`: through it one thread submits, in pieces, waits, flushes and collects its results."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter

from ..dispatch import LaneQueue
from ..envelope import Envelope, PublishResult, payload_sizes
from ..errors import PoolClosedError, SettleTimeoutError
from ..publishing import indices_by_aggregate
from .intake import LARGEST_SUBMISSION, Intake
from .mailbox import Mailbox
from .results import Delivery
from .shared_publisher import SharedPublisher

__all__ = ["Lane"]

SLICE = 0.1
"""Seconds a caller waits before it looks again, to notice signals and a dead pool."""
ROOM_SECONDS = 10.0
"""Beyond the delivery timeout: for how long a full budget may see nothing settled."""

JUST_ENVELOPES = frozenset({Envelope})
JUST_STR = frozenset({str})
TOPIC = itemgetter(Envelope._fields.index("topic"))

Piece = tuple[Sequence[Envelope], int]
"""Envelopes that are handed over at once, and their payload bytes."""


class Lane:
    """An ordered queue into the pool, for one thread to fill and to collect from.

    Whatever it accepts ends in exactly one `PublishResult`. A full budget blocks `submit`; nothing
    is ever dropped. Opened by `AckPool.lane`; it outlives neither its pool nor a fork.
    """

    def __init__(
        self,
        name: str,
        intake: Intake,
        publisher: SharedPublisher,
        queue: LaneQueue,
        mailbox: Mailbox,
        *,
        deadline: Callable[[], float],
        on_close: Callable[[], None],
    ) -> None:
        self.name = name
        self._queue = queue
        self._intake = intake
        self._publisher = publisher
        self._mailbox = mailbox
        self.deadline = deadline
        """By when waits of this lane must end (`time.monotonic`), whatever is unsettled then."""
        self._on_close = on_close
        self._cut = _groups_whole if publisher.publisher.policy.atomic else _pieces
        self._closed = False
        self._handing_over = threading.Lock()
        """Held while envelopes go to the intake, so that a close comes before them or after."""

    def __repr__(self) -> str:
        return f"<Lane {self.name!r}, {self.unsettled} unsettled, {len(self._mailbox)} deliveries>"

    @property
    def closed(self) -> bool:
        """Whether it takes nothing any more."""
        return self._closed

    @property
    def unsettled(self) -> int:
        """How many accepted envelopes have no result yet."""
        return self._mailbox.unsettled

    @property
    def stop(self) -> PublishResult | None:
        """The first result for which a dataflow must not commit: it is unknown, or refused for a
        reason that concerns every message. None while there is no such result.
        """
        return self._mailbox.stop

    @property
    def stop_reason(self) -> str | None:
        """`stop` in words."""
        stop = self.stop
        if stop is None:
            return None
        return f"envelope {stop.event_id} on {stop.topic} is {stop.outcome}: {stop.reason}"

    def submit(self, envelopes: Sequence[Envelope], *, epoch: int = 0) -> None:
        """Hand envelopes to the pool, in order; returns when all are accepted, before any is
        published.

        Blocks while the budget is used up. A bad envelope is accepted and becomes a rejected
        result. Many envelopes are accepted in pieces: after an error, `unsettled` and the results
        tell which were.

        :raises TypeError: when an item is not an Envelope; none of them is accepted then.
        :raises PoolClosedError: when the lane is closed, or the pool is draining, closed, dead or
            of another process.
        :raises SettleTimeoutError: when the budget is used up, and no envelope at all was settled
            for the delivery timeout and ten seconds.
        """
        intake, budget, counts = self._intake, self._intake.budget, self._mailbox.counts
        if not JUST_ENVELOPES.issuperset(map(type, envelopes)):
            self._check_types(envelopes)
        if not JUST_STR.issuperset(map(type, map(TOPIC, envelopes))):
            envelopes = [_plain(envelope) for envelope in envelopes]
        patience = intake.settings.delivery_timeout + ROOM_SECONDS
        most = min(LARGEST_SUBMISSION, max(1, budget.messages // 2))
        for piece, size in self._cut(envelopes, most, budget.bytes // 2):
            self.check()
            budget.acquire(len(piece), size, self.check, patience)
            with self._handing_over:
                try:
                    self.check()  # it may have been closed while this thread waited
                except BaseException:
                    budget.release(len(piece), size)
                    raise
                self._mailbox.expect(len(piece))
                if counts is not None:
                    counts.submitted(len(piece))
                seen = self._mailbox.unknown_taken
                intake.hand_over(self._publisher, self._queue, piece, epoch, seen)

    def collect(self) -> list[PublishResult]:
        """Take the results that are there, without waiting."""
        results: list[PublishResult] = []
        for delivery in self.take():
            results += delivery.oks
            results += delivery.errs
        return results

    def take(self) -> list[Delivery]:
        """Take the results that are there, as they were settled, without waiting."""
        return self._mailbox.take()

    def wait(self, below: int, until: float) -> bool:
        """Wait until fewer than `below` envelopes are unsettled; False at `until`
        (`time.monotonic`).

        :raises PoolClosedError: when the pool cannot settle them any more.
        """
        flush_hint = self._publisher.publisher.flush_hint
        while self._mailbox.unsettled >= below:
            again = flush_hint()
            left = until - time.monotonic()
            if left <= 0:
                return self._mailbox.unsettled < below
            self._intake.check(settling=True)
            self._check_deadline()
            self._mailbox.wait(below, min(left, SLICE, again))
        return True

    def flush(self, timeout: float | None = None) -> list[PublishResult]:
        """Wait until nothing is unsettled, and take all results: the barrier.

        :arg timeout: Seconds for all of it. By default there is time as long as envelopes of its
            connection are settled, at least one within a delivery timeout and an ack timeout.
        :raises SettleTimeoutError: when something is still unsettled then.
        """
        began = time.monotonic()
        while not self.wait(1, self._flush_ends(began, timeout)):
            if time.monotonic() < self._flush_ends(began, timeout):
                continue  # something was settled meanwhile
            seconds = time.monotonic() - began
            raise SettleTimeoutError(
                f"{self.unsettled} envelopes of lane {self.name} are not settled after "
                f"{round(seconds, 2):g} s: check that the broker answers; a dataflow publishes "
                "them again when it replays the epoch",
                lane=self.name,
                unsettled=self.unsettled,
                seconds=seconds,
            )
        return self.collect()

    def _flush_ends(self, began: float, timeout: float | None) -> float:
        return self.patience_ends(began) if timeout is None else began + timeout

    @property
    def patience(self) -> float:
        """Seconds within which some envelope of its connection must be settled."""
        settings = self._intake.settings
        return settings.delivery_timeout + settings.ack_timeout + 1

    def patience_ends(self, began: float) -> float:
        """When a wait that began then must end, unless something is settled before."""
        return max(began, self._publisher.settled_at) + self.patience

    def count_long_epoch(self) -> None:
        """Count, in the statistics, an epoch whose older part a crash could store twice."""
        self._publisher.count_long_epoch()

    def _check_types(self, items: Sequence[object]) -> None:
        for item in items:
            if not isinstance(item, Envelope):
                raise TypeError(
                    f"lane {self.name} publishes Envelopes, and got {type(item).__name__}: make an "
                    "Envelope of each item; nothing of these was accepted"
                )

    def check(self) -> None:
        """Raise when nothing can be submitted any more."""
        if self._closed:
            raise PoolClosedError(f"lane {self.name} is closed: open another", lane=self.name)
        self._check_deadline()
        self._intake.check()

    def close(self) -> None:
        """Leave the pool, without waiting; never raises. What is unsettled becomes unknown: flush
        first.
        """
        if not self._intake.takes_calls:
            self._closed = True  # without the lock, which another thread may have held at a fork
            return
        with self._handing_over:
            closed, self._closed = self._closed, True
        if not closed:
            self._on_close()

    def finish_hand_over(self) -> None:
        """Return when no thread is handing over; called once the pool takes nothing any more."""
        with self._handing_over:
            pass

    def _check_deadline(self) -> None:
        if time.monotonic() > self.deadline():
            raise SettleTimeoutError(
                f"{self.unsettled} envelopes of lane {self.name} are not settled in time: check "
                "that the broker answers; they are published again when the epoch is replayed",
                lane=self.name,
                unsettled=self.unsettled,
            )


def _plain(envelope: Envelope) -> Envelope:
    """The envelope with a topic of type `str`: the code of another type, such as a `StrEnum` or one
    that raises when it is formatted, must not run on the pool's thread.
    """
    topic = envelope.topic
    if type(topic) is str or not isinstance(topic, str):
        return envelope
    return envelope._replace(topic=str.__str__(topic))


def _pieces(envelopes: Sequence[Envelope], most: int, most_bytes: int) -> Iterator[Piece]:
    """At most so many messages and bytes, or one larger message."""
    start = 0
    while start < len(envelopes):
        piece = envelopes[start : start + most]
        size = payload_sizes(piece)
        while len(piece) > 1 and size > most_bytes:
            piece = piece[: len(piece) // 2]
            size = payload_sizes(piece)
        start += len(piece)
        yield piece, size


def _groups_whole(envelopes: Sequence[Envelope], most: int, most_bytes: int) -> Iterator[Piece]:
    """The same, with all envelopes of an aggregate in one piece: they are stored all or none."""
    piece: list[Envelope] = []
    size = 0
    for indices in indices_by_aggregate(envelopes):
        group = [envelopes[index] for index in indices]
        group_size = payload_sizes(group)
        if piece and (len(piece) + len(group) > most or size + group_size > most_bytes):
            yield piece, size
            piece, size = [], 0
        piece += group
        size += group_size
    if piece:
        yield piece, size

"""`LaneCounts`, `barrier_waited`: what is counted for each submission, delivery and epoch.

These live as long as the process: a lane of the same step and worker goes on with the counts of the
one before it, and a result that comes after its lane was closed is counted like any other.
"""

import os
import threading
from collections.abc import Iterable, Iterator

from . import table
from .meters import Sample, watch
from .spread import Spread

__all__ = ["LaneCounts", "barrier_waited", "lane_counts"]


class LaneCounts:
    """The envelopes of one worker of a step, and what became of them."""

    def __init__(self, broker: str, step: str, worker: int) -> None:
        self._labels = broker, step, str(worker)
        self._lock = threading.Lock()
        """Lanes with equal labels may be filled by several threads."""
        self._submitted = 0
        self._stored = self._duplicates = self._rejected = self._unknown = 0
        self._latency = Spread(table.RESULT_LATENCY.buckets)

    def submitted(self, messages: int) -> None:
        """So many more were submitted."""
        with self._lock:
            self._submitted += messages

    def settled(
        self,
        stored: int,
        duplicates: int,
        rejected: int,
        unknown: int,
        waits: Iterable[tuple[float, int]],
    ) -> None:
        """So many have their results.

        :arg waits: How many seconds they have waited for them, and how many as long.
        """
        with self._lock:
            self._stored += stored
            self._duplicates += duplicates
            self._rejected += rejected
            self._unknown += unknown
            for seconds, count in waits:
                self._latency.add(seconds, count)

    def samples(self) -> Iterator[Sample]:
        """The counts now."""
        labels = self._labels
        with self._lock:
            yield Sample(table.SUBMITTED, labels, self._submitted)
            yield Sample(table.STORED, labels, self._stored)
            yield Sample(table.DUPLICATES, labels, self._duplicates)
            yield Sample(table.REJECTED, labels, self._rejected)
            yield Sample(table.UNKNOWN, labels, self._unknown)
            yield Sample(table.RESULT_LATENCY, labels[:2], self._latency.copy())


class _BarrierWaits:
    """How long the epochs of a step waited for their results."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._lock = threading.Lock()
        self._waits = Spread(table.BARRIER_WAIT.buckets)

    def add(self, seconds: float) -> None:
        with self._lock:
            self._waits.add(seconds)

    def samples(self) -> Iterator[Sample]:
        with self._lock:
            yield Sample(table.BARRIER_WAIT, (self._step,), self._waits.copy())


class _Kept:
    """All counts of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lanes: dict[tuple[str, str, int], LaneCounts] = {}
        self.barriers: dict[str, _BarrierWaits] = {}


_kept = _Kept()


def _forget_parent() -> None:
    global _kept
    _kept = _Kept()


os.register_at_fork(after_in_child=_forget_parent)


def lane_counts(broker: str, step: str, worker: int) -> LaneCounts:
    """The counts of a worker of a step."""
    key = broker, step, worker
    with _kept.lock:
        counts = _kept.lanes.get(key)
        if counts is None:
            counts = _kept.lanes[key] = LaneCounts(*key)
            watch(counts)
        return counts


def barrier_waited(step: str, seconds: float) -> None:
    """An epoch of a step has waited so long for its results."""
    with _kept.lock:
        waits = _kept.barriers.get(step)
        if waits is None:
            waits = _kept.barriers[step] = _BarrierWaits(step)
            watch(waits)
    waits.add(seconds)

"""`LaneQueue`: what one lane has waiting, ready and held back, in order."""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

from ..envelope import Envelope
from .segment import Entry, Segment, Submission

__all__ = ["LaneQueue"]


class LaneQueue:
    """What one lane has accepted and not yet sent, and the order its aggregates must keep.

    An envelope first waits, in a segment. It leaves with a batch (`pop_first`), or as a single:
    then it is ready, or held behind another single of its aggregate until that one is settled.

    Attributes may be read by everyone in this package; only the methods change them. Each method
    after which the lane may be able to send puts it among the changed lanes, which the dispatch
    looks at before the next send (`put_back` does not: the end of its batch has).

    :arg one_per_aggregate: Whether singles of one aggregate go one after the other.
    :arg changed: The changed lanes; shared by all lanes of a dispatch.
    """

    __slots__ = (
        "_changed",
        "_one_per_aggregate",
        "_unknown",
        "asked",
        "backing_off",
        "broken",
        "held",
        "lost",
        "ready",
        "singles",
        "unswept",
        "waiting",
    )

    def __init__(self, changed: "dict[LaneQueue, None]", *, one_per_aggregate: bool) -> None:
        self._changed = changed
        self._one_per_aggregate = one_per_aggregate
        self.waiting: deque[Segment] = deque()
        """Accepted, and never sent, or definitely not stored, or lost; no segment is empty."""
        self.lost = False
        """Whether segments that were lost are among what waits."""
        self.ready: deque[Entry] = deque()
        """Singles that may be sent."""
        self.held: dict[str, deque[Entry] | None] = {}
        """For each aggregate with a single ready, in flight or backing off: the singles that wait
        behind it, None while there are none."""
        self.asked: dict[str, int] = {}
        """Aggregates of which nothing is sent while what is held of them is asked for, each with
        the number of that send."""
        self.singles = 0
        """How many envelopes or groups go as singles and are not settled."""
        self.backing_off = 0
        """How many of them are backing off."""
        self._unknown = 0
        self.broken: dict[str, int] = {}
        """For each aggregate with an unknown envelope, its number among the lane's unknown ones: a
        caller that has collected so many unknown results has seen it."""
        self.unswept = False
        """Whether something that must not be sent may be among what waits or is ready."""

    def mark_changed(self) -> None:
        """The lane may be able to send."""
        self._changed[self] = None

    # Broken aggregates

    def count_unknown(self, aggregate: str | None, envelopes: int) -> None:
        """Envelopes ended unknown: what is accepted of their aggregate must not be sent behind
        them, until the caller has collected those results.

        :arg aggregate: None if they were not sent, for the same reason.
        """
        self._unknown += envelopes
        if aggregate is not None:
            self.broken[aggregate] = self._unknown
            self.unswept = True
            self._changed[self] = None

    def heal(self, seen: int) -> None:
        """The caller has collected so many unknown results: aggregates that broke by then may be
        sent again.
        """
        self.broken = {each: at for each, at in self.broken.items() if at > seen}

    def take_broken(self) -> list[Entry]:
        """Take out what must not be sent, because its aggregate is broken, in order."""
        self.unswept = False
        broken = self.broken

        def is_broken(envelope: Envelope, submission: Submission) -> bool:
            aggregate = envelope.aggregate_id
            return aggregate in broken and submission.seen < broken[aggregate]

        taken = [
            entry
            for entry in self.entries()
            if not entry.done and is_broken(entry.envelope, entry.submission)
        ]
        if taken:
            self._remove(taken)
        for segment in list(self.waiting):
            indices = {
                index
                for index, envelope in enumerate(segment.envelopes)
                if is_broken(envelope, segment.submission)
            }
            if segment.group and indices:
                self.waiting.remove(segment)
                taken += segment.entries()
            elif indices:
                taken += segment.take_out(indices).entries()
        self.waiting = deque(segment for segment in self.waiting if segment.count)
        return taken

    def _remove(self, entries: list[Entry]) -> None:
        """Forget singles that are ready or held; the next of an aggregate takes their place."""
        gone = set(map(id, entries))
        self.singles -= len(entries)
        heads = {entry.envelope.aggregate_id for entry in self.ready if id(entry) in gone}
        self.ready = deque(entry for entry in self.ready if id(entry) not in gone)
        for aggregate, behind in list(self.held.items()):
            left = deque(entry for entry in behind or () if id(entry) not in gone)
            if aggregate in heads:
                if left:
                    self.ready.append(left.popleft())
                else:
                    del self.held[aggregate]
                    continue
            self.held[aggregate] = left or None

    # Segments

    def enqueue(self, segments: Iterable[Segment]) -> None:
        """Accept segments, behind what waits."""
        self.waiting.extend(segments)
        self.unswept = bool(self.broken)
        self._changed[self] = None

    def put_back(self, segments: Sequence[Segment]) -> None:
        """Return segments, in order, to the front: they are definitely not stored, or lost."""
        self.waiting.extendleft(segment for segment in reversed(segments) if segment.count)
        self.lost = self.lost or any(segment.past is not None for segment in segments)
        self.unswept = bool(self.broken)

    def stop_clocks(self, now: float) -> None:
        """Segments that were lost wait for room from now on."""
        for segment in self.waiting:
            if segment.past is not None:
                segment.past.stop_clock(now)

    def take_overdue_segments(self, now: float) -> list[Segment]:
        """Take out segments that were lost and must not be sent any more."""
        past = [segment for segment in self.waiting if segment.past is not None]
        self.lost = bool(past)
        overdue = [each for each in past if each.past and each.past.is_overdue(now)]
        for segment in overdue:
            self.waiting.remove(segment)
        return overdue

    def pop_first(self) -> Segment:
        """Take out what waits first."""
        return self.waiting.popleft()

    def split_first(self, count: int) -> Segment:
        """Split what waits first; returns its first `count` envelopes, still waiting."""
        first = self.waiting[0].split(count)
        self.waiting.appendleft(first)
        return first

    # Singles

    def enter(self, entry: Entry) -> bool:
        """Let an entry go as a single; False when it is held behind another of its aggregate."""
        self.singles += 1
        aggregate = entry.envelope.aggregate_id
        if aggregate is None or not self._one_per_aggregate:
            return True
        if aggregate not in self.held:
            self.held[aggregate] = None
            return True
        behind = self.held[aggregate]
        if behind is None:
            behind = self.held[aggregate] = deque()
        behind.append(entry)
        return False

    def enter_ready(self, entries: Sequence[Entry]) -> None:
        """Let entries go as singles: each is ready, unless it is held."""
        if self._one_per_aggregate:
            self.ready.extend([entry for entry in entries if self.enter(entry)])
        else:
            self.singles += len(entries)
            self.ready.extend(entries)
        self.unswept = bool(self.broken)
        self._changed[self] = None

    def make_ready_first(self, entry: Entry) -> None:
        """An entry may be sent again, before those that are ready."""
        self.ready.appendleft(entry)
        self.unswept = bool(self.broken)
        self._changed[self] = None

    def take_ready(self, messages: int, size: int, now: float) -> tuple[list[Entry], list[Entry]]:
        """Take out what is ready: as much as has room, and what must not be sent any more.

        :arg messages: Room for messages.
        :arg size: Room for bytes; the last message taken may exceed it.
        :returns: The entries to send, and the overdue ones.
        """
        taken: list[Entry] = []
        overdue: list[Entry] = []
        ready = self.ready
        while ready and messages > 0 and size > 0:
            entry = ready.popleft()
            if entry.done:
                continue
            entry.run_clock(now)
            if entry.is_overdue(now):
                overdue.append(entry)
                if not self._one_per_aggregate:
                    break  # what is behind it may be of its aggregate
                continue
            messages -= entry.count
            size -= entry.size
            taken.append(entry)
        return taken, overdue

    def take_overdue(self, now: float) -> list[Entry]:
        """Take out what is ready past its delivery timeout; forget what is settled."""
        kept: deque[Entry] = deque()
        overdue: list[Entry] = []
        for entry in self.ready:
            if not entry.done:
                (overdue if entry.expires <= now else kept).append(entry)
        self.ready = kept
        return overdue

    def leave(self, entries: Sequence[Entry]) -> None:
        """Singles have ended: the next of each aggregate is ready."""
        self.singles -= len(entries)
        held = self.held
        if held:
            for entry in entries:
                aggregate = entry.envelope.aggregate_id
                if aggregate is not None and aggregate in held and aggregate not in self.asked:
                    self._release(aggregate)
        self._changed[self] = None

    def _release(self, aggregate: str) -> None:
        """The next of an aggregate is ready."""
        if behind := self.held[aggregate]:
            self.ready.append(behind.popleft())
        else:
            del self.held[aggregate]

    def ask(self, aggregate: str, number: int, most: int) -> list[Entry]:
        """Keep what is held of an aggregate back while the first of it are asked for; returns
        those.
        """
        self.asked[aggregate] = number
        return list(islice(self.held[aggregate] or (), most))

    def answered(self, aggregate: str, ended: int) -> None:
        """They were asked for, and so many of them have ended."""
        del self.asked[aggregate]
        self.singles -= ended
        behind = self.held[aggregate] or ()
        self.held[aggregate] = deque(entry for entry in behind if not entry.done) or None

    def go_on(self, aggregate: str) -> None:
        """The next of an aggregate is ready, unless it is asked for."""
        if aggregate not in self.asked:
            self._release(aggregate)
            self._changed[self] = None

    def back_off(self) -> None:
        """One more single waits until it is tried again."""
        self.backing_off += 1
        self._changed[self] = None

    def resume(self) -> None:
        """One less does."""
        self.backing_off -= 1

    def entries(self) -> list[Entry]:
        """The singles that are ready or held."""
        behind = [entry for held in list(self.held.values()) if held for entry in list(held)]
        return [*self.ready, *behind]

    def clear_singles(self) -> None:
        """Forget all singles: they were settled as unknown."""
        self.ready.clear()
        self.held.clear()
        self.asked.clear()
        self.singles = 0

    def clear_waiting(self) -> list[Segment]:
        """Take out all that waits."""
        waiting = list(self.waiting)
        self.waiting.clear()
        return waiting

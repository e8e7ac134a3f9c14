"""`Segment`, `Entry`, `Group`: envelopes from acceptance to settlement, together or one by one."""

from bisect import bisect_right
from collections.abc import Sequence, Set
from itertools import accumulate, groupby
from math import inf
from operator import itemgetter
from typing import NamedTuple

from ..envelope import Envelope, payload_size
from ..publishing import Alone, AskFirst, Refusal, Wire, indices_by_aggregate

__all__ = ["Entry", "Group", "Past", "Segment", "Submission", "segments_of"]

OPTIONS = itemgetter(Envelope._fields.index("options"))
ALONE = frozenset({Alone, AskFirst})
"""Types of wire forms that need an answer of their own."""


class Submission(NamedTuple):
    """What all envelopes of one submission share."""

    submitted: float
    epoch: int
    seen: int = 0
    """How many unknown results of its lane the caller had collected when it submitted."""
    handed_over: float | None = None
    """When the caller handed it over, which is before it was accepted; None if that is not known.
    """

    @property
    def since(self) -> float:
        """Since when the caller waits for its results."""
        return self.submitted if self.handed_over is None else self.handed_over


class Past:
    """What became of the attempts so far: of an entry, or of a segment that goes again as a whole.

    The clock starts when an attempt fails. It stands still while the envelope is held behind its
    aggregate, or waits for room; it runs in flight, backing off, and while what was lost with a
    connection waits for the next one.
    """

    # Class attributes, not slots: most entries never change them, and are made at half the cost.
    in_doubt = 0
    """How many attempts got no answer: each may have been stored, or may be yet."""
    last: Refusal | None = None
    """Why the last attempt failed."""
    expires = inf
    """When its delivery timeout is over; infinite while its clock stands still."""
    resend_until = inf
    """Until when the broker certainly knows its id from an attempt that was not answered."""
    _left: float | None = None
    """Seconds of its delivery timeout that were left when its clock started or stopped last."""

    def fail(self, now: float, delivery_timeout: float) -> None:
        """An attempt failed: the first time, the clock starts."""
        if self._left is None:
            self._left = delivery_timeout
            self.expires = now + delivery_timeout

    def stop_clock(self, now: float) -> None:
        """It waits from now on."""
        if self.expires < inf:
            assert self._left is not None
            self._left = self.expires - now
            self.expires = inf

    def run_clock(self, now: float) -> None:
        """It no longer waits; without a failed attempt it has no clock."""
        if self._left is not None and self.expires == inf:
            self.expires = now + self._left

    def unanswered(self, refusal: Refusal, resend_until: float) -> None:
        """The attempt gets no answer.

        :arg resend_until: Until when the broker certainly knows its id from this attempt.
        """
        # The broker's own word on an earlier attempt tells more than this silence.
        self.last = self.last or refusal
        self.in_doubt += 1
        self.resend_until = min(self.resend_until, resend_until)

    def answered_late(self) -> None:
        """One of its unanswered attempts was refused after all: it did not store it."""
        self.in_doubt -= 1
        if not self.in_doubt:
            self.resend_until = inf

    def is_overdue(self, now: float) -> bool:
        """Whether its time is over, or the broker may have forgotten what it may have stored."""
        expires = self.expires
        if expires == inf and self._left is not None:
            expires = now + self._left
        return expires <= now or self.resend_until < now

    def remember(self, past: "Past") -> None:
        """Go on from there."""
        vars(self).update(vars(past))


class Entry(Past):
    """An envelope that is tracked by itself: it goes as a single, or did and failed."""

    attempts = 0
    count = 1
    """How many messages it is."""
    done = False
    """Settled, perhaps by a late answer to an earlier attempt: lists that still hold it skip it."""

    def __init__(self, envelope: Envelope, submission: Submission, wire: Wire) -> None:
        self.envelope = envelope
        self.submission = submission
        self.wire = wire
        """What the publisher made of it, once for all attempts."""
        self.size = payload_size(envelope)

    @property
    def envelopes(self) -> list[Envelope]:
        """All that it carries."""
        return [self.envelope]


class Group(Entry):
    """Envelopes of one aggregate that are stored all or none: one attempt, one answer, one end."""

    def __init__(self, segment: "Segment") -> None:
        super().__init__(segment.envelopes[0], segment.submission, _asked_first(segment.wires))
        self.wires = segment.wires
        self.count = segment.count
        self.size = segment.size
        self.attempts = segment.attempts
        self._segment = segment

    @property
    def envelopes(self) -> list[Envelope]:
        """In order."""
        return self._segment.envelopes

    def take_out(self, which: Sequence[bool]) -> list[Entry]:
        """Take out these members: they end by themselves, and the others are the group."""
        segment, members = self._segment, self.members()
        left = [index for index, out in enumerate(which) if not out]
        self._segment = kept = segment.part(left)
        self.envelope, self.wires = kept.envelopes[0], kept.wires
        self.wire = _asked_first(kept.wires)
        self.count, self.size = kept.count, kept.size
        return [member for member, out in zip(members, which, strict=True) if out]

    def members(self) -> list[Entry]:
        """One entry for each envelope, to settle it by itself."""
        self._segment.attempts = self.attempts
        return self._segment.each()


def _asked_first(wires: list[Wire]) -> Wire:
    """Of a group that is asked for the reason to; nothing of it is sent then."""
    return next((wire for wire in wires if type(wire) is AskFirst), None)


class Segment:
    """A stretch of one submission that waits together or goes together, in order.

    Most envelopes never need to be told apart, so no object is made for each: what the garbage
    collector does not track cannot slow it down.
    """

    __slots__ = (
        "alone",
        "attempts",
        "count",
        "envelopes",
        "group",
        "past",
        "size",
        "submission",
        "wires",
    )

    def __init__(
        self,
        submission: Submission,
        envelopes: list[Envelope],
        wires: list[Wire],
        *,
        alone: bool = False,
        group: bool = False,
        attempts: int = 0,
        past: Past | None = None,
    ) -> None:
        self.submission = submission
        self.envelopes = envelopes
        self.wires = wires
        """What the publisher made of each envelope."""
        self.alone = alone
        """Whether each envelope needs an ack of its own, for what it asks of the broker."""
        self.group = group
        """Whether the envelopes are stored all or none, and never separated."""
        self.attempts = attempts
        self.past: Past | None = None
        """Of a segment that was lost."""
        if past is not None:
            self.lost().remember(past)
        self.count = len(envelopes)
        self.size = sum([len(envelope[1] or b"") for envelope in envelopes])
        """Payload bytes."""

    def split(self, count: int) -> "Segment":
        """Take out the first `count` envelopes."""
        first = Segment(
            self.submission,
            self.envelopes[:count],
            self.wires[:count],
            alone=self.alone,
            attempts=self.attempts,
            past=self.past,
        )
        del self.envelopes[:count], self.wires[:count]
        self.count -= count
        self.size -= first.size
        return first

    def part(self, indices: Sequence[int]) -> "Segment":
        """A segment of the envelopes at these indices; this one is not changed."""
        return Segment(
            self.submission,
            [self.envelopes[index] for index in indices],
            [self.wires[index] for index in indices],
            alone=self.alone,
            group=self.group,
            attempts=self.attempts,
            past=self.past,
        )

    def take_out(self, indices: Set[int]) -> "Segment":
        """Take out the envelopes at these indices; groups are taken out as a whole elsewhere."""
        kept = self.part([index for index in range(self.count) if index not in indices])
        out = self.part(sorted(indices))
        self.envelopes, self.wires = kept.envelopes, kept.wires
        self.count, self.size = kept.count, kept.size
        return out

    def lost(self) -> Past:
        """What is known of its attempts, from now on."""
        if self.past is None:
            self.past = Past()
        return self.past

    def fitting(self, room: int, room_bytes: int) -> int:
        """How many of the first envelopes fit, at least one: the byte window limits many messages,
        it does not stop a large one.
        """
        if self.size <= room_bytes:
            return max(1, min(self.count, room))
        sizes = [len(envelope[1] or b"") for envelope in self.envelopes[:room]]
        return max(1, bisect_right(list(accumulate(sizes)), room_bytes))

    def entries(self) -> list[Entry]:
        """Track the envelopes one by one from now on; a group stays one entry."""
        return [Group(self)] if self.group else self.each()

    def each(self) -> list[Entry]:
        """One entry for each envelope, also of a group."""
        entries = []
        for envelope, wire in zip(self.envelopes, self.wires, strict=True):
            entry = Entry(envelope, self.submission, wire)
            entry.attempts = self.attempts
            if self.past is not None:
                entry.remember(self.past)
            entries.append(entry)
        return entries


def segments_of(
    submission: Submission, envelopes: Sequence[Envelope], wires: list[Wire], *, atomic: bool
) -> list[Segment]:
    """A submission as segments, split only where envelopes cannot go together.

    Example: of `e1 e2 e3*  e4`, where `e3` has options and so needs an answer of its own, three
    segments are made: `[e1 e2]`, `[e3]` alone, `[e4]`. With `atomic`, each aggregate with several
    envelopes is a group.
    """
    if not envelopes:
        return []
    if atomic:
        return _by_aggregate(submission, envelopes, wires)
    if any(map(OPTIONS, envelopes)) or not ALONE.isdisjoint(map(type, wires)):
        return _by_options(submission, range(len(envelopes)), envelopes, wires)
    return [Segment(submission, list(envelopes), list(wires))]


def _by_aggregate(
    submission: Submission, envelopes: Sequence[Envelope], wires: list[Wire]
) -> list[Segment]:
    """Groups, and between them what is alone of its aggregate."""
    segments = []
    for several, groups in groupby(indices_by_aggregate(envelopes), key=lambda at: len(at) > 1):
        if not several:
            alone = [index for (index,) in groups]
            segments += _by_options(submission, alone, envelopes, wires)
            continue
        for indices in groups:
            members, their_wires = [envelopes[i] for i in indices], [wires[i] for i in indices]
            segments.append(Segment(submission, members, their_wires, alone=True, group=True))
    return segments


def _by_options(
    submission: Submission,
    indices: Sequence[int],
    envelopes: Sequence[Envelope],
    wires: list[Wire],
) -> list[Segment]:
    """Separate what needs an answer of its own, for its options or its wire form, from the rest."""

    def alone_at(index: int) -> bool:
        return envelopes[index].options is not None or type(wires[index]) in ALONE

    return [
        Segment(submission, [envelopes[i] for i in chunk], [wires[i] for i in chunk], alone=alone)
        for alone, group in groupby(indices, key=alone_at)
        for chunk in (list(group),)
    ]

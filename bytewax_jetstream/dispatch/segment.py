"""Envelopes between their acceptance and their end: told apart as entries, or together as a parcel."""

from collections.abc import Iterable
from itertools import accumulate, groupby, islice
from typing import Any, NamedTuple

from ..envelope import Envelope
from ..publishing.answers import Refusal

__all__ = [
    "Batch",
    "Entry",
    "Group",
    "Parcel",
    "by_aggregate",
    "by_company",
    "fitting",
    "places_by_aggregate",
    "size_of",
]


class Batch(NamedTuple):
    """What a lane was given in one hand-off."""

    submitted: float
    expires: float
    epoch: int


def size_of(envelope: Envelope) -> int:
    """Payload bytes an envelope takes from budget and window; a payload that is not bytes is
    rejected anyway.
    """
    payload = envelope.payload
    return len(payload) if type(payload) is bytes else 0


class Entry:
    """An envelope between its acceptance and its settlement."""

    # Class attributes, not slots: most entries never change them, and are made at half the cost.
    attempts = 0
    in_doubt = 0
    """How many attempts got no answer: each may be stored, now or later."""
    count = 1
    """How many messages it is."""
    done = False
    """Settled, maybe by the late answer to an earlier attempt; whoever still lists it passes over
    it.
    """
    last: Refusal | None = None
    """Why the last attempt did not do."""

    def __init__(self, envelope: Envelope, batch: Batch, wire: Any) -> None:
        self.envelope = envelope
        self.batch = batch
        self.wire = wire
        """What the publisher made of it, once for all attempts."""
        self.size = size_of(envelope)

    @property
    def envelopes(self) -> list[Envelope]:
        """All that it carries."""
        return [self.envelope]


class Group(Entry):
    """Envelopes of one aggregate that are stored all or none: one attempt, one answer, one end."""

    def __init__(self, parcel: "Parcel") -> None:
        super().__init__(parcel.envelopes[0], parcel.batch, parcel.wires)
        self.count = len(parcel)
        self.size = parcel.size
        self.attempts = parcel.attempts
        self._parcel = parcel

    @property
    def envelopes(self) -> list[Envelope]:
        """In order."""
        return self._parcel.envelopes

    def members(self) -> list[Entry]:
        """Tell them apart: it has ended."""
        self._parcel.attempts = self.attempts
        return self._parcel.apart()


class Parcel:
    """Envelopes of one hand-off that wait together or go together, in order.

    Most never need to be told apart, so nothing is made of each: what has no part in the garbage
    collector's work cannot slow it down.
    """

    __slots__ = ("_size", "alone", "attempts", "batch", "envelopes", "group", "wires")

    def __init__(
        self,
        batch: Batch,
        envelopes: list[Envelope],
        wires: list[Any],
        *,
        alone: bool = False,
        group: bool = False,
        attempts: int = 0,
    ) -> None:
        self.batch = batch
        self.envelopes = envelopes
        self.wires = wires
        """Of each envelope what the publisher made of it."""
        self.alone = alone
        """Whether each has to go alone, for what it asks of the broker."""
        self.group = group
        """Whether they are stored all or none, and never parted."""
        self.attempts = attempts
        self._size: int | None = None

    def __len__(self) -> int:
        return len(self.envelopes)

    @property
    def size(self) -> int:
        """Payload bytes; counted once, as it is asked for at every step of the way."""
        if self._size is None:
            self._size = sum([len(envelope[1]) for envelope in self.envelopes])
        return self._size

    def split(self, count: int) -> "Parcel":
        """Take the first ones out."""
        first = Parcel(
            self.batch,
            self.envelopes[:count],
            self.wires[:count],
            alone=self.alone,
            attempts=self.attempts,
        )
        del self.envelopes[:count], self.wires[:count]
        self._size = None
        return first

    def entries(self) -> list[Entry]:
        """Tell them apart from now on, unless they are a group."""
        return [Group(self)] if self.group else self.apart()

    def apart(self) -> list[Entry]:
        """One entry for each, whatever they are together."""
        entries = []
        for envelope, wire in zip(self.envelopes, self.wires, strict=True):
            entry = Entry(envelope, self.batch, wire)
            entry.attempts = self.attempts
            entries.append(entry)
        return entries


def places_by_aggregate(envelopes: Iterable[Envelope]) -> list[list[int]]:
    """Where the envelopes of each aggregate are, the aggregates by their firsts; what has none is
    by itself.
    """
    groups: dict[str | int, list[int]] = {}
    for place, envelope in enumerate(envelopes):
        aggregate = envelope.aggregate_id
        # One that is no str is its own envelope's fault, which is found out elsewhere.
        groups.setdefault(aggregate if isinstance(aggregate, str) else place, []).append(place)
    return list(groups.values())


def by_aggregate(parcel: Parcel) -> list[Parcel]:
    """Split a parcel into the groups that are stored all or none, and what is alone of its
    aggregate in between.
    """
    parts = []
    for several, groups in groupby(
        places_by_aggregate(parcel.envelopes), key=lambda places: len(places) > 1
    ):
        for part in groups if several else [[place for (place,) in groups]]:
            envelopes, wires = (
                [parcel.envelopes[at] for at in part],
                [parcel.wires[at] for at in part],
            )
            parts.append(Parcel(parcel.batch, envelopes, wires, alone=several, group=several))
    return parts


def by_company(parcel: Parcel) -> list[Parcel]:
    """Split a parcel so that what has options, and so needs an answer of its own, is not among the
    others.
    """
    if parcel.group or not any(envelope[7] for envelope in parcel.envelopes):
        return [parcel] if parcel else []
    parts = []
    for alone, group in groupby(
        zip(parcel.envelopes, parcel.wires, strict=True),
        key=lambda pair: pair[0].options is not None,
    ):
        envelopes, wires = zip(*group, strict=True)
        parts.append(Parcel(parcel.batch, list(envelopes), list(wires), alone=alone))
    return parts


def fitting(parcel: Parcel, room: int, room_bytes: int) -> int:
    """How many of its first envelopes fit, at least one: the byte window is for many, not against a
    large one.
    """
    if len(parcel) <= room and parcel.size <= room_bytes:
        return len(parcel)
    sizes = accumulate(len(envelope[1]) for envelope in parcel.envelopes)
    return max(1, sum(size <= room_bytes for size in islice(sizes, room)))

"""The words in which the dispatch, the pool and the publishers talk of what is sent and what became of it."""

from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, NamedTuple

from .envelope import Envelope, Outcome
from .errors import EnvelopeError

__all__ = [
    "INFINITY",
    "Acked",
    "Batch",
    "Ended",
    "Entry",
    "Flight",
    "Group",
    "LaneQueue",
    "Leg",
    "Parcel",
    "Policy",
    "Receipt",
    "Refusal",
    "Route",
    "Settled",
    "Stored",
    "Verdict",
    "WholeFlight",
    "prepare_each",
    "size_of",
]

INFINITY = float("inf")


class Policy(NamedTuple):
    """How flights for one broker are formed and retried."""

    delivery_timeout: float
    ack_timeout: float | None
    """Seconds an attempt may wait; None where the broker's library retries and gives up by itself."""
    one_per_aggregate: bool
    """Whether a second envelope of an aggregate must wait until the first is settled."""
    window: int
    """How many messages may be out at once, all lanes together."""
    window_bytes: int
    """How many payload bytes may be out at once: more than a slow link carries in an ack timeout is no use."""
    flight: int
    """How many messages a lane may send when it is its turn."""
    atomic: bool = False
    """Whether an aggregate's envelopes of one hand-off are stored all or none."""
    flow: int = 0
    """After how many messages of a whole flight, at most, the broker says how far it came, before its end."""
    first_backoff: float = 0.05
    longest_backoff: float = 2.0


class Route(NamedTuple):
    """What takes flights whole at the broker: it stores their envelopes in order, and none after a refused one."""

    name: str
    replicated: bool
    """Whether it counts an id as stored that is only in process there, and may yet be lost."""
    fresh: bool
    """Made by this publisher, so nothing of an earlier run can be in process there."""


class Receipt(NamedTuple):
    """Where the broker stored an envelope."""

    stream: str | None = None
    partition: int | None = None
    sequence: int | None = None
    duplicate: bool | None = None

    def before(self, messages: int) -> "Receipt":
        """Of the message so many before, where they were stored one behind the other."""
        return self if self.sequence is None else self._replace(sequence=self.sequence - messages)


class Verdict(Enum):
    """What a refusal means for the envelope."""

    RETRY = "retry"
    """Not now: try again with the same event id."""
    REJECT = "reject"
    """Never, this one: the others are not concerned."""
    STOP = "stop"
    """Never, and others will fare the same: a dataflow must stop rather than dead-letter everything."""
    GIVE_UP = "give up"
    """The broker's library has given up; whether it is stored nobody knows."""


class Refusal(NamedTuple):
    """Why the broker did not store an envelope."""

    verdict: Verdict
    reason: str
    code: int | None = None


class Batch(NamedTuple):
    """What a lane was given in one hand-off."""

    submitted: float
    expires: float
    epoch: int


def size_of(envelope: Envelope) -> int:
    """Payload bytes an envelope takes from budget and window; a payload that is not bytes is rejected anyway."""
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
    """Settled, maybe by the late answer to an earlier attempt; whoever still lists it passes over it."""
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
        self._envelopes = parcel.envelopes

    @property
    def envelopes(self) -> list[Envelope]:
        """In order."""
        return self._envelopes

    def members(self) -> list[Entry]:
        """Tell them apart: it has ended."""
        members = []
        for envelope, wire in zip(self._envelopes, self.wire, strict=True):
            member = Entry(envelope, self.batch, wire)
            member.attempts = self.attempts
            members.append(member)
        return members


class Parcel:
    """Envelopes of one hand-off that wait together or go together, in order.

    Most never need to be told apart, so nothing is made of each: what has no part in the garbage collector's
    work cannot slow it down.
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
        first = Parcel(self.batch, self.envelopes[:count], self.wires[:count], alone=self.alone, attempts=self.attempts)
        del self.envelopes[:count], self.wires[:count]
        self._size = None
        return first

    def entries(self) -> list[Entry]:
        """Tell them apart from now on, unless they are a group."""
        if self.group:
            return [Group(self)]
        entries: list[Entry] = []
        for envelope, wire in zip(self.envelopes, self.wires, strict=True):
            entry = Entry(envelope, self.batch, wire)
            entry.attempts = self.attempts
            entries.append(entry)
        return entries


class Settled(NamedTuple):
    """An envelope's end."""

    entry: Entry
    outcome: Outcome
    receipt: Receipt | None
    refusal: Refusal | None


class Stored(NamedTuple):
    """Envelopes that were stored together, with one receipt for all."""

    parcel: Parcel
    receipt: Receipt


class Acked(NamedTuple):
    """Envelopes that were stored one by one, each with a receipt of its own."""

    entries: list[Entry]
    receipts: list[Receipt]


Ended = Settled | Stored | Acked


class LaneQueue:
    """The envelopes of one lane, in order.

    They wait in parcels until it is decided how they go: in whole flights, or one by one. Those that go one by
    one are ready, held behind one of their aggregate, out, or backing off.
    """

    __slots__ = (
        "held",
        "in_turn",
        "one_by_one",
        "open",
        "owner",
        "pausing",
        "reach",
        "ready",
        "settled",
        "waiting",
        "whole",
    )

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        """Whose queue it is; passed through."""
        self.waiting: deque[Parcel] = deque()
        """Accepted, and never sent or surely not stored; no parcel is empty."""
        self.ready: deque[Entry] = deque()
        """May be sent one by one."""
        self.in_turn = False
        """Among those that wait for their turn, or just having it."""
        self.held: dict[str, deque[Entry] | None] = {}
        """For each aggregate that has an envelope ready, out or backing off: those that wait behind it."""
        self.one_by_one = 0
        """How many go one by one and are not settled."""
        self.pausing = 0
        """How many of them are backing off."""
        self.whole = 0
        """How many whole flights are out."""
        self.open: WholeFlight | None = None
        """The one of them that goes on as long as there is more for it."""
        self.reach = INFINITY
        """How many messages of a whole flight may be out: behind a refused one they go for nothing."""
        self.settled: list[Ended] = []


class Flight:
    """Envelopes of one lane that were sent together, each to be answered by itself; then its index is None."""

    __slots__ = ("deadline", "entries", "lane", "number", "open", "sent")

    def __init__(self, number: int, lane: LaneQueue, entries: list[Entry | None], sent: float, deadline: float) -> None:
        self.number = number
        self.lane = lane
        self.entries = entries
        self.sent = sent
        self.deadline = deadline
        self.open = len(entries)
        """How many are not answered."""

    def at(self, index: int) -> Entry | None:
        """What is waited for at a place; an answer can name any."""
        return self.entries[index] if 0 <= index < len(self.entries) else None

    def unanswered(self) -> list[Entry]:
        """What is still waited for."""
        return [entry for entry in self.entries if entry is not None and not entry.done]


class WholeFlight:
    """Envelopes of one lane that a route takes together: from the first to wherever it ends, it has stored them.

    It is sent in legs, and goes on until one is its last.
    """

    __slots__ = ("_deadlines", "entries", "lane", "number", "parcels", "places", "refusal", "route", "stored", "topic")

    def __init__(self, number: int, lane: LaneQueue, route: Route, topic: str) -> None:
        self.number = number
        self.lane = lane
        self.route = route
        self.topic = topic
        """Of its first envelope."""
        self.parcels: list[Parcel] = []
        """What was sent and is not known to be stored."""
        self.places = 0
        """How many envelopes were sent."""
        self.stored = 0
        """How many of them are known to be stored."""
        self.refusal: tuple[int, Refusal] | None = None
        """The first place that the route refused; it stores none from there on."""
        self.entries: list[Entry] = []
        """When it is not awaited any more: what was not known to be stored then, in order."""
        self._deadlines: deque[tuple[int, float]] = deque()
        """For each leg, behind which place it ended, and until when that is awaited."""

    @property
    def out(self) -> int:
        """How many are not known to be stored."""
        return self.places - self.stored

    @property
    def deadline(self) -> float:
        """Until when the next word on it is awaited."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= self.stored:
            deadlines.popleft()
        return deadlines[0][1] if deadlines else INFINITY

    def add(self, parcels: list[Parcel], deadline: float) -> None:
        """Another leg is sent."""
        self.parcels += parcels
        self.places += sum(map(len, parcels))
        self._deadlines.append((self.places, deadline))

    def topics(self) -> list[str]:
        """Of each place, those that are known to be stored left out."""
        return [envelope[0] for parcel in self.parcels for envelope in parcel.envelopes]


class Leg(NamedTuple):
    """What of a whole flight is sent in one write."""

    flight: WholeFlight
    parcels: list[Parcel]
    first: int
    """The place of its first envelope."""
    last: bool
    """Whether the flight ends with it."""

    @property
    def lane(self) -> LaneQueue:
        """Whose envelopes they are."""
        return self.flight.lane


def prepare_each(prepare: Callable[[Envelope], Any], envelopes: Iterable[Envelope]) -> list[Any]:
    """For each envelope its wire form, or the `EnvelopeError` that says why it can have none."""
    prepared = []
    for envelope in envelopes:
        try:
            wire = prepare(envelope)
        except EnvelopeError as error:
            wire = error
        except Exception as error:  # a value nobody thought of must harm its own envelope only
            wire = EnvelopeError(
                f"it cannot be encoded ({type(error).__name__}): give its fields the types Envelope names"
            )
        prepared.append(wire)
    return prepared

"""The words in which the dispatch, the pool and the publishers talk of what waits, is sent and has
ended.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ..envelope import Envelope, Outcome
from ..errors import EnvelopeError
from ..publishing.answers import Receipt, Refusal
from .segment import Entry, Parcel

__all__ = [
    "INFINITY",
    "Acked",
    "Ended",
    "Flight",
    "LaneQueue",
    "Leg",
    "Policy",
    "Route",
    "Settled",
    "Stored",
    "WholeFlight",
    "prepare_each",
]

INFINITY = float("inf")


class Policy(NamedTuple):
    """How flights for one broker are formed and retried."""

    delivery_timeout: float
    ack_timeout: float | None
    """Seconds an attempt may wait; None where the broker's library retries and gives up by itself.
    """
    one_per_aggregate: bool
    """Whether a second envelope of an aggregate must wait until the first is settled."""
    window: int
    """How many messages may be out at once, all lanes together."""
    window_bytes: int
    """How many payload bytes may be out at once: more than a slow link carries in an ack timeout is
    no use.
    """
    flight: int
    """How many messages a lane may send when it is its turn."""
    atomic: bool = False
    """Whether an aggregate's envelopes of one hand-off are stored all or none."""
    flow: int = 0
    """After how many messages of a whole flight, at most, the broker says how far it came, before
    its end.
    """
    first_backoff: float = 0.05
    longest_backoff: float = 2.0


class Route(NamedTuple):
    """What takes flights whole at the broker: it stores their envelopes in order, and none after a
    refused one.
    """

    name: str
    replicated: bool
    """Whether it counts an id as stored that is only in process there, and may yet be lost."""
    fresh: bool
    """Made by this publisher, so nothing of an earlier run can be in process there."""


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

    They wait in parcels until it is decided how they go: in whole flights, or one by one. Those
    that go one by one are ready, held behind one of their aggregate, out, or backing off.
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
        """Among those that wait for their turn."""
        self.held: dict[str, deque[Entry] | None] = {}
        """For each aggregate that has an envelope ready, out or backing off: those that wait behind
        it.
        """
        self.one_by_one = 0
        """How many go one by one and are not settled."""
        self.pausing = 0
        """How many of them are backing off."""
        self.whole = 0
        """How many whole flights are out."""
        self.open: WholeFlight | None = None
        """The one of them that goes on as long as there is more for it."""
        self.reach = INFINITY
        """How many messages of a whole flight may be out: behind a refused one they go for nothing.
        """
        self.settled: list[Ended] = []


class Flight:
    """Envelopes of one lane that were sent together, each to be answered by itself; then its index
    is None.
    """

    __slots__ = ("deadline", "entries", "lane", "number", "open", "sent")

    def __init__(
        self,
        number: int,
        lane: LaneQueue,
        entries: list[Entry | None],
        sent: float,
        deadline: float,
    ) -> None:
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
    """Envelopes of one lane that a route takes together: from the first to wherever it ends, it has
    stored them.

    It is sent in legs, and goes on until one is its last.
    """

    __slots__ = (
        "_deadlines",
        "entries",
        "lane",
        "number",
        "parcels",
        "places",
        "refusal",
        "route",
        "stored",
        "topic",
    )

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

"""A dispatch with one lane, and a clock that the test sets, for tests of single rules."""

from collections.abc import Callable, Iterable
from functools import partial
from random import Random
from typing import Any

from bytewax_jetstream.dispatch import (
    Dispatch,
    Entry,
    LaneQueue,
    Segment,
    Settled,
    Settlement,
    SinglesStored,
    Submission,
)
from bytewax_jetstream.envelope import Envelope, Outcome
from bytewax_jetstream.errors import EnvelopeError
from bytewax_jetstream.publishing import (
    Append,
    Ask,
    AskFirst,
    Groups,
    Outgoing,
    Policy,
    Receipt,
    Refusal,
    Route,
    Singles,
    Verdict,
    Wire,
    prepare_each,
)

__all__ = [
    "INFINITY",
    "LATER",
    "POLICY",
    "RECEIPT",
    "ROUTES",
    "Driver",
    "batching",
    "each_settled",
    "entry",
    "envelope",
    "event_ids",
    "ids",
    "lose_the_answer",
    "numbered",
    "segment",
]

POLICY = Policy(
    delivery_timeout=60.0,
    ack_timeout=5.0,
    one_per_aggregate=True,
    window=100,
    window_bytes=1_000_000,
    max_send=50,
)
RECEIPT = Receipt("ORDERS", None, 7, duplicate=False)
LATER = Refusal(Verdict.RETRY, "no leader", 503)
ROUTES = {
    topic: Route(topic.upper(), replicated=False, fresh=False) for topic in ("orders", "other")
}
INFINITY = float("inf")


class Driver:
    """A connected dispatch with one lane.

    :arg route: Which route takes batches of a topic; default none.
    :arg policy: What differs from `POLICY`.
    """

    def __init__(
        self,
        connected: bool = True,
        route: Callable[[str], Route | None] = lambda topic: None,
        duplicate_window: Callable[[str], float | None] = lambda topic: None,
        **policy: Any,
    ) -> None:
        self.prepared: list[str] = []
        self.dispatch = Dispatch(
            POLICY._replace(**policy),
            partial(prepare_each, self._prepare),
            Random(1),
            route,
            duplicate_window,
        )
        self.lane = self.new_lane()
        self.now = 0.0
        if connected:
            self.dispatch.connected(self.now)

    def _prepare(self, envelope: Envelope) -> Wire:
        self.prepared.append(envelope.event_id)
        if envelope.topic == "bad":
            raise EnvelopeError("the topic is bad: choose another")
        if envelope.topic == "large":
            return AskFirst(EnvelopeError("it is too large"))
        return b"wire of " + envelope.event_id.encode()

    def new_lane(self) -> LaneQueue:
        return self.dispatch.add_lane()

    def submit(self, *envelopes: Envelope, lane: LaneQueue | None = None, epoch: int = 0) -> None:
        self.dispatch.submit(lane or self.lane, envelopes, epoch, self.now)

    def singles(self) -> Singles:
        """The next to send, which must be singles."""
        outgoing = self.dispatch.next_send(self.now)
        assert isinstance(outgoing, Singles), f"the next to send is {outgoing}"
        return outgoing

    def groups(self) -> Groups:
        """The next to send, which must be groups."""
        outgoing = self.dispatch.next_send(self.now)
        assert isinstance(outgoing, Groups), f"the next to send is {outgoing}"
        return outgoing

    def append(self) -> Append:
        """The next to send, which must be an append to a batch."""
        outgoing = self.dispatch.next_send(self.now)
        assert isinstance(outgoing, Append), f"the next to send is {outgoing}"
        return outgoing

    def sends(self) -> list[list[str]]:
        """All there is to send, as event ids."""
        found = []
        while (outgoing := self.dispatch.next_send(self.now)) is not None:
            found.append(ids(outgoing))
        return found

    def tick(self, now: float) -> None:
        self.now = now
        self.dispatch.tick(now)

    def settled(self) -> list[Settled]:
        return [
            one
            for _, settlements in self.dispatch.take_settled()
            for settlement in settlements
            for one in each_settled(settlement)
        ]

    def outcomes(self) -> dict[str, Outcome]:
        return {settled.entry.envelope.event_id: settled.outcome for settled in self.settled()}

    def refused(
        self, sent: Outgoing, index: int, verdict: Verdict, reason: str = "refused"
    ) -> None:
        self.dispatch.refused(sent.number, index, Refusal(verdict, reason, 42), self.now)

    def counted(self, name: str) -> int:
        return self.dispatch.statistics()[name]

    @property
    def bytes_in_flight(self) -> int:
        return self.dispatch._window.bytes

    def is_empty(self) -> bool:
        """Whether nothing of what was submitted is kept anywhere."""
        dispatch, lane = self.dispatch, self.lane
        singles, batches, window = dispatch._singles, dispatch._batches, dispatch._window
        kept: list[object] = [singles._sent, singles._silent, singles._backing_off]
        kept += [batches.sent, batches._silent, dispatch._turns, dispatch._settlements._kept]
        kept += [lane.waiting, lane.ready, lane.held, lane.singles, lane.backing_off]
        return not any([*kept, window.messages, window.bytes, window.outgoing])


def batching(**policy: Any) -> Driver:
    """Streams that take batches, with a flow ack after every third message.

    :arg policy: What differs from that.
    """
    return Driver(route=ROUTES.get, **{"max_send": 4, "flow_interval": 3, "window": 10, **policy})


def lose_the_answer(driver: Driver, how: str) -> Singles:
    """Send an attempt that gets no answer, by `silence` or `disconnection`, until the next one may
    go.
    """
    sent = driver.singles()
    if how == "silence":
        driver.tick(driver.now + 5.0)
        driver.tick(driver.now + 5.0)
    else:
        driver.dispatch.disconnected("gone", driver.now)
        driver.dispatch.connected(driver.now)
    return sent


def ids(outgoing: Outgoing) -> list[str]:
    """The event ids of what goes out."""
    if isinstance(outgoing, Singles | Ask):
        return [envelope.event_id for envelope in outgoing.envelopes]
    if isinstance(outgoing, Groups):
        return [envelope.event_id for group in outgoing.envelopes for envelope in group]
    return [_event_id(wire) for wire in outgoing.wires]


def _event_id(wire: Wire) -> str:
    assert isinstance(wire, bytes)
    return wire.decode().removeprefix("wire of ")


def each_settled(settlement: Settlement) -> list[Settled]:
    """The end of each envelope, also of those that ended together."""
    if isinstance(settlement, Settled):
        return [settlement]
    if isinstance(settlement, SinglesStored):
        return [
            Settled(entry, Outcome.STORED, receipt, None)
            for entry, receipt in zip(settlement.entries, settlement.receipts, strict=True)
        ]
    return [
        Settled(entry, Outcome.STORED, settlement.receipt, None)
        for entry in settlement.segment.entries()
    ]


def envelope(
    event_id: str, aggregate: str | None = None, size: int = 1, topic: str = "orders"
) -> Envelope:
    return Envelope(topic, b"." * size, event_id, aggregate)


def numbered(*numbers: int, **fields: Any) -> list[Envelope]:
    return [envelope(str(number), **fields) for number in numbers]


# What the owners of the dispatch's state pass to each other


def entry(
    event_id: str, aggregate: str | None = None, size: int = 1, expires: float = INFINITY
) -> Entry:
    """An entry; its clock runs if it has an end."""
    one = Entry(envelope(event_id, aggregate, size), Submission(0.0, 0), b"")
    if expires < INFINITY:
        one.fail(0.0, expires)
    return one


def segment(*envelopes: Envelope, **options: Any) -> Segment:
    """A segment; each wire is the event id."""
    wires: list[Wire] = [each.event_id for each in envelopes]
    return Segment(Submission(0.0, 0), list(envelopes), wires, **options)


def event_ids(entries: Iterable[Entry]) -> list[str]:
    return [each.envelope.event_id for each in entries]

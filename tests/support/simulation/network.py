"""The simulated connection: it loses, delays and repeats requests and answers, and breaks."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from bytewax_jetstream.envelope import Envelope, payload_size
from bytewax_jetstream.publishing import Ask, Receipt, Refusal
from tests.support.simulation.clock import Clock
from tests.support.simulation.events import Events
from tests.support.simulation.faults import Faults
from tests.support.simulation.link import ENVELOPE_OVERHEAD, Link, Speed

__all__ = ["Network", "Report", "Request", "SentAppend"]

Report = Callable[[], None]
"""Tells the dispatch one thing."""


@dataclass(frozen=True)
class Request:
    """One attempt of an envelope or of a group."""

    number: int
    index: int
    envelopes: tuple[Envelope, ...]


class SentAppend(NamedTuple):
    """What of an append was not lost."""

    number: int
    topic: str
    """That of the first message of its batch."""
    messages: list[tuple[int, Envelope]]
    """Each with its index in the batch."""
    flow: int
    """After how many messages of its batch the broker is to say how many it has stored."""
    again: bool
    """Whether its ids are asked for first."""
    end: int | None
    """Behind how many messages the end of the batch comes, if it comes."""


class Network:
    """Carries requests to the broker, and answers to the dispatch."""

    def __init__(self, clock: Clock, faults: Faults, speed: Speed, events: Events) -> None:
        self._clock = clock
        self._faults = faults
        self._events = events
        self._connected = False
        self._last_arrival = 0.0
        self._link = Link(speed)
        self.disconnections = 0

    def connect(self) -> None:
        """From now on answers get through."""
        self._connected = True
        self._last_arrival = self._clock.now

    def cut(self) -> bool:
        """Lose the connection; returns whether the broker ended with it.

        If so, the requests under way are lost. If not, those that the peer had taken arrive all the
        same, perhaps later.
        """
        self._connected = False
        self.disconnections += 1
        self._link.clear()
        random, under_way = self._clock.random, self._clock.withdraw(_Arrival)
        if random.random() < self._faults.restart:
            return True
        stalled = random.choice(self._faults.stalls)
        for when, arrival in under_way:
            if arrival.taken <= self._clock.now:
                self._clock.at(when + stalled, arrival)
        return False

    def transit(self) -> tuple[int, int]:
        """Bytes written, and not taken by the peer; as `Publisher.transit`."""
        return self._link.written, self._link.unsent(self._clock.now)

    # To the broker

    def send(self, request: Request, arrive: Callable[[Request], None]) -> float:
        """Send an attempt, which may be lost or arrive twice; returns when the peer has it."""
        taken = self._write(request.envelopes)
        if not self._clock.chance(self._faults.drop_request):
            self._post(taken, partial(arrive, request))
        if self._clock.chance(self._faults.repeat_request):
            self._post(taken, partial(arrive, request))
        return taken

    def send_append(self, append: SentAppend, arrive: Callable[[SentAppend], None]) -> None:
        """Send an append, of which some messages or the end may be lost."""
        taken = self._write([envelope for _, envelope in append.messages])
        chance, lost = self._clock.chance, self._faults.drop_request
        kept = [message for message in append.messages if not chance(lost / 9)]
        end = None if append.end is None or chance(lost / 3) else append.end
        self._post(taken, partial(arrive, append._replace(messages=kept, end=end)))

    def ask(self, ask: Ask, know: Callable[[Envelope], Receipt | None], seconds: float) -> None:
        """Ask for event ids; what is not answered in so many seconds counts as not known."""
        connection = self.disconnections

        def answer() -> None:
            heard = [not self._clock.chance(self._faults.drop_answer) for _ in ask.envelopes]
            known = zip(heard, map(know, ask.envelopes), strict=True)
            receipts = [receipt if is_heard else None for is_heard, receipt in known]
            delay = self._some_delay() if all(heard) else seconds
            self._clock.at(self._clock.now + delay, partial(hear, receipts))

        def hear(receipts: Sequence[Receipt | None]) -> None:
            if connection == self.disconnections:
                self._events.known(ask, receipts)

        size = ENVELOPE_OVERHEAD * len(ask.envelopes)
        self._post(self._link.write(size, self._clock.now), answer)

    def _write(self, envelopes: Iterable[Envelope]) -> float:
        """Write messages together; returns when the peer has taken them."""
        size = sum([ENVELOPE_OVERHEAD + payload_size(envelope) for envelope in envelopes])
        return self._link.write(max(size, ENVELOPE_OVERHEAD), self._clock.now)

    def _post(self, taken: float, arrive: Callable[[], None]) -> None:
        """Requests of one connection arrive in order; those of a lost one whenever they do."""
        arrival = taken + self._some_delay()
        self._last_arrival = max(self._last_arrival, arrival)
        self._clock.at(self._last_arrival, _Arrival(arrive, taken))

    # To the dispatch

    def answer(self, request: Request, answer: Receipt | Refusal) -> None:
        """Answers overtake each other; they go to whatever connection there is by then."""
        number, index, events = request.number, request.index, self._events
        if isinstance(answer, Receipt):
            report = partial(events.acked, number, index, answer)
        else:
            report = partial(events.refused, number, index, answer)
        for _ in range(2 if self._clock.chance(self._faults.repeat_answer) else 1):
            self.report(report)

    def report(self, *reports: Report) -> None:
        """An answer in several parts, which keep their order."""
        if not self._clock.chance(self._faults.drop_answer):
            self._clock.at(self._clock.now + self._some_delay(), partial(self._hear, reports))

    def _some_delay(self) -> float:
        return self._link.speed.round_trip / 2 + self._clock.delay(self._faults.delay)

    def _hear(self, reports: Iterable[Report]) -> None:
        if self._connected:
            for report in reports:
                report()


class _Arrival:
    """A request reaches the broker; a class of its own, so that a lost connection finds it."""

    def __init__(self, arrive: Callable[[], None], taken: float) -> None:
        self._arrive = arrive
        self.taken = taken
        """When the peer has taken the last byte of it."""

    def __call__(self) -> None:
        self._arrive()

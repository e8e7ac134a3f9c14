"""The simulated connection: it loses, delays and repeats requests and answers, and breaks."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from bytewax_jetstream.dispatch import Dispatch
from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.publishing import Receipt, Refusal
from tests.support.simulation.clock import Clock
from tests.support.simulation.faults import Faults

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
    messages: list[tuple[int, Envelope]]
    """Each with its index in the batch."""
    end: int | None
    """Behind how many messages the end of the batch comes, if it comes."""


class Network:
    """Carries requests to the broker, and answers to the dispatch."""

    def __init__(self, clock: Clock, faults: Faults, dispatch: Dispatch) -> None:
        self._clock = clock
        self._faults = faults
        self._dispatch = dispatch
        self._connected = False
        self._last_arrival = 0.0
        self.disconnections = 0

    def connect(self) -> None:
        """From now on answers get through."""
        self._connected = True
        self._last_arrival = self._clock.now

    def cut(self) -> bool:
        """Lose the connection; returns whether the broker ended with it.

        If so, the requests under way are lost. If not, they arrive all the same, perhaps later.
        """
        self._connected = False
        self.disconnections += 1
        random, under_way = self._clock.random, self._clock.withdraw(_Arrival)
        if random.random() < self._faults.restart:
            return True
        stalled = random.choice((0.0, 1.0, 5.0))
        for when, arrival in under_way:
            self._clock.at(when + stalled, arrival)
        return False

    def send(self, request: Request, arrive: Callable[[Request], None]) -> None:
        """Send an attempt, which may be lost or arrive twice."""
        if not self._clock.chance(self._faults.drop_request):
            self._post(partial(arrive, request))
        if self._clock.chance(self._faults.repeat_request):
            self._post(partial(arrive, request))

    def send_append(
        self,
        number: int,
        messages: list[tuple[int, Envelope]],
        end: int | None,
        arrive: Callable[[SentAppend], None],
    ) -> None:
        """Send an append, of which some messages or the end may be lost."""
        chance, lost = self._clock.chance, self._faults.drop_request
        kept = [message for message in messages if not chance(lost / 9)]
        arrives = end is not None and not chance(lost / 3)
        self._post(partial(arrive, SentAppend(number, kept, end if arrives else None)))

    def _post(self, arrive: Callable[[], None]) -> None:
        """Requests of one connection arrive in order; those of a lost one whenever they do."""
        delay = self._clock.delay(self._faults.delay)
        self._last_arrival = max(self._last_arrival, self._clock.now + delay)
        self._clock.at(self._last_arrival, _Arrival(arrive))

    def answer(self, request: Request, answer: Receipt | Refusal) -> None:
        """Answers overtake each other; they go to whatever connection there is by then."""
        for _ in range(2 if self._clock.chance(self._faults.repeat_answer) else 1):
            self.report(partial(self._deliver, request, answer))

    def report(self, *reports: Report) -> None:
        """An answer in several parts, which keep their order."""
        if not self._clock.chance(self._faults.drop_answer):
            delay = self._clock.delay(self._faults.delay)
            self._clock.at(self._clock.now + delay, partial(self._hear, reports))

    def _hear(self, reports: Iterable[Report]) -> None:
        if self._connected:
            for report in reports:
                report()

    def _deliver(self, request: Request, answer: Receipt | Refusal) -> None:
        if isinstance(answer, Receipt):
            self._dispatch.acked(request.number, request.index, answer, self._clock.now)
        else:
            self._dispatch.refused(request.number, request.index, answer, self._clock.now)


class _Arrival:
    """A request reaches the broker; a class of its own, so that a lost connection finds it."""

    def __init__(self, arrive: Callable[[], None]) -> None:
        self._arrive = arrive

    def __call__(self) -> None:
        self._arrive()

"""What may be in process at a replicated route, which then must not be believed.

Such a route counts an id as stored in a whole flight that is only in process there, proposed to the
replicas and not agreed upon, and may lose it yet with its leader. So whole flights carry only what
cannot be in process: nothing that is out or unanswered, and nothing at all while the route is in
doubt. It is in doubt

- after a start, because an earlier run may have left something;
- after an attempt that was not answered;

until it has stored an envelope, as new, that was sent since: its log is in order, so what was in
process before that is stored or gone. After a start, bytes of a dead connection may still come in,
so there it has to be an envelope that was sent an ack timeout later. A route that was made by this
publisher has no earlier run.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..envelope import Envelope
from ..publishing.answers import Receipt
from .flight import Flight, Route
from .segment import Entry

__all__ = ["Doubts"]


class _Doubt(NamedTuple):
    last: int
    """The number of the last flight that was sent before it began."""
    until: float
    """An envelope that was sent earlier does not end it."""


class Doubts:
    """Which routes are in doubt, and which ids may be in process.

    :arg route: Which route takes envelopes of a topic.
    :arg ack_timeout: Seconds in which whatever a dead connection had sent has come in.
    """

    def __init__(self, route: Callable[[str], Route | None], ack_timeout: float) -> None:
        self._route = route
        self._ack_timeout = ack_timeout
        self._seen: set[str] = set()
        """Names of replicated routes that were asked for."""
        self._doubts: dict[str, _Doubt] = {}
        self.in_process: set[str] = set()
        """Event ids that are out or unanswered on replicated routes."""

    def __len__(self) -> int:
        return len(self._doubts)

    def about(self, route: Route, last: int, now: float) -> bool:
        """Whether a route must not be given whole flights.

        :arg last: Number of the last flight that was sent.
        """
        if not route.replicated:
            return False
        if route.name not in self._seen:
            self._seen.add(route.name)
            if not route.fresh:
                self._doubts[route.name] = _Doubt(last, now + self._ack_timeout)
        return route.name in self._doubts

    def sent(self, entry: Entry) -> None:
        """An envelope goes by itself, or a group."""
        route = self._route(entry.envelope.topic)
        if route is not None and route.replicated:
            self.in_process.update([envelope.event_id for envelope in entry.envelopes])

    def not_in_process(self, envelopes: Iterable[Envelope]) -> None:
        """These have ended, or were never sent."""
        if self.in_process:
            self.in_process.difference_update([envelope.event_id for envelope in envelopes])

    def unanswered(self, topics: Iterable[str], last: int) -> None:
        """Attempts on these topics will not be answered: they may be in process for long."""
        for route in map(self._route, topics):
            if route is not None and route.replicated:
                before = self._doubts.get(route.name)
                self._doubts[route.name] = _Doubt(last, before.until if before else 0.0)

    def stored(self, flight: Flight, receipt: Receipt) -> None:
        """An envelope of a flight is stored: if the route had not had it before, what was in
        process is no more.
        """
        stream, _, _, duplicate = receipt
        if stream is None or duplicate:
            return
        doubt = self._doubts.get(stream)
        if doubt is not None and flight.number > doubt.last and flight.sent >= doubt.until:
            del self._doubts[stream]

"""`Doubts`: which ids may be in process at a replicated stream, and streams in doubt.

A replicated stream counts an event id as stored in a batch although the message is only *in
process* there: proposed to the replicas and not agreed upon. If the leader is lost, so may be the
message. So a batch must carry only ids that cannot be in process: none that is in flight or
unanswered, and none at all while the stream is in doubt. A stream is in doubt

- after a start, because an earlier run may have left messages in process;
- after an attempt that was not answered;

until it has stored, as new, an envelope sent since then. Its log is in order: whatever was in
process before that envelope is now stored or gone. After a start, bytes of a dead connection may
still arrive, so there the envelope must have been sent an ack timeout later. A stream that this
publisher made itself has no earlier run, and a stream on one server has nothing in process.

Example: a stream with three replicas, an ack timeout of 5 s.

    t = 0.0    e1 is submitted. It is the first on this stream, so the stream is in doubt, and
               nothing sent before t = 5.0 can end that. e1 goes as a single, send 1.
    t = 0.1    ack of e1: stored. It was sent before 5.0: still in doubt.
    t = 5.0    e2 is submitted and goes as a single, send 2.
    t = 5.1    ack of e2, not a duplicate: the doubt ends. From now on batches may go.
    t = 6.0    e3 to e5 go as a batch, send 3.
    t = 11.0   no answer: the batch is lost. e3 to e5 may be in process, so the stream is in doubt
               since send 3. They back off, to be tried again as singles.
    t = 11.1   e3 to e5 go again as singles, send 4.
    t = 11.2   ack of e3 with `duplicate`: it does not tell what is in process.
    t = 11.3   ack of e4, new to the stream, send 4 is after send 3: the doubt ends.

What is not sent again after a loss goes in batches once an envelope is stored that was sent an ack
timeout after it: by then it is stored, or gone.

Without the rule, e3 to e5 would go again as a batch at t = 11.1. The server would count them as
duplicates of messages in process, acknowledge the batch, and could still lose them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ..envelope import Envelope
from ..publishing import Receipt, Route

__all__ = ["Doubts"]


class _Since(NamedTuple):
    number: int
    """The last send before the doubt began: it and earlier ones cannot end it."""
    until: float
    """A send before this time cannot end it either."""

    def is_over(self, number: int, sent: float) -> bool:
        """Whether an envelope that is new to the stream ends it, by the number and time of its
        send.
        """
        return number > self.number and sent >= self.until


class Doubts:
    """Which streams are in doubt, and which event ids may be in process.

    :arg route: Which route takes batches of a topic.
    :arg ack_timeout: Seconds in which whatever a dead connection had sent has arrived.
    """

    def __init__(self, route: Callable[[str], Route | None], ack_timeout: float) -> None:
        self._route = route
        self._ack_timeout = ack_timeout
        self._seen: set[str] = set()
        """Names of replicated routes that were asked for."""
        self._since: dict[str, _Since] = {}
        """The streams in doubt."""
        self._lost: dict[str, tuple[_Since, set[str]]] = {}
        """Event ids by stream that were not answered and not sent again since. None of them is in
        process once an envelope is stored that was sent an ack timeout after the last of them:
        until then, bytes of a lost connection may arrive."""
        self.in_process: set[str] = set()
        """Event ids in flight or unanswered on replicated routes; read by all, changed here."""

    def __len__(self) -> int:
        return len(self._since)

    def is_about(self, route: Route, last_number: int, now: float) -> bool:
        """Whether a route must not be given batches.

        :arg last_number: Number of the last send.
        """
        if not route.replicated:
            return False
        if route.name not in self._seen:
            self._seen.add(route.name)
            if not route.fresh:
                self._since[route.name] = _Since(last_number, now + self._ack_timeout)
        return route.name in self._since

    def add_batch(self, envelopes: Iterable[Envelope]) -> None:
        """Envelopes go in a batch to a replicated route."""
        self._add([envelope[2] for envelope in envelopes])

    def add_singles(self, envelopes: Sequence[Envelope]) -> None:
        """Envelopes go as singles or in groups."""
        for topic in {envelope[0] for envelope in envelopes}:
            route = self._route(topic)
            if route is not None and route.replicated:
                self._add([each[2] for each in envelopes if each[0] == topic])

    def _add(self, event_ids: Sequence[str]) -> None:
        self.in_process.update(event_ids)
        for _, lost in self._lost.values():
            lost.difference_update(event_ids)

    def not_in_process(self, envelopes: Iterable[Envelope]) -> None:
        """These have ended, or are definitely not stored."""
        if self.in_process:
            self.in_process.difference_update([envelope[2] for envelope in envelopes])

    def given_up(self, envelopes: Sequence[Envelope], last_number: int) -> None:
        """These have ended unknown: attempts at them may stay in process for long."""
        for name in self._streams(envelopes):
            before = self._since.get(name)
            self._since[name] = _Since(last_number, before.until if before else 0.0)

    def unanswered(self, envelopes: Sequence[Envelope], last_number: int, now: float) -> None:
        """Attempts at these will not be answered; they go again."""
        self.given_up(envelopes, last_number)
        for name, event_ids in self._streams(envelopes).items():
            lost = self._lost[name][1] if name in self._lost else set[str]()
            lost.update(event_ids)
            self._lost[name] = _Since(last_number, now + self._ack_timeout), lost

    def _streams(self, envelopes: Sequence[Envelope]) -> dict[str, list[str]]:
        """The event ids of those on replicated routes, by stream."""
        found: dict[str, list[str]] = {}
        for topic in {envelope[0] for envelope in envelopes}:
            route = self._route(topic)
            if route is not None and route.replicated:
                event_ids = found.setdefault(route.name, [])
                event_ids += [each[2] for each in envelopes if each[0] == topic]
        return found

    def stored(self, number: int, sent: float, receipt: Receipt) -> None:
        """An envelope is stored: if it is new to the stream, nothing older is in process there.

        :arg number: Of its send.
        :arg sent: When that was.
        """
        stream, _, _, duplicate = receipt
        if stream is None or duplicate:
            return
        since = self._since.get(stream)
        if since is not None and since.is_over(number, sent):
            del self._since[stream]
        if stream in self._lost:
            since, lost = self._lost[stream]
            if since.is_over(number, sent):
                self.in_process -= lost
                del self._lost[stream]

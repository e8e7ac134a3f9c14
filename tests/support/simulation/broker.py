"""The simulated broker: what it stores, refuses and answers, and what it loses with a leader.

What it stored and which event ids it knows survives every fault, as with JetStream; it forgets the
ids after its duplicate window. A replicated broker loses its quorum: then it counts ids as stored
that are only in process, and may elect a leader that never heard of them.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from math import inf
from typing import NamedTuple

from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.publishing import Receipt, Refusal, Verdict
from tests.support.simulation.clock import HEALED, Clock
from tests.support.simulation.events import Events
from tests.support.simulation.faults import Faults
from tests.support.simulation.network import Network, Report, Request, SentAppend

__all__ = ["Broker"]


@dataclass
class Batch:
    """What the broker knows of a batch."""

    count: int = 0
    """How many of its messages it has taken."""
    pending: str = ""
    """The last id of it that was in process: nothing is said of the messages up to there until
    that one is stored."""
    over: bool = False


class _Proposal(NamedTuple):
    """An envelope that is in process, and what to answer when it is stored."""

    event_id: str
    answer: Callable[[], None]


class Broker:
    """One stream for each topic, with one log for all.

    :arg dedupe: Whether it knows event ids; without, retries are stored twice.
    :arg duplicate_window: For how long it knows them; None if forever.
    :arg problems: Takes what must never be, as sentences.
    """

    def __init__(
        self,
        clock: Clock,
        faults: Faults,
        events: Events,
        network: Network,
        *,
        dedupe: bool,
        duplicate_window: float | None,
        problems: list[str],
    ) -> None:
        self._clock = clock
        self._faults = faults
        self._events = events
        self._network = network
        self.dedupe = dedupe
        self._duplicate_window = inf if duplicate_window is None else duplicate_window
        self._problems = problems
        self.log: list[str] = []
        """Event ids, in the order in which they were stored."""
        self.indices: dict[str, int] = {}
        """Where in the log an event id was stored first."""
        self._forgets: dict[str, float] = {}
        """When it will not know an event id any more."""
        self.refused: dict[str, set[tuple[int, int]]] = defaultdict(set)
        """Which attempts it refused, or gave up, for good, by event id."""
        self._batches: dict[int, Batch] = {}
        self._quorum = True
        self._proposed: dict[str, _Proposal] = {}
        """In process, in order, by event id."""
        self.dropped = 0
        """Proposals that a new leader never heard of."""

    def restart(self) -> None:
        """It was ended and started: it remembers no batch that was not over."""
        self._batches.clear()

    # Singles and groups

    def arrive(self, request: Request) -> None:
        """Store an envelope or a group, or refuse it, and answer."""
        *before, last = request.envelopes
        if self._ignores(last.topic):
            return
        answer = self._decide(request)
        if answer is not None:
            self._answer(request, answer)
            return
        for envelope in before:
            self._store(envelope.event_id, lambda: None)
        self._store(last.event_id, lambda: self._answer(request, self._receipt(last)))

    def _answer(self, request: Request, answer: Receipt | Refusal) -> None:
        if not self._is_silent(request.envelopes[0].topic):
            self._network.answer(request, answer)

    def _knows(self, event_id: str) -> bool:
        return self.dedupe and self._forgets.get(event_id, 0.0) > self._clock.now

    def _decide(self, request: Request) -> Receipt | Refusal | None:
        """The answer to an attempt; None when it is to be stored."""
        ids = [envelope.event_id for envelope in request.envelopes]
        known = [self._knows(event_id) for event_id in ids]
        if any(known) and not all(known):
            self._problems.append(f"of {' '.join(ids)} only some are stored")
        if all(known):
            last = request.envelopes[-1]
            index = self.indices[last.event_id]
            return Receipt(_stream(last), sequence=index, duplicate=True)
        if any(event_id in self._proposed for event_id in ids):
            return Refusal(Verdict.RETRY, "this id is in process")
        if any((request.number, request.index) in self.refused[event_id] for event_id in ids):
            return Refusal(Verdict.REJECT, "never, as answered before")
        if self._clock.chance(self._faults.retry):
            return Refusal(Verdict.RETRY, "not now")
        if self._clock.chance(self._faults.reject):
            self._refuse(request)
            verdict = self._clock.random.choice((Verdict.REJECT, Verdict.STOP))
            return Refusal(verdict, "never", 400)
        if self._clock.chance(self._faults.give_up):
            self._refuse(request)
            return Refusal(Verdict.GIVE_UP, "the library gave up")
        return None

    def _refuse(self, request: Request) -> None:
        for envelope in request.envelopes:
            self.refused[envelope.event_id].add((request.number, request.index))

    def known(self, envelope: Envelope) -> Receipt | None:
        """Where it stored an event id, if it knows that and says so."""
        event_id = envelope.event_id
        if not self._knows(event_id) or self._is_silent(envelope.topic):
            return None
        return Receipt(_stream(envelope), sequence=self.indices[event_id], duplicate=True)

    # Batches

    def arrive_append(self, append: SentAppend) -> None:
        """As fast-ingest in gap mode `fail`: nothing is stored after the first message that is
        missing or refused.
        """
        if self._ignores(append.topic):
            return
        events, number, chance = self._events, append.number, self._clock.chance
        if number not in self._batches and (not append.messages or append.messages[0][0]):
            self._batches[number] = Batch(over=True)  # it never saw it begin
        batch = self._batches.setdefault(number, Batch())
        if batch.over:
            self._report(append, partial(events.batch_ended, number, 0))
            return
        if append.again and not batch.count and self._is_returned(append, batch):
            return
        reports: list[Report] = []
        for index, envelope in append.messages:
            event_id = envelope.event_id
            if index != batch.count:
                batch.over = True
                break
            if self._knows(event_id):
                if index == 0 and self._clock.random.random() < 0.5:
                    batch.over = True
                    self._report(append, partial(events.batch_returned, number, 1))
                    return
            elif event_id in self._proposed:
                pass  # taken for stored
            elif chance(self._faults.retry / 9) or chance(self._faults.reject / 9):
                reports.append(self._refuse_in_batch(number, index, event_id))
                batch.over = True
                break
            else:
                self._store(event_id, lambda: None)
                batch.pending = event_id
            batch.count += 1
            if batch.count % append.flow == 0:
                flow_ack = partial(events.batch_stored, number, batch.count)
                self._report_when_stored(append, batch.pending, flow_ack)
        if append.end is not None and not batch.over:
            batch.over = True
            if chance(self._faults.reject):
                # It does not take the end, and so does not say how much it stored.
                refused = partial(events.refused, number, append.end, Refusal(Verdict.REJECT, "no"))
                self._report_when_stored(append, batch.pending, refused)
                return
        if batch.over:
            reports.append(partial(events.batch_ended, number, batch.count))
            self._report_when_stored(append, batch.pending, *reports)

    def _is_returned(self, append: SentAppend, batch: Batch) -> bool:
        """What may be stored is asked for first; if some is in process, nothing of it is sent."""
        ids = [envelope.event_id for _, envelope in append.messages]
        known = len(list(takewhile(self._knows, ids)))
        if known:
            self._report(append, partial(self._events.batch_stored, append.number, known))
        batch.over = any(event_id in self._proposed for event_id in ids)
        if batch.over:
            self._report(append, partial(self._events.batch_returned, append.number, known))
        return batch.over

    def _refuse_in_batch(self, number: int, index: int, event_id: str) -> Report:
        verdict = self._clock.random.choice((Verdict.RETRY, Verdict.REJECT, Verdict.STOP))
        if verdict is not Verdict.RETRY:
            self.refused[event_id].add((number, index))
        return partial(self._events.refused, number, index, Refusal(verdict, "no"))

    def _report(self, append: SentAppend, *reports: Report) -> None:
        if not self._is_silent(append.topic):
            self._network.report(*reports)

    def _report_when_stored(self, append: SentAppend, event_id: str, *reports: Report) -> None:
        """Report once an envelope is no longer in process."""
        proposal = self._proposed.get(event_id)
        if proposal is None:
            self._report(append, *reports)
            return

        def answer() -> None:
            proposal.answer()
            self._report(append, *reports)

        self._proposed[event_id] = _Proposal(event_id, answer)

    # Silence

    def _is_silent(self, topic: str) -> bool:
        return self._faults.silence.covers(topic, self._clock.now)

    def _ignores(self, topic: str) -> bool:
        """Whether it does not even store what comes."""
        return self._is_silent(topic) and not self._faults.silence.stores

    # The log

    def _store(self, event_id: str, answer: Callable[[], None]) -> None:
        if not self._quorum:
            self._proposed[event_id] = _Proposal(event_id, answer)
            return
        self.indices.setdefault(event_id, len(self.log))
        self.log.append(event_id)
        self._forgets[event_id] = self._clock.now + self._duplicate_window
        answer()

    def _receipt(self, envelope: Envelope) -> Receipt:
        return Receipt(_stream(envelope), sequence=len(self.log) - 1, duplicate=False)

    # The quorum

    def plan_quorum_loss(self, after: float = 0.0) -> None:
        """Lose the quorum some time after that."""
        pause = self._clock.random.expovariate(1 / self._faults.mean_quorum)
        self._clock.at(self._clock.now + after + pause, self._lose_quorum)

    def _lose_quorum(self) -> None:
        """For some time nothing is stored. Then all that is in process is stored, or a new leader
        knows nothing of it.
        """
        now = self._clock.now
        if now >= HEALED:
            return
        self._quorum = False
        length = min(self._clock.random.choice((0.1, 1.0, 5.0)), HEALED - now)
        self._clock.at(now + length, self._regain_quorum)
        self.plan_quorum_loss(length)

    def _regain_quorum(self) -> None:
        self._quorum = True
        proposed, self._proposed = self._proposed, {}
        if self._clock.random.random() < 0.5:
            self.dropped += len(proposed)
            for batch in self._batches.values():
                batch.over = True
            return
        for proposal in proposed.values():
            self._store(proposal.event_id, proposal.answer)


def _stream(envelope: Envelope) -> str:
    return f"S-{envelope.topic}"

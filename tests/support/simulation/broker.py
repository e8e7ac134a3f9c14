"""The simulated broker: what it stores, refuses and answers, and what it loses with a leader.

What it stored and which event ids it knows survives every fault, as with JetStream. A replicated
broker loses its quorum: then it counts ids as stored that are only in process, and may elect a
leader that never heard of them.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from bytewax_jetstream.dispatch import Dispatch
from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.publishing import Receipt, Refusal, Verdict
from tests.support.simulation.clock import HEALED, Clock
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

    :arg flow_interval: It acknowledges a batch after so many messages.
    :arg dedupe: Whether it knows event ids; without, retries are stored twice.
    :arg problems: Takes what must never be, as sentences.
    """

    def __init__(
        self,
        clock: Clock,
        faults: Faults,
        dispatch: Dispatch,
        network: Network,
        *,
        flow_interval: int,
        dedupe: bool,
        problems: list[str],
    ) -> None:
        self._clock = clock
        self._faults = faults
        self._dispatch = dispatch
        self._network = network
        self._flow_interval = flow_interval
        self.dedupe = dedupe
        self._problems = problems
        self.log: list[str] = []
        """Event ids, in the order in which they were stored."""
        self.indices: dict[str, int] = {}
        """Where in the log an event id was stored first."""
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
        answer = self._decide(request)
        if answer is not None:
            self._network.answer(request, answer)
            return
        *before, last = request.envelopes
        for envelope in before:
            self._store(envelope.event_id, lambda: None)
        self._store(last.event_id, lambda: self._network.answer(request, self._receipt(last)))

    def _decide(self, request: Request) -> Receipt | Refusal | None:
        """The answer to an attempt; None when it is to be stored."""
        ids = [envelope.event_id for envelope in request.envelopes]
        known = [event_id in self.indices for event_id in ids]
        if any(known) and not all(known):
            self._problems.append(f"of {' '.join(ids)} only some are stored")
        if self.dedupe and all(known):
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
        """Where it stored an event id."""
        index = self.indices.get(envelope.event_id)
        return None if index is None else Receipt(_stream(envelope), None, index, duplicate=True)

    # Batches

    def arrive_append(self, append: SentAppend) -> None:
        """As fast-ingest in gap mode `fail`: nothing is stored after the first message that is
        missing or refused.
        """
        dispatch, number, chance = self._dispatch, append.number, self._clock.chance
        if number not in self._batches and (not append.messages or append.messages[0][0]):
            self._batches[number] = Batch(over=True)  # it never saw it begin
        batch = self._batches.setdefault(number, Batch())
        if batch.over:
            self._network.report(lambda: dispatch.batch_ended(number, 0, self._clock.now))
            return
        reports: list[Report] = []
        for index, envelope in append.messages:
            event_id = envelope.event_id
            if index != batch.count:
                batch.over = True
                break
            if self.dedupe and event_id in self.indices:
                if index == 0 and self._clock.random.random() < 0.5:
                    batch.over = True
                    self._network.report(
                        lambda: dispatch.batch_returned(number, 1, self._clock.now, duplicate=True)
                    )
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
            if batch.count % self._flow_interval == 0:
                self._report_when_stored(batch.pending, self._flow_ack(number, batch.count))
        if append.end is not None and not batch.over:
            batch.over = True
            if chance(self._faults.reject):
                # It does not take the end, and so does not say how much it stored.
                refusal, now = Refusal(Verdict.REJECT, "no"), self._clock.now
                refused = partial(dispatch.refused, number, append.end, refusal, now)
                self._report_when_stored(batch.pending, refused)
                return
        if batch.over:
            count = batch.count
            reports.append(lambda: dispatch.batch_ended(number, count, self._clock.now))
            self._report_when_stored(batch.pending, *reports)

    def _flow_ack(self, number: int, count: int) -> Report:
        return lambda: self._dispatch.batch_stored(number, count, self._clock.now)

    def _refuse_in_batch(self, number: int, index: int, event_id: str) -> Report:
        verdict = self._clock.random.choice((Verdict.RETRY, Verdict.REJECT, Verdict.STOP))
        if verdict is not Verdict.RETRY:
            self.refused[event_id].add((number, index))
        refusal = Refusal(verdict, "no")
        return partial(self._dispatch.refused, number, index, refusal, self._clock.now)

    def _report_when_stored(self, event_id: str, *reports: Report) -> None:
        """Report once an envelope is no longer in process."""
        proposal = self._proposed.get(event_id)
        if proposal is None:
            self._network.report(*reports)
            return

        def answer() -> None:
            proposal.answer()
            self._network.report(*reports)

        self._proposed[event_id] = _Proposal(event_id, answer)

    # The log

    def _store(self, event_id: str, answer: Callable[[], None]) -> None:
        if not self._quorum:
            self._proposed[event_id] = _Proposal(event_id, answer)
            return
        self.indices.setdefault(event_id, len(self.log))
        self.log.append(event_id)
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

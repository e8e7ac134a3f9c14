"""`Events`: what the broker reports, on its way to the dispatch; as `PublisherEvents`."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile

from bytewax_jetstream.dispatch import Dispatch
from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.publishing import Ask, Receipt, Refusal
from tests.support.simulation.clock import Clock
from tests.support.simulation.record import Record

__all__ = ["Events"]


class Events:
    """Passes answers on, and notes which envelopes they are about."""

    def __init__(self, clock: Clock, dispatch: Dispatch, record: Record) -> None:
        self._clock = clock
        self._dispatch = dispatch
        self._record = record
        self._singles: dict[tuple[int, int], list[str]] = {}
        """Event ids of the attempts that were not answered, by number and index."""
        self._batches: defaultdict[int, list[str]] = defaultdict(list)
        """Event ids of all messages of a batch that is not over, or silent."""
        self._begun: dict[int, float] = {}
        """When each batch was."""

    # What is sent, and so may be answered

    def sent(self, number: int, index: int, envelopes: Sequence[Envelope], taken: float) -> None:
        """A single, or a group, goes out; the peer will have taken it at that time."""
        self._singles[number, index] = [envelope.event_id for envelope in envelopes]
        fails = taken + self._record.kind.policy.attempt_seconds
        self._record.written(envelopes, self._clock.now, self._clock.now, fails)

    def appended(self, number: int, envelopes: Sequence[Envelope]) -> None:
        """The next messages of a batch go out."""
        self._batches[number] += [envelope.event_id for envelope in envelopes]
        now = self._clock.now
        begun = self._begun.setdefault(number, now)
        self._record.written(envelopes, now, begun, fails=now)

    def cut(self) -> None:
        """The connection is lost. Batches go again as a whole and are asked for then, so later
        answers to them need not be believed.
        """
        self._batches.clear()
        self._record.cut(self._clock.now)

    # What the broker reports

    def acked(self, number: int, index: int, receipt: Receipt) -> None:
        """A single, or a group, is stored."""
        # Only the first answer to an attempt counts: nobody has to believe another.
        self._record.answered(self._singles.pop((number, index), ()), self._clock.now)
        self._dispatch.acked(number, index, receipt, self._clock.now)

    def refused(self, number: int, index: int, refusal: Refusal) -> None:
        """A single, a group, or a message of a batch is not stored."""
        self._record.refused(self._singles.pop((number, index), ()), self._clock.now)
        if index == len(self._batches.get(number, ())):
            self._batches.pop(number, None)  # its end is not taken
        self._dispatch.refused(number, index, refusal, self._clock.now)

    def batch_stored(self, number: int, count: int) -> None:
        """The first messages of a batch are stored."""
        self._record.answered(self._batches.get(number, [])[:count], self._clock.now)
        self._dispatch.batch_stored(number, count, self._clock.now)

    def batch_ended(self, number: int, count: int) -> None:
        """A batch is over, and of it so much is stored."""
        self._record.answered(self._batches.pop(number, [])[:count], self._clock.now)
        self._dispatch.batch_ended(number, count, self._clock.now)

    def batch_returned(self, number: int, count: int) -> None:
        """A batch is over because its first messages were stored before."""
        self._record.answered(self._batches.pop(number, [])[:count], self._clock.now)
        self._dispatch.batch_returned(number, count, self._clock.now, duplicate=True)

    def known(self, ask: Ask, receipts: Sequence[Receipt | None]) -> None:
        """The broker was asked for event ids: those with a receipt are stored."""
        event_ids = [envelope.event_id for envelope in ask.envelopes]
        # Behind one that is not known, which is sent now, nothing has to be believed.
        known = len(list(takewhile(bool, receipts)))
        self._record.answered(event_ids[:known], self._clock.now)
        self._dispatch.known(ask.number, receipts)

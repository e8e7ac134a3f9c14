"""`Asks`: asks for the event ids of what is held behind a duplicate, many at once.

Singles of one aggregate go one after the other. After a crash, or a loss on a replicated stream,
most of them are stored already, and each would cost a round trip to learn just that. So once one of
an aggregate turns out to be a duplicate, the ids of those held behind it are asked for.

Example: e1 to e9 of one aggregate, all singles; the stream has e1 to e7.

    send 4     single: e1; e2 to e9 are held behind it
    answered   ack of e1: a duplicate
    send 5     ask: e2 to e9              (nothing of the aggregate is sent meanwhile)
    answered   known: e2 to e7            -> stored, duplicates, in order
    send 6     single: e8; e9 is held behind it

Questions that are not answered cost nothing but their time: then the next single is sent. Groups
are not asked for: the id of one message says nothing of the others, and the broker tells of a group
that it knows when it is sent again.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ..envelope import Outcome
from ..publishing import Ask, Policy, Receipt
from .lane_queue import LaneQueue
from .segment import Entry
from .settlements import Settlements
from .window import Window

__all__ = ["Asks"]

LEAST = 2
"""How many must be held: for one, a question costs as much as sending it."""
FIRST = 16
"""How many are asked for at first; twice as many each time, while all are known."""


class _Asked(NamedTuple):
    lane: LaneQueue
    aggregate: str
    entries: list[Entry]


class Asks:
    """What of the held singles is asked for."""

    def __init__(self, policy: Policy, window: Window, settlements: Settlements) -> None:
        self._most = 0 if policy.atomic else policy.max_send
        self._window = window
        self._settlements = settlements
        self._asked: dict[int, _Asked] = {}

    def behind(self, lane: LaneQueue, aggregate: str | None, most: int = FIRST) -> None:
        """A single of this aggregate is a duplicate, and about to leave its lane."""
        if not self._most or aggregate is None or len(lane.held.get(aggregate) or ()) < LEAST:
            return
        number = self._window.next_number
        entries = lane.ask(aggregate, number, min(most, self._most))
        self._asked[number] = _Asked(lane, aggregate, entries)
        self._window.send(Ask(number, [entry.envelope for entry in entries]), 0, 0)

    def known(self, number: int, receipts: Sequence[Receipt | None]) -> None:
        """The broker's answer: those it has stored end, up to the first that it has not."""
        asked = self._asked.pop(number, None)
        if asked is None or asked.lane.asked.get(asked.aggregate) != number:
            return
        lane, aggregate, entries = asked
        ended = 0
        for entry, receipt in zip(entries, receipts, strict=True):
            if receipt is None and not entry.done:
                break
            if not entry.done:
                self._settlements.settle(lane, entry, Outcome.STORED, receipt)
                ended += 1
        lane.answered(aggregate, ended)
        if all(receipts):
            self.behind(lane, aggregate, 2 * len(entries))
        lane.go_on(aggregate)

    def disconnected(self) -> None:
        """Nothing of it is answered."""
        for number, (lane, aggregate, _) in self._asked.items():
            if lane.asked.get(aggregate) == number:
                lane.answered(aggregate, 0)
                lane.go_on(aggregate)
        self._asked.clear()

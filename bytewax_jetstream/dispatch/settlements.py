"""`Settlements`: what has ended and why, for each lane, until the pool takes it."""

from collections.abc import Iterable
from typing import NamedTuple

from ..envelope import Outcome
from ..publishing import Policy, Receipt, Refusal, Verdict
from .doubts import Doubts
from .lane_queue import LaneQueue
from .segment import Entry, Group, Segment

__all__ = ["SegmentStored", "Settled", "Settlement", "Settlements", "SinglesStored"]


class Settled(NamedTuple):
    """The end of one envelope."""

    entry: Entry
    outcome: Outcome
    receipt: Receipt | None
    refusal: Refusal | None


class SegmentStored(NamedTuple):
    """Envelopes stored together, with one receipt for all."""

    segment: Segment
    receipt: Receipt


class SinglesStored(NamedTuple):
    """Envelopes stored as singles, each with a receipt of its own."""

    entries: list[Entry]
    receipts: list[Receipt]


Settlement = Settled | SegmentStored | SinglesStored


class Settlements:
    """Settles entries and segments, and keeps what is settled in order until it is taken."""

    def __init__(self, policy: Policy, doubts: Doubts) -> None:
        self._policy = policy
        self._doubts = doubts
        self._settled: dict[LaneQueue, list[Settlement]] = {}

    def add(self, lane: LaneQueue, settlement: Settlement) -> None:
        """Keep a settlement, in the order in which they came."""
        settled = self._settled.get(lane)
        if settled is None:
            self._settled[lane] = [settlement]
        else:
            settled.append(settlement)

    def settle(
        self,
        lane: LaneQueue,
        entry: Entry,
        outcome: Outcome,
        receipt: Receipt | None = None,
        refusal: Refusal | None = None,
    ) -> None:
        """End an entry, and with it each member of a group."""
        entry.done = True
        self._doubts.not_in_process(entry.envelopes)
        if not isinstance(entry, Group):
            self.add(lane, Settled(entry, outcome, receipt, refusal))
            return
        for behind, member in zip(reversed(range(entry.count)), entry.members(), strict=True):
            own = receipt.before(behind) if receipt is not None else None
            self.add(lane, Settled(member, outcome, own, refusal))

    def give_up(self, lane: LaneQueue, entries: Iterable[Entry]) -> None:
        """End entries as unknown: their delivery timeout is over."""
        for entry in entries:
            self.settle(lane, entry, Outcome.UNKNOWN, refusal=self._why_given_up(entry))

    def abandon(self, lane: LaneQueue, entries: Iterable[Entry], refusal: Refusal) -> None:
        """End entries as unknown: they will not be sent any more, or not be answered."""
        for entry in entries:
            self.settle(lane, entry, Outcome.UNKNOWN, refusal=refusal)

    def take(self) -> list[tuple[LaneQueue, list[Settlement]]]:
        """What was settled since the last call, by lane, in the order of settlement."""
        if not self._settled:
            return []
        settled, self._settled = self._settled, {}
        return list(settled.items())

    def why_silent(self) -> Refusal:
        """Why an attempt that was not answered in time has failed."""
        timeout = self._policy.ack_timeout
        if timeout is None:
            return Refusal(Verdict.RETRY, "no delivery report from the broker's library")
        return Refusal(Verdict.RETRY, f"no ack within {timeout:g} s")

    def _why_given_up(self, entry: Entry) -> Refusal:
        last = entry.last
        why = (
            last.reason
            if last is not None
            else "never sent: no connection, or no answer to what was sent before it"
        )
        reason = (
            f"not settled within {self._policy.delivery_timeout:g} s and {entry.attempts} attempts "
            f"({why}): check the broker, then publish it again with the same event id"
        )
        return Refusal(Verdict.GIVE_UP, reason, last.code if last is not None else None)

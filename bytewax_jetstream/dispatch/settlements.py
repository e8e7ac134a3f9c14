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
        self.settled = 0
        """How many envelopes were."""
        self.answered = 0
        """How many of them by an answer of the broker: these are progress."""
        self._kept: dict[LaneQueue, list[Settlement]] = {}

    def stored_singles(self, lane: LaneQueue, stored: SinglesStored) -> None:
        """Singles are stored; they are not in process."""
        self.settled += len(stored.entries)
        self.answered += len(stored.entries)
        self._keep(lane, stored)

    def stored_segment(self, lane: LaneQueue, segment: Segment, receipt: Receipt) -> None:
        """A segment is stored."""
        if self._doubts.in_process:
            self._doubts.not_in_process(segment.envelopes)
        self.settled += segment.count
        self.answered += segment.count
        self._keep(lane, SegmentStored(segment, receipt))

    def _keep(self, lane: LaneQueue, settlement: Settlement) -> None:
        kept = self._kept.get(lane)
        if kept is None:
            self._kept[lane] = [settlement]
        else:
            kept.append(settlement)

    def settle(
        self,
        lane: LaneQueue,
        entry: Entry,
        outcome: Outcome,
        receipt: Receipt | None = None,
        refusal: Refusal | None = None,
        *,
        answered: bool = True,
        sent: bool = True,
    ) -> None:
        """End an entry, and with it each member of a group.

        :arg answered: Whether the broker's answer ended it.
        :arg sent: False if it was held back because one before it is unknown: then it does not
            break its aggregate again.
        """
        entry.done = True
        if outcome is Outcome.UNKNOWN:
            lane.count_unknown(entry.envelope.aggregate_id if sent else None, entry.count)
        self._doubts.not_in_process(entry.envelopes)
        self.settled += entry.count
        self.answered += entry.count * (answered and outcome is not Outcome.UNKNOWN)
        if not isinstance(entry, Group):
            self._keep(lane, Settled(entry, outcome, receipt, refusal))
            return
        for behind, member in zip(reversed(range(entry.count)), entry.members(), strict=True):
            own = receipt.before(behind) if receipt is not None else None
            self._keep(lane, Settled(member, outcome, own, refusal))

    def give_up(self, lane: LaneQueue, entries: Iterable[Entry]) -> None:
        """End entries at their delivery timeout: as unknown, or as rejected if the broker answered
        every attempt and refused the message for its own sake.
        """
        when = f"within {self._policy.delivery_timeout:g} s of its first failed attempt"
        for entry in entries:
            self._end_unsettled(lane, entry, when)

    def abandon(
        self, lane: LaneQueue, entries: Iterable[Entry], refusal: Refusal | None = None
    ) -> None:
        """End entries as unknown: they will not be sent any more, or not be answered.

        :arg refusal: Why; by default, because the broker has settled nothing for too long. Then
            they end as at their delivery timeout.
        """
        when = f"while the broker settled nothing for {self._policy.delivery_timeout:g} s"
        for entry in entries:
            if refusal is not None:
                self.settle(lane, entry, Outcome.UNKNOWN, refusal=refusal)
            else:
                self._end_unsettled(lane, entry, when)

    def _end_unsettled(self, lane: LaneQueue, entry: Entry, when: str) -> None:
        last = entry.last
        if last is None or not last.own or entry.in_doubt:
            self.settle(lane, entry, Outcome.UNKNOWN, refusal=self._unsettled(entry, when))
            return
        reason = f"{last.reason} (refused at each of {entry.attempts} attempts)"
        refusal = Refusal(Verdict.REJECT, reason, last.code)
        self.settle(lane, entry, Outcome.REJECTED, refusal=refusal, answered=False)

    def take(self) -> list[tuple[LaneQueue, list[Settlement]]]:
        """What was settled since the last call, by lane, in the order of settlement."""
        if not self._kept:
            return []
        kept, self._kept = self._kept, {}
        return list(kept.items())

    def forgotten(self, lane: LaneQueue, entries: Iterable[Entry]) -> None:
        """End entries as unknown: the broker may not know their ids any more."""
        for entry in entries:
            reason = (
                f"not sent again: one of its {entry.attempts} attempts was not answered, and the "
                "stream may have forgotten its event id by now, so another attempt could store it "
                "twice: look in the stream whether it is there; a longer duplicate_window prevents "
                "this"
            )
            self.settle(lane, entry, Outcome.UNKNOWN, refusal=Refusal(Verdict.GIVE_UP, reason))

    def not_sent(self, lane: LaneQueue, entries: Iterable[Entry]) -> None:
        """End entries as unknown: one before them in their aggregate is unknown."""
        for entry in entries:
            again = " again" if entry.attempts else ""
            reason = (
                f"not sent{again}: an envelope before it in aggregate "
                f"{entry.envelope.aggregate_id} is unknown, and its order must be kept: "
                "publish both again with the same event ids"
            )
            last = Refusal(Verdict.GIVE_UP, reason)
            self.settle(lane, entry, Outcome.UNKNOWN, refusal=last, sent=False)

    def why_silent(self) -> Refusal:
        """Why an attempt that was not answered in time has failed."""
        timeout = self._policy.ack_timeout
        if timeout is None:
            return Refusal(Verdict.RETRY, "no delivery report from the broker's library")
        return Refusal(Verdict.RETRY, f"no ack within {timeout:g} s")

    def _unsettled(self, entry: Entry, when: str) -> Refusal:
        last = entry.last
        if last is not None:
            why = last.reason
        elif entry.attempts:
            why = "no answer"
        else:
            why = "never sent: no connection, or no answer to what was sent before it"
        reason = (
            f"not settled {when}, after {entry.attempts} attempts ({why}): "
            "check the broker, then publish it again with the same event id"
        )
        return Refusal(Verdict.GIVE_UP, reason, last.code if last is not None else None)

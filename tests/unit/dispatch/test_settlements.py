"""`Settlements` by itself: what has ended, and why."""

import pytest

from bytewax_jetstream.dispatch import (
    LaneQueue,
    SegmentStored,
    Settled,
    SinglesStored,
)
from bytewax_jetstream.dispatch.doubts import Doubts
from bytewax_jetstream.dispatch.settlements import Settlements
from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.publishing import Policy, Receipt, Refusal, Route, Verdict
from tests.support.dispatching import LATER, POLICY, RECEIPT, entry, numbered, segment

LANE, OTHER = (LaneQueue({}, one_per_aggregate=True) for _ in range(2))
NO = Refusal(Verdict.REJECT, "no", 1)


def the_settlements(policy: Policy = POLICY) -> Settlements:
    return Settlements(policy, the_doubts())


def the_doubts() -> Doubts:
    return Doubts(lambda topic: Route("R3", replicated=True, fresh=True), 5.0)


def ends(settlements: Settlements) -> list[tuple[str, Outcome, Receipt | None, Refusal | None]]:
    return [
        (one.entry.envelope.event_id, one.outcome, one.receipt, one.refusal)
        for _, some in settlements.take()
        for one in some
        if isinstance(one, Settled)
    ]


def test_settlements_are_taken_once_by_lane_and_in_order() -> None:
    settlements = the_settlements()
    first = (
        SegmentStored(segment(*numbered(1, 2)), RECEIPT),
        SinglesStored([entry("3")], [RECEIPT]),
    )
    second = (Settled(entry("4"), Outcome.REJECTED, None, NO),)
    settlements.stored_segment(LANE, first[0].segment, RECEIPT)
    settlements.settle(OTHER, second[0].entry, Outcome.REJECTED, refusal=NO)
    settlements.stored_singles(LANE, first[1])

    assert settlements.take() == [(LANE, list(first)), (OTHER, list(second))]
    assert settlements.take() == []


def test_settled_entry_is_done_and_its_id_no_longer_in_process() -> None:
    doubts = the_doubts()
    settlements = Settlements(POLICY, doubts)
    doubts.add_batch(numbered(1, 2))
    one = entry("1")
    settlements.settle(LANE, one, Outcome.STORED, RECEIPT)

    assert one.done
    assert doubts.in_process == {"2"}
    assert ends(settlements) == [("1", Outcome.STORED, RECEIPT, None)]


@pytest.mark.parametrize(
    ("sequence", "of_members"), [(9, [7, 8, 9]), (3, [1, 2, 3]), (None, [None, None, None])]
)
def test_members_of_a_stored_group_have_consecutive_sequences_up_to_its_own(
    sequence: int | None, of_members: list[int | None]
) -> None:
    settlements = the_settlements()
    (group,) = segment(*numbered(1, 2, 3), group=True).entries()
    settlements.settle(LANE, group, Outcome.STORED, RECEIPT._replace(sequence=sequence))

    assert ends(settlements) == [
        (event_id, Outcome.STORED, RECEIPT._replace(sequence=its_own), None)
        for event_id, its_own in zip("123", of_members, strict=True)
    ]


def test_members_of_a_refused_group_have_its_refusal_each() -> None:
    doubts = the_doubts()
    settlements = Settlements(POLICY, doubts)
    doubts.add_batch(numbered(1, 2, 3))
    (group,) = segment(*numbered(1, 2), group=True).entries()
    settlements.settle(LANE, group, Outcome.REJECTED, refusal=NO)

    assert ends(settlements) == [(each, Outcome.REJECTED, None, NO) for each in "12"]
    assert doubts.in_process == {"3"}


def test_abandoned_entries_are_unknown_for_the_reason_given() -> None:
    settlements = the_settlements()
    settlements.abandon(LANE, [entry("1"), entry("2")], NO)

    assert ends(settlements) == [(each, Outcome.UNKNOWN, None, NO) for each in "12"]


@pytest.mark.parametrize(
    ("attempts", "last", "why", "code"),
    [
        (
            0,
            None,
            "0 attempts (never sent: no connection, or no answer to what was sent before it)",
            None,
        ),
        (3, LATER, "3 attempts (no leader)", 503),
        (2, Refusal(Verdict.RETRY, "no ack"), "2 attempts (no ack)", None),
    ],
    ids=["never sent", "refused", "silent"],
)
def test_entry_that_is_given_up_is_unknown_with_attempts_and_last_reason(
    attempts: int, last: Refusal | None, why: str, code: int | None
) -> None:
    settlements = the_settlements()
    given_up = entry("1")
    given_up.attempts, given_up.last = attempts, last
    settlements.give_up(LANE, [given_up])
    reason = (
        f"not settled within 60 s of its first failed attempt, after {why}: "
        "check the broker, then publish it again with the same event id"
    )

    assert ends(settlements) == [
        ("1", Outcome.UNKNOWN, None, Refusal(Verdict.GIVE_UP, reason, code))
    ]


@pytest.mark.parametrize(
    ("ack_timeout", "reason"),
    [
        (0.5, "no ack within 0.5 s"),
        (5.0, "no ack within 5 s"),
        (None, "no delivery report from the broker's library"),
    ],
)
def test_silence_is_a_reason_to_retry(ack_timeout: float | None, reason: str) -> None:
    settlements = the_settlements(POLICY._replace(ack_timeout=ack_timeout))

    assert settlements.why_silent() == Refusal(Verdict.RETRY, reason)

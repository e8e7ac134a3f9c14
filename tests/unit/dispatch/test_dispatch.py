"""Each rule of the dispatch by itself; `test_dispatch_simulation.py` has them all at once."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import pytest

from bytewax_jetstream.dispatch.dispatch import Dispatch
from bytewax_jetstream.dispatch.flight import (
    Flight,
    LaneQueue,
    Leg,
    Policy,
    Route,
    Settled,
    prepare_each,
)
from bytewax_jetstream.envelope import Envelope, Outcome
from bytewax_jetstream.errors import EnvelopeError
from bytewax_jetstream.publishing.answers import Receipt, Refusal, Verdict
from tests.support.simulation import one_by_one

POLICY = Policy(
    delivery_timeout=60.0,
    ack_timeout=5.0,
    one_per_aggregate=True,
    window=100,
    window_bytes=1_000_000,
    flight=50,
)
RECEIPT = Receipt("ORDERS", None, 7, duplicate=False)
LATER = Refusal(Verdict.RETRY, "no leader", 503)
INFINITY = float("inf")


class Bench:
    """A connected dispatch with one lane, and a clock that a test moves."""

    def __init__(
        self,
        connected: bool = True,
        route: Callable[[str], Route | None] = lambda topic: None,
        **policy: Any,
    ) -> None:
        self.prepared: list[str] = []
        self.dispatch = Dispatch(
            POLICY._replace(**policy), partial(prepare_each, self._prepare), Random(1), route
        )
        self.lane = self.new_lane()
        self.now = 0.0
        if connected:
            self.dispatch.connected()

    def _prepare(self, envelope: Envelope) -> bytes:
        self.prepared.append(envelope.event_id)
        if envelope.topic == "bad":
            raise EnvelopeError("the topic is bad: choose another")
        return b"wire of " + envelope.event_id.encode()

    def new_lane(self) -> LaneQueue:
        lane = LaneQueue(None)
        self.dispatch.add_lane(lane)
        return lane

    def submit(self, *envelopes: Envelope, lane: LaneQueue | None = None, epoch: int = 0) -> None:
        self.dispatch.submit(lane or self.lane, envelopes, epoch, self.now)

    def flight(self) -> Flight:
        flight = self.dispatch.next_flight(self.now)
        assert isinstance(flight, Flight), f"to send there is {flight}"
        return flight

    def leg(self) -> Leg:
        leg = self.dispatch.next_flight(self.now)
        assert isinstance(leg, Leg), f"to send there is {leg}"
        return leg

    def flights(self) -> list[list[str]]:
        """All there is to send, as event ids."""
        found = []
        while (flight := self.dispatch.next_flight(self.now)) is not None:
            found.append(ids(flight))
        return found

    def tick(self, now: float) -> None:
        self.now = now
        self.dispatch.tick(now)

    def settled(self) -> list[Settled]:
        return [
            one
            for _, some in self.dispatch.take_settled()
            for group in some
            for one in one_by_one(group)
        ]

    def outcomes(self) -> dict[str, Outcome]:
        return {settled.entry.envelope.event_id: settled.outcome for settled in self.settled()}

    def refused(
        self, flight: Flight, index: int, verdict: Verdict, reason: str = "so it is"
    ) -> None:
        self.dispatch.refused(flight.number, index, Refusal(verdict, reason, 42), self.now)

    def is_empty(self) -> bool:
        one_by_one, traffic, lane = self.dispatch._one_by_one, self.dispatch.traffic, self.lane
        kept: list[object] = [
            one_by_one._flights,
            one_by_one._silent,
            one_by_one._backing_off,
            self.dispatch._turns,
        ]
        return not any([*kept, lane.ready, lane.held, lane.settled, traffic.out, traffic.out_bytes])


def ids(flight: Flight | Leg) -> list[str]:
    if isinstance(flight, Leg):
        return [envelope.event_id for parcel in flight.parcels for envelope in parcel.envelopes]
    return [entry.envelope.event_id for entry in flight.entries if entry is not None]


def envelope(
    event_id: str, aggregate: str | None = None, size: int = 1, topic: str = "orders"
) -> Envelope:
    return Envelope(topic, b"." * size, event_id, aggregate)


# Accepting and sending


def test_envelopes_are_sent_in_the_order_they_came() -> None:
    bench = Bench(flight=2)
    bench.submit(envelope("1"), envelope("2"))
    bench.submit(envelope("3"))

    assert bench.flights() == [["1", "2"], ["3"]]


def test_nothing_is_sent_before_there_is_a_connection() -> None:
    bench = Bench(connected=False)
    bench.submit(envelope("1"))

    assert bench.flights() == []
    bench.dispatch.connected()
    assert bench.flights() == [["1"]]


def test_a_flight_carries_what_was_prepared_once_for_all_attempts() -> None:
    bench = Bench()
    bench.submit(envelope("1"))
    first = bench.flight()
    bench.dispatch.disconnected("gone")
    bench.dispatch.connected()
    second = bench.flight()

    assert bench.prepared == ["1"]
    assert first.entries == second.entries
    assert second.entries[0] is not None
    assert second.entries[0].wire == b"wire of 1"
    assert second.entries[0].attempts == 2


def test_a_bad_envelope_is_rejected_at_once_and_harms_no_other() -> None:
    bench = Bench()
    bench.submit(envelope("1"), envelope("2", topic="bad"), envelope("3"))

    (settled,) = bench.settled()
    assert settled.entry.envelope.event_id == "2"
    assert settled.outcome is Outcome.REJECTED
    assert settled.entry.attempts == 0
    assert settled.refusal == Refusal(Verdict.REJECT, "the topic is bad: choose another")
    assert bench.flights() == [["1", "3"]]


def test_a_bad_envelope_does_not_hold_up_its_aggregate() -> None:
    bench = Bench()
    bench.submit(envelope("1", "a", topic="bad"), envelope("2", "a"))

    assert bench.flights() == [["2"]]


def test_a_value_nobody_thought_of_harms_its_own_envelope_only() -> None:
    def prepare(envelope: Envelope) -> None:
        if envelope.event_id == "1":
            raise RecursionError("a secret of the payload")

    dispatch = Dispatch(POLICY, partial(prepare_each, prepare), Random(1))
    lane = LaneQueue(None)
    dispatch.add_lane(lane)
    dispatch.connected()
    dispatch.submit(lane, [envelope("1"), envelope("2")], 0, 0.0)

    ((_, (settled,)),) = dispatch.take_settled()
    assert isinstance(settled, Settled)
    assert settled.outcome is Outcome.REJECTED
    assert settled.refusal is not None
    assert settled.refusal.reason == (
        "it cannot be encoded (RecursionError): give its fields the types Envelope names"
    )
    flight = dispatch.next_flight(0.0)
    assert flight is not None
    assert ids(flight) == ["2"]


def test_a_payload_that_is_not_bytes_counts_nothing_against_the_window() -> None:
    bench = Bench()
    bench.submit(envelope("1", topic="bad")._replace(payload="text"))  # type: ignore[arg-type]

    (settled,) = bench.settled()
    assert settled.entry.size == 0


def test_a_result_keeps_the_epoch_and_the_time_of_its_submission() -> None:
    bench = Bench()
    bench.now = 3.0
    bench.submit(envelope("1"), epoch=9)
    flight = bench.flight()
    bench.dispatch.acked(flight.number, 0, RECEIPT)

    (settled,) = bench.settled()
    assert (settled.entry.batch.submitted, settled.entry.batch.epoch) == (3.0, 9)
    assert settled.receipt == RECEIPT
    assert settled.refusal is None
    assert bench.is_empty()


# One of an aggregate at a time


def test_a_second_envelope_of_an_aggregate_waits_until_the_first_is_settled() -> None:
    bench = Bench()
    bench.submit(envelope("1", "a"), envelope("2", "a"), envelope("3", "b"), envelope("4"))
    flight = bench.flight()
    assert ids(flight) == ["1", "3", "4"]

    bench.dispatch.acked(flight.number, 1, RECEIPT)
    bench.dispatch.acked(flight.number, 2, RECEIPT)
    assert bench.flights() == []

    bench.dispatch.acked(flight.number, 0, RECEIPT)
    assert bench.flights() == [["2"]]


def test_an_aggregate_keeps_its_order_through_retries() -> None:
    bench = Bench()
    bench.submit(*(envelope(str(number), "a") for number in range(4)))
    sent = []
    for _ in range(4):
        first = bench.flight()
        bench.refused(first, 0, Verdict.RETRY)
        assert bench.flights() == []
        bench.tick(bench.now + 1)
        again = bench.flight()
        sent += ids(again)
        bench.dispatch.acked(again.number, 0, RECEIPT)

    assert sent == ["0", "1", "2", "3"]
    bench.settled()
    assert bench.is_empty()


@pytest.mark.parametrize("verdict", [Verdict.REJECT, Verdict.STOP, Verdict.GIVE_UP])
def test_the_next_of_an_aggregate_follows_however_the_first_ended(verdict: Verdict) -> None:
    bench = Bench()
    bench.submit(envelope("1", "a"), envelope("2", "a"))
    bench.refused(bench.flight(), 0, verdict)

    assert bench.flights() == [["2"]]


def test_envelopes_of_an_aggregate_in_two_lanes_do_not_wait_for_each_other() -> None:
    bench = Bench()
    other = bench.new_lane()
    bench.submit(envelope("1", "a"))
    bench.submit(envelope("2", "a"), lane=other)

    assert bench.flights() == [["1"], ["2"]]


def test_a_publisher_that_keeps_order_by_itself_gets_all_of_an_aggregate_at_once() -> None:
    bench = Bench(one_per_aggregate=False)
    bench.submit(envelope("1", "a"), envelope("2", "a"))

    assert bench.flights() == [["1", "2"]]


# Lanes take turns


def test_lanes_take_fair_turns() -> None:
    bench = Bench(flight=2, window=1000)
    lanes = {name: bench.new_lane() for name in "abc"}
    for name, lane in lanes.items():
        bench.submit(*(envelope(f"{name}{number}") for number in range(6)), lane=lane)

    assert bench.flights() == [
        ["a0", "a1"], ["b0", "b1"], ["c0", "c1"],
        ["a2", "a3"], ["b2", "b3"], ["c2", "c3"],
        ["a4", "a5"], ["b4", "b5"], ["c4", "c5"],
    ]  # fmt: skip


def test_a_lane_that_is_given_more_and_more_has_one_turn_like_the_others() -> None:
    bench = Bench(flight=1, window=1000)
    other = bench.new_lane()
    for number in range(5):
        bench.submit(envelope(f"a{number}"))
    bench.submit(envelope("b0"), envelope("b1"), lane=other)
    sent = []
    for number in range(3):
        sent.append(ids(bench.flight()))
        bench.submit(envelope(f"a{5 + number}"))

    assert sent == [["a0"], ["b0"], ["a1"]]


def test_a_lane_whose_turn_ends_overdue_envelopes_still_has_one_turn() -> None:
    bench = Bench(flight=1, delivery_timeout=10)
    other = bench.new_lane()
    bench.submit(envelope("1", "a"), envelope("2", "a"))
    bench.now = 5.0
    bench.submit(envelope("3", "a"), envelope("4"), envelope("5"))
    bench.submit(envelope("x"), envelope("y"), envelope("z"), lane=other)
    bench.now = 10.0

    assert bench.flights() == [["4"], ["x"], ["5"], ["y"], ["3"], ["z"]]
    assert bench.outcomes() == {"1": Outcome.UNKNOWN, "2": Outcome.UNKNOWN}


def test_a_silent_lane_does_not_keep_another_from_sending() -> None:
    bench = Bench()
    other = bench.new_lane()
    bench.submit(envelope("1", "a"), envelope("2", "a"))
    bench.flight()
    bench.submit(*(envelope(f"x{number}", "a") for number in range(3)), lane=other)
    for _ in range(3):
        flight = bench.flight()
        bench.dispatch.acked(flight.number, 0, RECEIPT)

    assert bench.outcomes() == dict.fromkeys(("x0", "x1", "x2"), Outcome.STORED)


# Windows


def test_no_more_messages_are_out_than_the_window_has_room_for() -> None:
    bench = Bench(window=3, flight=2)
    bench.submit(*(envelope(str(number)) for number in range(5)))
    first, second = bench.flight(), bench.flight()
    assert (ids(first), ids(second)) == (["0", "1"], ["2"])
    assert bench.flights() == []
    assert bench.dispatch.traffic.out == 3

    bench.dispatch.acked(first.number, 1, RECEIPT)
    assert bench.flights() == [["3"]]


def test_no_more_bytes_are_out_than_the_window_has_room_for() -> None:
    bench = Bench(window_bytes=100)
    bench.submit(*(envelope(str(number), size=40) for number in range(5)))
    first = bench.flight()
    assert ids(first) == ["0", "1", "2"]  # the third begins below the limit
    assert bench.flights() == []

    bench.dispatch.acked(first.number, 0, RECEIPT)
    assert bench.flights() == [["3"]]


def test_a_message_larger_than_the_byte_window_is_sent_alone() -> None:
    bench = Bench(window_bytes=100)
    bench.submit(envelope("1", size=5000), envelope("2"))
    first = bench.flight()
    assert ids(first) == ["1"]
    assert bench.flights() == []

    bench.dispatch.acked(first.number, 0, RECEIPT)
    assert bench.flights() == [["2"]]


@pytest.mark.parametrize(
    "end", ["ack", "refusal", "timeout", "disconnection", "closed lane", "abandoned"]
)
def test_room_in_the_windows_comes_back_however_a_flight_ends(end: str) -> None:
    bench = Bench()
    bench.submit(envelope("1", size=10))
    flight = bench.flight()
    assert (bench.dispatch.traffic.out, bench.dispatch.traffic.out_bytes) == (1, 10)
    match end:
        case "ack":
            bench.dispatch.acked(flight.number, 0, RECEIPT)
        case "refusal":
            bench.refused(flight, 0, Verdict.RETRY)
        case "timeout":
            bench.tick(5.0)
        case "disconnection":
            bench.dispatch.disconnected("gone")
        case "closed lane":
            bench.dispatch.remove_lane(bench.lane)
        case _:
            bench.dispatch.abandon("closed")

    assert (bench.dispatch.traffic.out, bench.dispatch.traffic.out_bytes) == (0, 0)


# Trying again


def test_an_attempt_without_an_answer_is_made_again_after_the_ack_timeout_and_a_backoff() -> None:
    bench = Bench()
    bench.submit(envelope("1"))
    first = bench.flight()
    bench.tick(4.999)
    assert bench.flights() == []
    assert bench.dispatch.traffic.out == 1
    bench.tick(5.0)
    assert bench.dispatch.traffic.out == 0
    assert bench.flights() == []

    bench.tick(5.0 + POLICY.first_backoff)
    second = bench.flight()
    assert first.entries == second.entries
    assert second.number != first.number
    assert bench.dispatch.traffic.retries == 1


def test_only_what_is_unanswered_of_a_flight_is_tried_again() -> None:
    bench = Bench()
    bench.submit(envelope("1"), envelope("2"), envelope("3"))
    flight = bench.flight()
    bench.dispatch.acked(flight.number, 1, RECEIPT)
    bench.tick(5.0)
    bench.tick(6.0)

    assert sorted(bench.flights()[0]) == ["1", "3"]
    assert bench.outcomes() == {"2": Outcome.STORED}


def test_what_a_lost_connection_took_along_is_sent_again_first_and_in_order() -> None:
    bench = Bench(flight=2)
    bench.submit(*(envelope(str(number)) for number in range(6)))
    bench.flight()
    second = bench.flight()
    bench.dispatch.acked(second.number, 0, RECEIPT)
    bench.dispatch.disconnected("gone")
    assert bench.flights() == []
    bench.dispatch.connected()

    assert bench.flights() == [["0", "1"], ["3", "4"], ["5"]]
    assert bench.dispatch.traffic.retries == 3


def test_a_backoff_grows_to_its_limit_and_is_jittered() -> None:
    pauses: list[list[float]] = []
    for _ in range(30):
        bench = Bench(delivery_timeout=1000.0)
        bench.dispatch._one_by_one._random.seed(len(pauses))
        bench.submit(envelope("1"))
        seen = []
        for _ in range(9):
            bench.refused(bench.flight(), 0, Verdict.RETRY)
            due = bench.dispatch.next_tick()
            seen.append(due - bench.now)
            bench.tick(due)
        pauses.append(seen)

    for attempt, alike in enumerate(zip(*pauses, strict=True)):
        longest = min(POLICY.longest_backoff, POLICY.first_backoff * 2**attempt)
        assert all(longest / 2 - 1e-9 <= pause <= longest + 1e-9 for pause in alike)
        assert len(set(alike)) == len(alike), "every pause is another one"


def test_a_thousand_attempts_do_not_overflow_the_backoff() -> None:
    bench = Bench(delivery_timeout=1e9)
    bench.submit(envelope("1"))
    for _ in range(1500):
        bench.refused(bench.flight(), 0, Verdict.RETRY)
        bench.tick(bench.dispatch.next_tick())

    assert bench.now < 1500 * POLICY.longest_backoff


def test_the_library_that_has_deadlines_of_its_own_is_given_none_but_the_deliverys() -> None:
    bench = Bench(ack_timeout=None)
    bench.submit(envelope("1"))
    flight = bench.flight()
    bench.tick(59.0)
    assert bench.dispatch.traffic.out == 1
    assert flight.deadline == 60.5


# What a refusal means


def test_what_is_refused_for_now_is_tried_again() -> None:
    bench = Bench()
    bench.submit(envelope("1"))
    bench.refused(bench.flight(), 0, Verdict.RETRY)
    assert bench.settled() == []
    bench.tick(1.0)

    assert bench.flights() == [["1"]]


@pytest.mark.parametrize("verdict", [Verdict.REJECT, Verdict.STOP])
def test_what_is_refused_for_good_is_rejected_with_the_reason(verdict: Verdict) -> None:
    bench = Bench()
    bench.submit(envelope("1"))
    bench.refused(bench.flight(), 0, verdict, "too large")

    (settled,) = bench.settled()
    assert settled.outcome is Outcome.REJECTED
    assert settled.refusal == Refusal(verdict, "too large", 42)
    assert bench.is_empty()


def test_what_the_library_gave_up_is_unknown() -> None:
    bench = Bench()
    bench.submit(envelope("1"))
    bench.refused(bench.flight(), 0, Verdict.GIVE_UP, "timed out in the queue")

    (settled,) = bench.settled()
    assert settled.outcome is Outcome.UNKNOWN
    assert settled.refusal == Refusal(Verdict.GIVE_UP, "timed out in the queue", 42)


def _lose_the_answer(bench: Bench, how: str) -> Flight:
    """Make an attempt whose answer does not come, and the next one."""
    flight = bench.flight()
    if how == "silence":
        bench.tick(bench.now + 5.0)
        bench.tick(bench.now + 5.0)
    else:
        bench.dispatch.disconnected("gone")
        bench.dispatch.connected()
    return flight


@pytest.mark.parametrize("how", ["silence", "disconnection"])
@pytest.mark.parametrize("verdict", [Verdict.REJECT, Verdict.STOP])
def test_a_refusal_after_an_unanswered_attempt_is_unknown_for_that_may_be_stored(
    how: str, verdict: Verdict
) -> None:
    bench = Bench()
    bench.submit(envelope("1"))
    _lose_the_answer(bench, how)
    bench.refused(bench.flight(), 0, verdict, "no permission")

    (settled,) = bench.settled()
    assert settled.outcome is Outcome.UNKNOWN
    assert settled.refusal is not None
    assert settled.refusal.verdict is verdict
    assert settled.refusal.reason == (
        "no permission; but an earlier attempt was never answered, so it may be stored"
    )


def test_a_late_refusal_takes_the_doubt_away() -> None:
    bench = Bench()
    bench.submit(envelope("1"))
    lost = _lose_the_answer(bench, "silence")
    again = bench.flight()
    bench.refused(lost, 0, Verdict.REJECT, "no permission")
    bench.refused(lost, 0, Verdict.REJECT, "said twice")
    assert bench.settled() == []
    bench.refused(again, 0, Verdict.REJECT, "no permission")

    assert bench.outcomes() == {"1": Outcome.REJECTED}


def test_a_second_answer_to_one_attempt_changes_nothing() -> None:
    bench = Bench()
    bench.submit(envelope("1"), envelope("2"))
    flight = bench.flight()
    bench.dispatch.acked(flight.number, 0, RECEIPT)
    bench.dispatch.acked(flight.number, 0, RECEIPT)
    bench.refused(flight, 0, Verdict.REJECT)

    assert bench.outcomes() == {"1": Outcome.STORED}
    assert bench.dispatch.traffic.out == 1


def test_an_answer_to_nothing_that_was_ever_sent_is_ignored() -> None:
    bench = Bench()
    bench.submit(envelope("1"))
    flight = bench.flight()
    for number, index in [(flight.number, 1), (flight.number, -1), (99, 0), (0, 0)]:
        bench.dispatch.acked(number, index, RECEIPT)
        bench.dispatch.refused(number, index, LATER, bench.now)
        assert bench.dispatch.envelopes(number, index) == []
    bench.tick(5.0)
    bench.dispatch.acked(flight.number, 7, RECEIPT)
    bench.dispatch.refused(flight.number, -1, LATER, bench.now)

    assert bench.settled() == []
    bench.tick(6.0)
    assert bench.flights() == [["1"]]


# Late answers


@pytest.mark.parametrize("how", ["silence", "disconnection"])
def test_a_late_ack_settles_and_the_retry_is_not_awaited(how: str) -> None:
    bench = Bench()
    bench.submit(envelope("1", "a"), envelope("2", "a"))
    lost = _lose_the_answer(bench, how)
    again = bench.flight()
    bench.dispatch.acked(lost.number, 0, RECEIPT)

    assert bench.outcomes() == {"1": Outcome.STORED}
    assert bench.flights() == [["2"]], "the next of the aggregate follows"
    bench.dispatch.acked(again.number, 0, RECEIPT._replace(duplicate=True))
    assert bench.settled() == []
    assert bench.dispatch.traffic.out == 1


def test_a_late_ack_during_the_backoff_settles_without_a_retry() -> None:
    bench = Bench()
    bench.submit(envelope("1"))
    flight = bench.flight()
    bench.tick(5.0)
    bench.dispatch.acked(flight.number, 0, RECEIPT)
    assert bench.outcomes() == {"1": Outcome.STORED}

    bench.tick(10.0)
    assert bench.flights() == []
    assert bench.dispatch.traffic.late_acks == 1


def test_a_late_ack_settles_what_waits_for_a_connection() -> None:
    bench = Bench()
    bench.submit(envelope("1"))
    flight = bench.flight()
    bench.dispatch.disconnected("gone")
    bench.dispatch.acked(flight.number, 0, RECEIPT)
    bench.dispatch.connected()

    assert bench.outcomes() == {"1": Outcome.STORED}
    assert bench.flights() == []


def test_what_is_kept_for_late_acks_is_let_go_when_all_is_settled() -> None:
    bench = Bench(ack_timeout=None)
    bench.submit(envelope("1"))
    bench.flight()
    bench.dispatch.disconnected("gone")
    assert len(bench.dispatch._one_by_one._silent) == 1
    bench.dispatch.connected()
    bench.dispatch.acked(bench.flight().number, 0, RECEIPT)
    bench.settled()
    bench.tick(60.0)

    assert bench.is_empty()


# Deliveries that end without an answer


def test_what_is_silent_until_the_delivery_timeout_is_unknown_and_never_rejected() -> None:
    bench = Bench()
    bench.submit(envelope("1"))
    bench.flights()
    while not (settled := bench.settled()):
        bench.tick(bench.dispatch.next_tick())
        bench.flights()

    assert [one.outcome for one in settled] == [Outcome.UNKNOWN]
    assert settled[0].refusal is not None
    assert settled[0].refusal.reason == (
        f"not settled within 60 s and {settled[0].entry.attempts} attempts (no ack within 5 s): "
        "see to the broker, then publish it again with the same event id"
    )
    assert 60.0 <= bench.now <= 65.1
    assert bench.is_empty()


def test_what_could_never_be_sent_is_unknown_at_the_delivery_timeout() -> None:
    bench = Bench(connected=False)
    bench.submit(envelope("1"))
    bench.tick(59.9)
    assert bench.settled() == []
    bench.tick(60.0)

    (settled,) = bench.settled()
    assert settled.outcome is Outcome.UNKNOWN
    assert settled.refusal is not None
    assert (
        "0 attempts (never sent: no connection, or no answer to what came before it)"
        in settled.refusal.reason
    )


def test_the_brokers_own_word_tells_more_than_a_later_silence() -> None:
    bench = Bench(delivery_timeout=6.0)
    bench.submit(envelope("1"))
    bench.refused(bench.flight(), 0, Verdict.RETRY, "maximum messages exceeded")
    bench.tick(1.0)
    bench.flight()
    bench.tick(6.0)

    (settled,) = bench.settled()
    assert settled.refusal is not None
    assert "(maximum messages exceeded)" in settled.refusal.reason
    assert settled.refusal.code == 42


def test_what_is_refused_for_now_after_its_delivery_timeout_is_unknown() -> None:
    bench = Bench(ack_timeout=None)
    bench.submit(envelope("1"))
    flight = bench.flight()
    bench.now = 61.0
    bench.refused(flight, 0, Verdict.RETRY)

    assert bench.outcomes() == {"1": Outcome.UNKNOWN}


def test_what_is_out_at_its_delivery_timeout_gets_its_answer_first() -> None:
    bench = Bench(delivery_timeout=6.0)
    bench.submit(envelope("1"))
    bench.flight()
    bench.tick(5.0)
    bench.tick(5.5)
    again = bench.flight()
    bench.tick(6.0)
    assert bench.settled() == []
    bench.dispatch.acked(again.number, 0, RECEIPT)

    assert bench.outcomes() == {"1": Outcome.STORED}


@pytest.mark.parametrize("connected", [True, False])
def test_a_long_queue_of_one_aggregate_ends_together_when_its_time_is_over(connected: bool) -> None:
    bench = Bench(connected=connected)
    bench.submit(*(envelope(str(number), "a") for number in range(2000)))
    while bench.now < 65.2:
        bench.flights()
        bench.tick(bench.dispatch.next_tick())
        if bench.dispatch.next_tick() == INFINITY:
            break
    bench.flights()

    assert bench.outcomes() == dict.fromkeys(map(str, range(2000)), Outcome.UNKNOWN)
    bench.tick(bench.now + 0.1)
    assert bench.is_empty()


def test_what_is_overdue_is_not_sent_any_more() -> None:
    bench = Bench()
    bench.submit(envelope("1"))
    bench.now = 60.0

    assert bench.flights() == []
    assert bench.outcomes() == {"1": Outcome.UNKNOWN}


# Whole flights


ROUTES = {
    topic: Route(topic.upper(), replicated=False, fresh=False) for topic in ("orders", "other")
}


def whole(**policy: Any) -> Bench:
    """Where flights are taken whole, and the broker says after every third message how far it came."""
    return Bench(route=ROUTES.get, **{"flight": 4, "flow": 3, "window": 10, **policy})


def numbered(*numbers: int, **fields: Any) -> list[Envelope]:
    return [envelope(str(number), **fields) for number in numbers]


def test_a_short_flight_goes_out_with_its_end() -> None:
    bench = whole()
    bench.submit(*numbered(1, 2, 3))
    leg = bench.leg()

    assert (ids(leg), leg.first, leg.last) == (["1", "2", "3"], 0, True)
    bench.dispatch.ended(leg.flight.number, 3, 0.0)
    assert bench.outcomes() == dict.fromkeys("123", Outcome.STORED)
    assert bench.is_empty()


def test_a_flight_goes_on_while_there_is_more_and_ends_when_the_broker_has_nothing_to_say_before_its_end() -> (
    None
):
    bench = whole()
    bench.submit(*numbered(*range(6)))
    first, second = bench.leg(), bench.leg()
    assert (ids(first), first.first, first.last) == (["0", "1", "2", "3"], 0, False)
    assert (ids(second), second.first, second.last) == (["4", "5"], 4, False)
    assert bench.flights() == []
    bench.submit(*numbered(6))
    third = bench.leg()
    assert (ids(third), third.first, third.last) == (["6"], 6, False)
    bench.dispatch.stored_through(first.flight.number, 3)
    assert bench.flights() == []
    bench.dispatch.stored_through(first.flight.number, 6)
    end = bench.leg()

    assert (ids(end), end.first, end.last) == ([], 7, True)
    assert list(bench.outcomes()) == ["0", "1", "2", "3", "4", "5"]
    bench.dispatch.ended(first.flight.number, 7, 0.0)
    assert bench.outcomes() == {"6": Outcome.STORED}
    assert bench.dispatch.traffic.whole_flights == 1
    assert bench.is_empty()


def test_what_comes_after_the_end_was_sent_waits_for_the_next_flight() -> None:
    bench = whole()
    bench.submit(*numbered(1, 2))
    leg = bench.leg()
    bench.submit(*numbered(3, 4))
    assert bench.flights() == []
    bench.dispatch.ended(leg.flight.number, 2, 0.0)

    following = bench.leg()
    assert following.flight is not leg.flight
    assert ids(following) == ["3", "4"]


def test_a_flight_that_was_stored_to_its_last_message_ends_without_an_answer() -> None:
    bench = whole()
    bench.submit(*numbered(*range(6)))
    number = bench.leg().flight.number
    bench.leg()
    bench.dispatch.stored_through(number, 6)
    end = bench.leg()

    assert (ids(end), end.last) == ([], True)
    assert bench.outcomes() == dict.fromkeys("012345", Outcome.STORED)
    assert bench.is_empty()
    assert (
        bench.dispatch.next_tick() == 60.0
    )  # nothing but its delivery timeout, which will find nothing


def test_a_full_window_ends_flights_rather_than_wait_for_words_that_do_not_come() -> None:
    bench = whole(window=6)
    lanes = [bench.new_lane() for _ in range(3)]
    for lane in lanes:
        bench.submit(*(envelope(f"{id(lane)} {number}") for number in range(4)), lane=lane)
    sent = []
    while (leg := bench.dispatch.next_flight(0.0)) is not None:
        assert isinstance(leg, Leg)
        sent.append((lanes.index(leg.lane), len(ids(leg)), leg.last))

    # Four of the first are out; for the second there is room for two, of which nothing would be
    # said.
    assert sent == [(0, 4, False)]
    bench.dispatch.stored_through(1, 3)
    assert [len(found) for found in bench.flights()] == [4, 0]


def test_an_envelope_for_another_route_ends_the_flight_and_waits_its_turn() -> None:
    bench = whole()
    bench.submit(*numbered(*range(4)))
    bench.submit(*numbered(4, 5, topic="other"))
    bench.submit(*numbered(6, 7))
    first, end = bench.leg(), bench.leg()
    assert ids(first) == ["0", "1", "2", "3"]
    assert (ids(end), end.flight, end.last) == ([], first.flight, True)
    assert bench.flights() == []
    bench.dispatch.ended(first.flight.number, 4, 0.0)

    other = bench.leg()
    assert (ids(other), other.flight.route) == (["4", "5"], ROUTES["other"])
    assert bench.flights() == [[]]  # its end: what waits is for another
    bench.dispatch.ended(other.flight.number, 2, 0.0)
    assert bench.flights() == [["6", "7"]]


def test_a_refusal_in_the_middle_is_rejected_and_what_was_sent_behind_it_goes_on_in_another_flight() -> (
    None
):
    bench = whole()
    bench.submit(*numbered(*range(8)))
    first, second = bench.leg(), bench.leg()
    bench.submit(*numbered(8))
    bench.dispatch.refused(first.flight.number, 2, Refusal(Verdict.REJECT, "no", 1), 0.0)
    assert bench.flights() == [[]]  # its end: it takes nothing any more
    bench.dispatch.ended(first.flight.number, 2, 0.0)
    for _ in second.parcels:
        bench.dispatch.ended(first.flight.number, 0, 0.0)  # it says so to each that came after

    assert bench.outcomes() == {"0": Outcome.STORED, "1": Outcome.STORED, "2": Outcome.REJECTED}
    assert bench.flights() == [["3", "4", "5", "6"], ["7", "8"]]


def test_after_a_refusal_a_lane_goes_no_further_ahead_than_it_came_and_further_with_each_that_is_stored() -> (
    None
):
    bench = whole(flight=50, window=1_000)
    bench.submit(*numbered(*range(500)))
    flight = bench.leg().flight
    bench.flights()
    bench.dispatch.refused(flight.number, 20, Refusal(Verdict.REJECT, "no", 1), 0.0)
    bench.dispatch.ended(flight.number, 20, 0.0)
    bench.flights()
    assert bench.dispatch.traffic.out == 20
    bench.dispatch.stored_through(flight.number + 1, 18)
    bench.flights()
    assert bench.dispatch.traffic.out == 20 + 18
    while bench.dispatch.traffic.out:
        bench.dispatch.stored_through(flight.number + 1, 500)
        bench.flights()

    assert Counter(bench.outcomes().values()) == {Outcome.STORED: 499, Outcome.REJECTED: 1}
    assert bench.is_empty()


def test_what_was_refused_of_a_flight_that_is_lost_is_rejected_and_what_was_behind_it_is_in_no_doubt() -> (
    None
):
    bench = whole()
    bench.submit(*numbered(1, 2, 3))
    flight = bench.leg().flight
    bench.dispatch.refused(flight.number, 1, Refusal(Verdict.REJECT, "no", 1), 0.0)
    bench.tick(5.0)
    bench.tick(5.1)
    again = bench.flight()
    for index in range(3):
        bench.refused(again, index, Verdict.REJECT)

    assert bench.outcomes() == {"1": Outcome.UNKNOWN, "2": Outcome.REJECTED, "3": Outcome.REJECTED}


def test_a_refusal_of_what_the_broker_then_counts_as_stored_was_of_another() -> None:
    bench = whole()
    bench.submit(*numbered(1, 2, 3))
    flight = bench.leg().flight
    bench.dispatch.refused(flight.number, 1, Refusal(Verdict.REJECT, "denied", 1), 0.0)
    bench.dispatch.ended(flight.number, 2, 0.0)

    assert bench.outcomes() == dict.fromkeys("12", Outcome.STORED)
    bench.tick(0.1)
    assert bench.flights() == [["3"]]


@pytest.mark.parametrize("then", ["tick", "ended", "disconnected"])
@pytest.mark.parametrize("place", [-1, 0, 3, 7])
def test_a_refusal_of_a_place_that_is_not_out_strands_nobody(place: int, then: str) -> None:
    """Place 3 is the end of the flight: a broker that does not take it says so by that number."""
    bench = whole()
    bench.submit(*numbered(1, 2, 3))
    flight = bench.leg().flight
    bench.dispatch.stored_through(flight.number, 1)
    bench.dispatch.refused(flight.number, place, Refusal(Verdict.REJECT, "no", 1), 0.0)
    if then == "tick":
        bench.tick(5.0)
    elif then == "ended":
        bench.dispatch.ended(flight.number, 1, 5.0)
    else:
        bench.dispatch.disconnected("gone")
        bench.dispatch.connected()
    bench.tick(6.0)
    again = bench.flight()
    bench.dispatch.acked_all((again.number, index, RECEIPT) for index in range(2))

    assert bench.outcomes() == dict.fromkeys("123", Outcome.STORED)
    bench.tick(7.0)
    assert bench.is_empty()


def test_a_flight_whose_first_is_refused_never_began() -> None:
    bench = whole()
    bench.submit(*numbered(1, 2, 3))
    bench.dispatch.refused(bench.leg().flight.number, 0, Refusal(Verdict.REJECT, "denied", 1), 0.0)

    assert bench.outcomes() == {"1": Outcome.REJECTED}
    assert bench.flights() == [["2", "3"]]


def test_what_no_route_takes_goes_one_by_one_beside_what_one_does() -> None:
    bench = whole(flight=10)
    topics = ["orders", "elsewhere", "other", "elsewhere"]
    bench.submit(*(envelope(str(at), topic=topics[at % 4]) for at in range(8)))

    assert bench.flights() == [["0", "4"], ["2", "6"], ["1", "3", "5", "7"]]


def test_an_aggregate_on_two_topics_of_a_route_goes_in_one_flight() -> None:
    bench = Bench(route=lambda topic: Route("ALL", replicated=False, fresh=False), flow=3)
    bench.submit(*(envelope(str(at), "a", topic=f"t{at % 2}") for at in range(4)))

    assert bench.flights() == [["0", "1", "2", "3"]]


def test_what_a_closed_lane_had_out_puts_its_route_in_doubt() -> None:
    bench = Bench(route=lambda topic: Route("R3", replicated=True, fresh=True), flow=3)
    other = bench.new_lane()
    bench.submit(*numbered(1, 2))
    bench.leg()
    bench.dispatch.remove_lane(bench.lane)
    bench.submit(*numbered(1, 2), lane=other)

    assert bench.dispatch.traffic.statistics()["streams_in_doubt"] == 1
    assert bench.flights() == [["1", "2"]]
    assert not bench.dispatch._whole._flights


def test_what_goes_again_behind_a_refusal_goes_whole_on_a_replicated_route_too() -> None:
    bench = Bench(route=lambda topic: Route("R3", replicated=True, fresh=True), flow=3)
    bench.submit(*numbered(1, 2, 3, 4))
    flight = bench.leg().flight
    bench.dispatch.refused(flight.number, 1, Refusal(Verdict.REJECT, "no", 1), 0.0)
    bench.dispatch.ended(flight.number, 1, 0.0)

    assert bench.flights() == [[], ["3", "4"]]  # the end of the first, and what goes again
    assert len(bench.dispatch._whole._flights) == 1


def test_a_plain_ack_is_none_of_a_group() -> None:
    bench = Bench(atomic=True)
    bench.submit(envelope("1", "a"), envelope("2", "a"))
    flight = bench.flight()
    bench.dispatch.acked_all([(flight.number, 0, RECEIPT)])

    assert bench.settled() == []
    assert bench.dispatch.traffic.out == 2


def test_a_leg_that_is_not_answered_is_awaited_from_when_it_was_sent() -> None:
    bench = whole()
    bench.submit(*numbered(*range(4)))
    flight = bench.leg().flight
    assert bench.dispatch.next_tick() == 5.0
    bench.tick(3.0)
    bench.submit(*numbered(4, 5, 6))
    bench.leg()
    bench.dispatch.stored_through(flight.number, 6)
    bench.flights()

    assert bench.dispatch.next_tick() == 8.0
    bench.tick(8.0)
    assert bench.dispatch.traffic.retries == 1
    bench.tick(8.1)
    assert bench.flights() == [["6"]]


@pytest.mark.parametrize("how", ["silence", "disconnected"])
def test_what_is_out_of_an_open_flight_goes_one_by_one_after_it_is_lost(how: str) -> None:
    bench = whole()
    bench.submit(*numbered(*range(6)))
    flight = bench.leg().flight
    bench.leg()
    bench.dispatch.stored_through(flight.number, 3)
    bench.settled()
    if how == "silence":
        bench.flights()
        bench.tick(5.0)
        bench.tick(5.1)
    else:
        bench.dispatch.disconnected("gone")
        bench.dispatch.connected()
    again = bench.flight()

    assert sorted(ids(again)) == ["3", "4", "5"]
    bench.dispatch.stored_through(flight.number, 5)  # late, and still true
    assert bench.outcomes() == dict.fromkeys("34", Outcome.STORED)
    bench.dispatch.acked(again.number, ids(again).index("5"), RECEIPT)
    assert bench.outcomes() == {"5": Outcome.STORED}
    assert bench.dispatch.traffic.late_acks == 2


# Groups


def test_an_aggregates_envelopes_of_one_hand_over_are_sent_as_one_and_end_as_one() -> None:
    bench = Bench(atomic=True)
    bench.submit(
        envelope("1", "a"),
        envelope("2", "b"),
        envelope("3", "a"),
        envelope("4"),
        envelope("5", "a"),
    )
    bench.submit(envelope("6", "a"), envelope("7", "a"), envelope("8", "b"))
    flight = bench.flight()

    assert [[each.event_id for each in bench.dispatch.envelopes(flight.number, at)] for at in range(4)] == [
        ["1", "3", "5"], ["2"], ["4"], [],
    ]  # fmt: skip
    assert bench.dispatch.traffic.out == 5
    bench.dispatch.acked(flight.number, 0, Receipt("ORDERS", None, 9, duplicate=False))
    ends = {one.entry.envelope.event_id: one.receipt for one in bench.settled()}
    assert {event_id: receipt and receipt.sequence for event_id, receipt in ends.items()} == {
        "1": 7,
        "3": 8,
        "5": 9,
    }
    bench.refused(bench.flight(), 0, Verdict.REJECT)
    assert bench.outcomes() == {"6": Outcome.REJECTED, "7": Outcome.REJECTED}
    assert bench.dispatch.traffic.out == 2


def test_a_group_that_is_not_answered_is_tried_again_as_one_and_its_end_is_that_of_all() -> None:
    bench = Bench(atomic=True, delivery_timeout=6.0)
    bench.submit(envelope("1", "a"), envelope("2", "a"))
    bench.flight()
    bench.tick(5.0)
    bench.tick(5.1)
    again = bench.flight()
    assert [each.event_id for each in bench.dispatch.envelopes(again.number, 0)] == ["1", "2"]
    bench.refused(again, 0, Verdict.REJECT)

    settled = bench.settled()
    assert [(one.outcome, one.entry.attempts) for one in settled] == [(Outcome.UNKNOWN, 2)] * 2
    bench.tick(6.0)
    assert bench.is_empty()


# Lanes that end


def test_a_closed_lane_settles_all_it_had_as_unknown_and_leaves_the_others_alone() -> None:
    bench = Bench(flight=2)
    other = bench.new_lane()
    bench.submit(envelope("1", "a"), envelope("2"), envelope("3", "a"), envelope("4"))
    bench.submit(envelope("x"), lane=other)
    flight, untouched = bench.flight(), bench.flight()
    bench.refused(flight, 1, Verdict.RETRY)
    bench.dispatch.remove_lane(bench.lane)

    assert bench.outcomes() == dict.fromkeys(("1", "2", "3", "4"), Outcome.UNKNOWN)
    bench.dispatch.acked(flight.number, 0, RECEIPT)
    assert bench.settled() == []
    bench.dispatch.acked(untouched.number, 0, RECEIPT)
    assert bench.outcomes() == {"x": Outcome.STORED}
    assert bench.is_empty()


def test_a_late_ack_for_a_closed_lane_is_nobodys() -> None:
    bench = Bench()
    bench.submit(envelope("1"))
    flight = bench.flight()
    bench.tick(5.0)
    bench.dispatch.remove_lane(bench.lane)
    assert bench.outcomes() == {"1": Outcome.UNKNOWN}
    bench.dispatch.acked(flight.number, 0, RECEIPT)

    assert bench.settled() == []


def test_abandoned_all_lanes_end_with_unknown_results_and_nothing_is_sent() -> None:
    bench = Bench(flight=1)
    other = bench.new_lane()
    bench.submit(envelope("1", "a"), envelope("2", "a"))
    bench.submit(envelope("x"), lane=other)
    bench.flight()
    bench.dispatch.abandon("the server is gone for good")

    settled = bench.settled()
    assert {one.entry.envelope.event_id for one in settled} == {"1", "2", "x"}
    assert {one.outcome for one in settled} == {Outcome.UNKNOWN}
    assert {one.refusal for one in settled} == {
        Refusal(Verdict.GIVE_UP, "the server is gone for good")
    }
    assert bench.flights() == []
    assert bench.is_empty()


def test_closing_a_lane_twice_does_nothing_the_second_time() -> None:
    bench = Bench()
    bench.submit(envelope("1"))
    bench.dispatch.remove_lane(bench.lane)
    bench.dispatch.remove_lane(bench.lane)

    assert bench.outcomes() == {"1": Outcome.UNKNOWN}


# When to look again


def test_an_idle_dispatch_wants_no_tick() -> None:
    bench = Bench()
    assert bench.dispatch.next_tick() == INFINITY
    bench.submit(envelope("1"))
    bench.dispatch.acked(bench.flight().number, 0, RECEIPT)
    bench.settled()
    bench.tick(bench.dispatch.next_tick())

    assert bench.dispatch.next_tick() == INFINITY


def test_the_next_tick_is_the_first_of_ack_deadline_backoff_and_delivery_timeout() -> None:
    bench = Bench(delivery_timeout=7.0)
    bench.submit(envelope("1"), envelope("2"))
    assert bench.dispatch.next_tick() == 7.0
    flight = bench.flight()
    assert bench.dispatch.next_tick() == 5.0
    bench.refused(flight, 0, Verdict.RETRY)
    assert 0.025 <= bench.dispatch.next_tick() <= 0.05
    bench.tick(5.0)
    bench.tick(5.5)
    bench.flights()

    assert bench.dispatch.next_tick() == 7.0


def test_after_a_tick_the_next_is_never_due_already() -> None:
    bench = Bench(delivery_timeout=6.0)
    bench.submit(*(envelope(str(number), "a" if number % 2 else None) for number in range(9)))
    while (due := bench.dispatch.next_tick()) != INFINITY:
        bench.tick(due)
        assert bench.dispatch.next_tick() > bench.now
        bench.flights()

    assert set(bench.outcomes().values()) == {Outcome.UNKNOWN}


# What it tells


def test_it_tells_what_is_out_where() -> None:
    bench = Bench()
    bench.submit(envelope("1", topic="a"), envelope("2", topic="b"), envelope("3", topic="a"))
    flight = bench.flight()
    bench.dispatch.acked(flight.number, 0, RECEIPT)

    assert bench.dispatch.out_on("a") == [(flight.number, 2)]
    assert [found.event_id for found in bench.dispatch.envelopes(flight.number, 1)] == ["2"]
    assert bench.dispatch.envelopes(flight.number, 0) == []


def test_settled_envelopes_are_handed_out_once_by_lane_in_the_order_of_settlement() -> None:
    bench = Bench(flight=3)
    other = bench.new_lane()
    bench.submit(envelope("1"), envelope("2"), envelope("3"))
    bench.submit(envelope("x"), lane=other)
    first, second = bench.flight(), bench.flight()
    for flight, index in [(first, 2), (second, 0), (first, 0)]:
        bench.dispatch.acked(flight.number, index, RECEIPT)

    taken = [
        (lane, [one.entry.envelope.event_id for group in some for one in one_by_one(group)])
        for lane, some in bench.dispatch.take_settled()
    ]
    assert taken == [(bench.lane, ["3", "1"]), (other, ["x"])]
    assert bench.dispatch.take_settled() == []


def test_its_repr_tells_its_state() -> None:
    bench = Bench()
    bench.submit(envelope("1"), envelope("2"))
    bench.refused(bench.flight(), 0, Verdict.RETRY)

    assert repr(bench.dispatch) == "<Dispatch connected, 1 out, 1 backing off, 1 lanes>"
    bench.dispatch.disconnected("gone")
    assert repr(bench.dispatch) == "<Dispatch disconnected, 0 out, 1 backing off, 1 lanes>"


def test_a_library_that_says_nothing_by_itself_is_not_waited_for_beyond_the_delivery_timeout() -> (
    None
):
    policy = Policy(
        delivery_timeout=60.0,
        ack_timeout=None,
        one_per_aggregate=False,
        window=100,
        window_bytes=1 << 20,
        flight=100,
    )
    dispatch = Dispatch(policy, lambda envelopes: [None] * len(envelopes), Random(1))
    lane = LaneQueue(None)
    dispatch.add_lane(lane)
    dispatch.connected()
    dispatch.submit(lane, [Envelope("t", b"", "e")], 0, 0.0)
    assert dispatch.next_flight(30.0) is not None

    dispatch.tick(60.0)
    assert dispatch.take_settled() == []
    dispatch.tick(61.0)

    ((_, (settled,)),) = dispatch.take_settled()
    assert isinstance(settled, Settled)
    assert settled.outcome is Outcome.UNKNOWN
    assert settled.refusal is not None
    assert "no word from the broker's library" in settled.refusal.reason
    assert dispatch.traffic.out == 0

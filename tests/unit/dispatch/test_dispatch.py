"""Each rule of the dispatch by itself; `test_dispatch_simulation.py` has them all at once."""

from collections import Counter
from functools import partial
from random import Random
from typing import Any

import pytest

from bytewax_jetstream.dispatch import Dispatch, Settled
from bytewax_jetstream.envelope import Envelope, Outcome
from bytewax_jetstream.publishing import (
    Append,
    Policy,
    Receipt,
    Refusal,
    Route,
    Singles,
    Verdict,
    prepare_each,
)
from tests.support.dispatching import (
    INFINITY,
    LATER,
    POLICY,
    RECEIPT,
    Driver,
    each_settled,
    envelope,
    ids,
    numbered,
)

# Accepting and sending


def test_envelopes_are_sent_in_the_order_they_came() -> None:
    driver = Driver(max_send=2)
    driver.submit(envelope("1"), envelope("2"))
    driver.submit(envelope("3"))

    assert driver.sends() == [["1", "2"], ["3"]]


def test_nothing_is_sent_before_there_is_a_connection() -> None:
    driver = Driver(connected=False)
    driver.submit(envelope("1"))

    assert driver.sends() == []
    driver.dispatch.connected()
    assert driver.sends() == [["1"]]


def test_a_flight_carries_what_was_prepared_once_for_all_attempts() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    first = driver.singles()
    driver.dispatch.disconnected("gone")
    driver.dispatch.connected()
    second = driver.singles()

    assert driver.prepared == ["1"]
    assert first.wires == second.wires == [b"wire of 1"]
    driver.dispatch.acked(second.number, 0, RECEIPT)
    (settled,) = driver.settled()
    assert settled.entry.attempts == 2


def test_a_bad_envelope_is_rejected_at_once_and_harms_no_other() -> None:
    driver = Driver()
    driver.submit(envelope("1"), envelope("2", topic="bad"), envelope("3"))

    (settled,) = driver.settled()
    assert settled.entry.envelope.event_id == "2"
    assert settled.outcome is Outcome.REJECTED
    assert settled.entry.attempts == 0
    assert settled.refusal == Refusal(Verdict.REJECT, "the topic is bad: choose another")
    assert driver.sends() == [["1", "3"]]


def test_a_bad_envelope_does_not_hold_up_its_aggregate() -> None:
    driver = Driver()
    driver.submit(envelope("1", "a", topic="bad"), envelope("2", "a"))

    assert driver.sends() == [["2"]]


def test_a_value_nobody_thought_of_harms_its_own_envelope_only() -> None:
    def prepare(envelope: Envelope) -> None:
        if envelope.event_id == "1":
            raise RecursionError("a secret of the payload")

    dispatch = Dispatch(POLICY, partial(prepare_each, prepare), Random(1))
    lane = dispatch.add_lane()
    dispatch.connected()
    dispatch.submit(lane, [envelope("1"), envelope("2")], 0, 0.0)

    ((_, (settled,)),) = dispatch.take_settled()
    assert isinstance(settled, Settled)
    assert settled.outcome is Outcome.REJECTED
    assert settled.refusal is not None
    assert settled.refusal.reason == (
        "it cannot be encoded (RecursionError): give its fields the types that Envelope names"
    )
    sent = dispatch.next_send(0.0)
    assert isinstance(sent, Singles)
    assert [each.event_id for each in sent.envelopes] == ["2"]


def test_a_payload_that_is_not_bytes_counts_nothing_against_the_window() -> None:
    driver = Driver()
    driver.submit(envelope("1", topic="bad")._replace(payload="text"))  # type: ignore[arg-type]

    (settled,) = driver.settled()
    assert settled.entry.size == 0


def test_a_result_keeps_the_epoch_and_the_time_of_its_submission() -> None:
    driver = Driver()
    driver.now = 3.0
    driver.submit(envelope("1"), epoch=9)
    sent = driver.singles()
    driver.dispatch.acked(sent.number, 0, RECEIPT)

    (settled,) = driver.settled()
    assert (settled.entry.submission.submitted, settled.entry.submission.epoch) == (3.0, 9)
    assert settled.receipt == RECEIPT
    assert settled.refusal is None
    assert driver.is_empty()


# One of an aggregate at a time


def test_a_second_envelope_of_an_aggregate_waits_until_the_first_is_settled() -> None:
    driver = Driver()
    driver.submit(envelope("1", "a"), envelope("2", "a"), envelope("3", "b"), envelope("4"))
    sent = driver.singles()
    assert ids(sent) == ["1", "3", "4"]

    driver.dispatch.acked(sent.number, 1, RECEIPT)
    driver.dispatch.acked(sent.number, 2, RECEIPT)
    assert driver.sends() == []

    driver.dispatch.acked(sent.number, 0, RECEIPT)
    assert driver.sends() == [["2"]]


def test_an_aggregate_keeps_its_order_through_retries() -> None:
    driver = Driver()
    driver.submit(*(envelope(str(number), "a") for number in range(4)))
    sent = []
    for _ in range(4):
        first = driver.singles()
        driver.refused(first, 0, Verdict.RETRY)
        assert driver.sends() == []
        driver.tick(driver.now + 1)
        again = driver.singles()
        sent += ids(again)
        driver.dispatch.acked(again.number, 0, RECEIPT)

    assert sent == ["0", "1", "2", "3"]
    driver.settled()
    assert driver.is_empty()


@pytest.mark.parametrize("verdict", [Verdict.REJECT, Verdict.STOP, Verdict.GIVE_UP])
def test_the_next_of_an_aggregate_follows_however_the_first_ended(verdict: Verdict) -> None:
    driver = Driver()
    driver.submit(envelope("1", "a"), envelope("2", "a"))
    driver.refused(driver.singles(), 0, verdict)

    assert driver.sends() == [["2"]]


def test_envelopes_of_an_aggregate_in_two_lanes_do_not_wait_for_each_other() -> None:
    driver = Driver()
    other = driver.new_lane()
    driver.submit(envelope("1", "a"))
    driver.submit(envelope("2", "a"), lane=other)

    assert driver.sends() == [["1"], ["2"]]


def test_a_publisher_that_keeps_order_by_itself_gets_all_of_an_aggregate_at_once() -> None:
    driver = Driver(one_per_aggregate=False)
    driver.submit(envelope("1", "a"), envelope("2", "a"))

    assert driver.sends() == [["1", "2"]]


# Lanes take turns


def test_lanes_take_fair_turns() -> None:
    driver = Driver(max_send=2, window=1000)
    lanes = {name: driver.new_lane() for name in "abc"}
    for name, lane in lanes.items():
        driver.submit(*(envelope(f"{name}{number}") for number in range(6)), lane=lane)

    assert driver.sends() == [
        ["a0", "a1"], ["b0", "b1"], ["c0", "c1"],
        ["a2", "a3"], ["b2", "b3"], ["c2", "c3"],
        ["a4", "a5"], ["b4", "b5"], ["c4", "c5"],
    ]  # fmt: skip


def test_a_lane_that_is_given_more_and_more_has_one_turn_like_the_others() -> None:
    driver = Driver(max_send=1, window=1000)
    other = driver.new_lane()
    for number in range(5):
        driver.submit(envelope(f"a{number}"))
    driver.submit(envelope("b0"), envelope("b1"), lane=other)
    sent = []
    for number in range(3):
        sent.append(ids(driver.singles()))
        driver.submit(envelope(f"a{5 + number}"))

    assert sent == [["a0"], ["b0"], ["a1"]]


def test_a_lane_whose_turn_ends_overdue_envelopes_still_has_one_turn() -> None:
    driver = Driver(max_send=1, delivery_timeout=10)
    other = driver.new_lane()
    driver.submit(envelope("1", "a"), envelope("2", "a"))
    driver.now = 5.0
    driver.submit(envelope("3", "a"), envelope("4"), envelope("5"))
    driver.submit(envelope("x"), envelope("y"), envelope("z"), lane=other)
    driver.now = 10.0

    assert driver.sends() == [["4"], ["x"], ["5"], ["y"], ["3"], ["z"]]
    assert driver.outcomes() == {"1": Outcome.UNKNOWN, "2": Outcome.UNKNOWN}


def test_a_silent_lane_does_not_keep_another_from_sending() -> None:
    driver = Driver()
    other = driver.new_lane()
    driver.submit(envelope("1", "a"), envelope("2", "a"))
    driver.singles()
    driver.submit(*(envelope(f"x{number}", "a") for number in range(3)), lane=other)
    for _ in range(3):
        sent = driver.singles()
        driver.dispatch.acked(sent.number, 0, RECEIPT)

    assert driver.outcomes() == dict.fromkeys(("x0", "x1", "x2"), Outcome.STORED)


# Windows


def test_no_more_messages_are_out_than_the_window_has_room_for() -> None:
    driver = Driver(window=3, max_send=2)
    driver.submit(*(envelope(str(number)) for number in range(5)))
    first, second = driver.singles(), driver.singles()
    assert (ids(first), ids(second)) == (["0", "1"], ["2"])
    assert driver.sends() == []
    assert driver.dispatch.in_flight == 3

    driver.dispatch.acked(first.number, 1, RECEIPT)
    assert driver.sends() == [["3"]]


def test_no_more_bytes_are_out_than_the_window_has_room_for() -> None:
    driver = Driver(window_bytes=100)
    driver.submit(*(envelope(str(number), size=40) for number in range(5)))
    first = driver.singles()
    assert ids(first) == ["0", "1", "2"]  # the third begins below the limit
    assert driver.sends() == []

    driver.dispatch.acked(first.number, 0, RECEIPT)
    assert driver.sends() == [["3"]]


def test_a_message_larger_than_the_byte_window_is_sent_alone() -> None:
    driver = Driver(window_bytes=100)
    driver.submit(envelope("1", size=5000), envelope("2"))
    first = driver.singles()
    assert ids(first) == ["1"]
    assert driver.sends() == []

    driver.dispatch.acked(first.number, 0, RECEIPT)
    assert driver.sends() == [["2"]]


@pytest.mark.parametrize(
    "end", ["ack", "refusal", "timeout", "disconnection", "closed lane", "abandoned"]
)
def test_room_in_the_windows_comes_back_however_a_flight_ends(end: str) -> None:
    driver = Driver()
    driver.submit(envelope("1", size=10))
    sent = driver.singles()
    assert (driver.dispatch.in_flight, driver.dispatch._window.bytes) == (1, 10)
    match end:
        case "ack":
            driver.dispatch.acked(sent.number, 0, RECEIPT)
        case "refusal":
            driver.refused(sent, 0, Verdict.RETRY)
        case "timeout":
            driver.tick(5.0)
        case "disconnection":
            driver.dispatch.disconnected("gone")
        case "closed lane":
            driver.dispatch.remove_lane(driver.lane)
        case _:
            driver.dispatch.abandon("closed")

    assert (driver.dispatch.in_flight, driver.dispatch._window.bytes) == (0, 0)


# Trying again


def test_an_attempt_without_an_answer_is_made_again_after_the_ack_timeout_and_a_backoff() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    first = driver.singles()
    driver.tick(4.999)
    assert driver.sends() == []
    assert driver.dispatch.in_flight == 1
    driver.tick(5.0)
    assert driver.dispatch.in_flight == 0
    assert driver.sends() == []

    driver.tick(5.0 + POLICY.first_backoff)
    second = driver.singles()
    assert first.wires == second.wires
    assert second.number != first.number
    assert driver.counted("retries") == 1


def test_only_what_is_unanswered_of_a_flight_is_tried_again() -> None:
    driver = Driver()
    driver.submit(envelope("1"), envelope("2"), envelope("3"))
    sent = driver.singles()
    driver.dispatch.acked(sent.number, 1, RECEIPT)
    driver.tick(5.0)
    driver.tick(6.0)

    assert sorted(driver.sends()[0]) == ["1", "3"]
    assert driver.outcomes() == {"2": Outcome.STORED}


def test_what_a_lost_connection_took_along_is_sent_again_first_and_in_order() -> None:
    driver = Driver(max_send=2)
    driver.submit(*(envelope(str(number)) for number in range(6)))
    driver.singles()
    second = driver.singles()
    driver.dispatch.acked(second.number, 0, RECEIPT)
    driver.dispatch.disconnected("gone")
    assert driver.sends() == []
    driver.dispatch.connected()

    assert driver.sends() == [["0", "1"], ["3", "4"], ["5"]]
    assert driver.counted("retries") == 3


def test_a_backoff_grows_to_its_limit_and_is_jittered() -> None:
    pauses: list[list[float]] = []
    for _ in range(30):
        driver = Driver(delivery_timeout=1000.0)
        driver.dispatch._singles._random.seed(len(pauses))
        driver.submit(envelope("1"))
        seen = []
        for _ in range(9):
            driver.refused(driver.singles(), 0, Verdict.RETRY)
            due = driver.dispatch.next_tick()
            seen.append(due - driver.now)
            driver.tick(due)
        pauses.append(seen)

    for attempt, alike in enumerate(zip(*pauses, strict=True)):
        longest = min(POLICY.longest_backoff, POLICY.first_backoff * 2**attempt)
        assert all(longest / 2 - 1e-9 <= pause <= longest + 1e-9 for pause in alike)
        assert len(set(alike)) == len(alike), "every pause is another one"


def test_a_thousand_attempts_do_not_overflow_the_backoff() -> None:
    driver = Driver(delivery_timeout=1e9)
    driver.submit(envelope("1"))
    for _ in range(1500):
        driver.refused(driver.singles(), 0, Verdict.RETRY)
        driver.tick(driver.dispatch.next_tick())

    assert driver.now < 1500 * POLICY.longest_backoff


def test_the_library_that_has_deadlines_of_its_own_is_given_none_but_the_deliverys() -> None:
    driver = Driver(ack_timeout=None)
    driver.submit(envelope("1"))
    driver.singles()
    driver.tick(59.0)
    assert driver.dispatch.in_flight == 1
    driver.tick(60.4)
    assert driver.dispatch.in_flight == 1
    driver.tick(60.5)
    assert driver.dispatch.in_flight == 0


# What a refusal means


def test_what_is_refused_for_now_is_tried_again() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    driver.refused(driver.singles(), 0, Verdict.RETRY)
    assert driver.settled() == []
    driver.tick(1.0)

    assert driver.sends() == [["1"]]


@pytest.mark.parametrize("verdict", [Verdict.REJECT, Verdict.STOP])
def test_what_is_refused_for_good_is_rejected_with_the_reason(verdict: Verdict) -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    driver.refused(driver.singles(), 0, verdict, "too large")

    (settled,) = driver.settled()
    assert settled.outcome is Outcome.REJECTED
    assert settled.refusal == Refusal(verdict, "too large", 42)
    assert driver.is_empty()


def test_what_the_library_gave_up_is_unknown() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    driver.refused(driver.singles(), 0, Verdict.GIVE_UP, "timed out in the queue")

    (settled,) = driver.settled()
    assert settled.outcome is Outcome.UNKNOWN
    assert settled.refusal == Refusal(Verdict.GIVE_UP, "timed out in the queue", 42)


def _lose_the_answer(driver: Driver, how: str) -> Singles:
    """Make an attempt whose answer does not come, and the next one."""
    sent = driver.singles()
    if how == "silence":
        driver.tick(driver.now + 5.0)
        driver.tick(driver.now + 5.0)
    else:
        driver.dispatch.disconnected("gone")
        driver.dispatch.connected()
    return sent


@pytest.mark.parametrize("how", ["silence", "disconnection"])
@pytest.mark.parametrize("verdict", [Verdict.REJECT, Verdict.STOP])
def test_a_refusal_after_an_unanswered_attempt_is_unknown_for_that_may_be_stored(
    how: str, verdict: Verdict
) -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    _lose_the_answer(driver, how)
    driver.refused(driver.singles(), 0, verdict, "no permission")

    (settled,) = driver.settled()
    assert settled.outcome is Outcome.UNKNOWN
    assert settled.refusal is not None
    assert settled.refusal.verdict is verdict
    assert settled.refusal.reason == (
        "no permission; but an earlier attempt was never answered, so it may be stored"
    )


def test_a_late_refusal_takes_the_doubt_away() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    lost = _lose_the_answer(driver, "silence")
    again = driver.singles()
    driver.refused(lost, 0, Verdict.REJECT, "no permission")
    driver.refused(lost, 0, Verdict.REJECT, "said twice")
    assert driver.settled() == []
    driver.refused(again, 0, Verdict.REJECT, "no permission")

    assert driver.outcomes() == {"1": Outcome.REJECTED}


def test_a_second_answer_to_one_attempt_changes_nothing() -> None:
    driver = Driver()
    driver.submit(envelope("1"), envelope("2"))
    sent = driver.singles()
    driver.dispatch.acked(sent.number, 0, RECEIPT)
    driver.dispatch.acked(sent.number, 0, RECEIPT)
    driver.refused(sent, 0, Verdict.REJECT)

    assert driver.outcomes() == {"1": Outcome.STORED}
    assert driver.dispatch.in_flight == 1


def test_an_answer_to_nothing_that_was_ever_sent_is_ignored() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    sent = driver.singles()
    for number, index in [(sent.number, 1), (sent.number, -1), (99, 0), (0, 0)]:
        driver.dispatch.acked(number, index, RECEIPT)
        driver.dispatch.refused(number, index, LATER, driver.now)
        assert driver.dispatch.in_flight_at(number, index) == []
    driver.tick(5.0)
    driver.dispatch.acked(sent.number, 7, RECEIPT)
    driver.dispatch.refused(sent.number, -1, LATER, driver.now)

    assert driver.settled() == []
    driver.tick(6.0)
    assert driver.sends() == [["1"]]


# Late answers


@pytest.mark.parametrize("how", ["silence", "disconnection"])
def test_a_late_ack_settles_and_the_retry_is_not_awaited(how: str) -> None:
    driver = Driver()
    driver.submit(envelope("1", "a"), envelope("2", "a"))
    lost = _lose_the_answer(driver, how)
    again = driver.singles()
    driver.dispatch.acked(lost.number, 0, RECEIPT)

    assert driver.outcomes() == {"1": Outcome.STORED}
    assert driver.sends() == [["2"]], "the next of the aggregate follows"
    driver.dispatch.acked(again.number, 0, RECEIPT._replace(duplicate=True))
    assert driver.settled() == []
    assert driver.dispatch.in_flight == 1


def test_a_late_ack_during_the_backoff_settles_without_a_retry() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    sent = driver.singles()
    driver.tick(5.0)
    driver.dispatch.acked(sent.number, 0, RECEIPT)
    assert driver.outcomes() == {"1": Outcome.STORED}

    driver.tick(10.0)
    assert driver.sends() == []
    assert driver.counted("late_acks") == 1


def test_a_late_ack_settles_what_waits_for_a_connection() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    sent = driver.singles()
    driver.dispatch.disconnected("gone")
    driver.dispatch.acked(sent.number, 0, RECEIPT)
    driver.dispatch.connected()

    assert driver.outcomes() == {"1": Outcome.STORED}
    assert driver.sends() == []


def test_what_is_kept_for_late_acks_is_let_go_when_all_is_settled() -> None:
    driver = Driver(ack_timeout=None)
    driver.submit(envelope("1"))
    driver.singles()
    driver.dispatch.disconnected("gone")
    assert len(driver.dispatch._singles._silent) == 1
    driver.dispatch.connected()
    driver.dispatch.acked(driver.singles().number, 0, RECEIPT)
    driver.settled()
    driver.tick(60.0)

    assert driver.is_empty()


# Deliveries that end without an answer


def test_what_is_silent_until_the_delivery_timeout_is_unknown_and_never_rejected() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    driver.sends()
    while not (settled := driver.settled()):
        driver.tick(driver.dispatch.next_tick())
        driver.sends()

    assert [one.outcome for one in settled] == [Outcome.UNKNOWN]
    assert settled[0].refusal is not None
    assert settled[0].refusal.reason == (
        f"not settled within 60 s and {settled[0].entry.attempts} attempts (no ack within 5 s): "
        "check the broker, then publish it again with the same event id"
    )
    assert 60.0 <= driver.now <= 65.1
    assert driver.is_empty()


def test_what_could_never_be_sent_is_unknown_at_the_delivery_timeout() -> None:
    driver = Driver(connected=False)
    driver.submit(envelope("1"))
    driver.tick(59.9)
    assert driver.settled() == []
    driver.tick(60.0)

    (settled,) = driver.settled()
    assert settled.outcome is Outcome.UNKNOWN
    assert settled.refusal is not None
    assert (
        "0 attempts (never sent: no connection, or no answer to what was sent before it)"
        in settled.refusal.reason
    )


def test_the_brokers_own_word_tells_more_than_a_later_silence() -> None:
    driver = Driver(delivery_timeout=6.0)
    driver.submit(envelope("1"))
    driver.refused(driver.singles(), 0, Verdict.RETRY, "maximum messages exceeded")
    driver.tick(1.0)
    driver.singles()
    driver.tick(6.0)

    (settled,) = driver.settled()
    assert settled.refusal is not None
    assert "(maximum messages exceeded)" in settled.refusal.reason
    assert settled.refusal.code == 42


def test_what_is_refused_for_now_after_its_delivery_timeout_is_unknown() -> None:
    driver = Driver(ack_timeout=None)
    driver.submit(envelope("1"))
    sent = driver.singles()
    driver.now = 61.0
    driver.refused(sent, 0, Verdict.RETRY)

    assert driver.outcomes() == {"1": Outcome.UNKNOWN}


def test_what_is_out_at_its_delivery_timeout_gets_its_answer_first() -> None:
    driver = Driver(delivery_timeout=6.0)
    driver.submit(envelope("1"))
    driver.singles()
    driver.tick(5.0)
    driver.tick(5.5)
    again = driver.singles()
    driver.tick(6.0)
    assert driver.settled() == []
    driver.dispatch.acked(again.number, 0, RECEIPT)

    assert driver.outcomes() == {"1": Outcome.STORED}


@pytest.mark.parametrize("connected", [True, False])
def test_a_long_queue_of_one_aggregate_ends_together_when_its_time_is_over(connected: bool) -> None:
    driver = Driver(connected=connected)
    driver.submit(*(envelope(str(number), "a") for number in range(2000)))
    while driver.now < 65.2:
        driver.sends()
        driver.tick(driver.dispatch.next_tick())
        if driver.dispatch.next_tick() == INFINITY:
            break
    driver.sends()

    assert driver.outcomes() == dict.fromkeys(map(str, range(2000)), Outcome.UNKNOWN)
    driver.tick(driver.now + 0.1)
    assert driver.is_empty()


def test_what_is_overdue_is_not_sent_any_more() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    driver.now = 60.0

    assert driver.sends() == []
    assert driver.outcomes() == {"1": Outcome.UNKNOWN}


# Whole flights


ROUTES = {
    topic: Route(topic.upper(), replicated=False, fresh=False) for topic in ("orders", "other")
}


def batching(**policy: Any) -> Driver:
    """Where flights are taken whole, and the broker says after every third message how far it came."""
    return Driver(route=ROUTES.get, **{"max_send": 4, "flow_interval": 3, "window": 10, **policy})


def test_a_short_flight_goes_out_with_its_end() -> None:
    driver = batching()
    driver.submit(*numbered(1, 2, 3))
    append = driver.append()

    assert (ids(append), append.first, append.last) == (["1", "2", "3"], 0, True)
    driver.dispatch.batch_ended(append.number, 3, 0.0)
    assert driver.outcomes() == dict.fromkeys("123", Outcome.STORED)
    assert driver.is_empty()


def test_a_flight_goes_on_while_there_is_more_and_ends_when_the_broker_has_nothing_to_say_before_its_end() -> (
    None
):
    driver = batching()
    driver.submit(*numbered(*range(6)))
    first, second = driver.append(), driver.append()
    assert (ids(first), first.first, first.last) == (["0", "1", "2", "3"], 0, False)
    assert (ids(second), second.first, second.last) == (["4", "5"], 4, False)
    assert driver.sends() == []
    driver.submit(*numbered(6))
    third = driver.append()
    assert (ids(third), third.first, third.last) == (["6"], 6, False)
    driver.dispatch.batch_stored(first.number, 3)
    assert driver.sends() == []
    driver.dispatch.batch_stored(first.number, 6)
    end = driver.append()

    assert (ids(end), end.first, end.last) == ([], 7, True)
    assert list(driver.outcomes()) == ["0", "1", "2", "3", "4", "5"]
    driver.dispatch.batch_ended(first.number, 7, 0.0)
    assert driver.outcomes() == {"6": Outcome.STORED}
    assert driver.counted("batches") == 1
    assert driver.is_empty()


def test_what_comes_after_the_end_was_sent_waits_for_the_next_flight() -> None:
    driver = batching()
    driver.submit(*numbered(1, 2))
    append = driver.append()
    driver.submit(*numbered(3, 4))
    assert driver.sends() == []
    driver.dispatch.batch_ended(append.number, 2, 0.0)

    following = driver.append()
    assert following.number != append.number
    assert ids(following) == ["3", "4"]


def test_a_flight_that_was_stored_to_its_last_message_ends_without_an_answer() -> None:
    driver = batching()
    driver.submit(*numbered(*range(6)))
    number = driver.append().number
    driver.append()
    driver.dispatch.batch_stored(number, 6)
    end = driver.append()

    assert (ids(end), end.last) == ([], True)
    assert driver.outcomes() == dict.fromkeys("012345", Outcome.STORED)
    assert driver.is_empty()
    assert (
        driver.dispatch.next_tick() == 60.0
    )  # nothing but its delivery timeout, which will find nothing


def test_a_full_window_ends_flights_rather_than_wait_for_words_that_do_not_come() -> None:
    driver = batching(window=6)
    lanes = [driver.new_lane() for _ in range(3)]
    for lane in lanes:
        driver.submit(*(envelope(f"{id(lane)} {number}") for number in range(4)), lane=lane)
    sent = []
    while (append := driver.dispatch.next_send(0.0)) is not None:
        assert isinstance(append, Append)
        lane = driver.dispatch._batches.sent[append.number].lane.queue
        sent.append((lanes.index(lane), len(ids(append)), append.last))

    # Four of the first are out; for the second there is room for two, of which nothing would be
    # said.
    assert sent == [(0, 4, False)]
    driver.dispatch.batch_stored(1, 3)
    assert [len(found) for found in driver.sends()] == [4, 0]


def test_an_envelope_for_another_route_ends_the_flight_and_waits_its_turn() -> None:
    driver = batching()
    driver.submit(*numbered(*range(4)))
    driver.submit(*numbered(4, 5, topic="other"))
    driver.submit(*numbered(6, 7))
    first, end = driver.append(), driver.append()
    assert ids(first) == ["0", "1", "2", "3"]
    assert (ids(end), end.number, end.last) == ([], first.number, True)
    assert driver.sends() == []
    driver.dispatch.batch_ended(first.number, 4, 0.0)

    other = driver.append()
    assert (ids(other), other.topics) == (["4", "5"], ["other", "other"])
    assert driver.sends() == [[]]  # its end: what waits is for another
    driver.dispatch.batch_ended(other.number, 2, 0.0)
    assert driver.sends() == [["6", "7"]]


def test_a_refusal_in_the_middle_is_rejected_and_what_was_sent_behind_it_goes_on_in_another_flight() -> (
    None
):
    driver = batching()
    driver.submit(*numbered(*range(8)))
    first, second = driver.append(), driver.append()
    driver.submit(*numbered(8))
    driver.dispatch.refused(first.number, 2, Refusal(Verdict.REJECT, "no", 1), 0.0)
    assert driver.sends() == [[]]  # its end: it takes nothing any more
    driver.dispatch.batch_ended(first.number, 2, 0.0)
    for _ in second.topics:
        driver.dispatch.batch_ended(first.number, 0, 0.0)  # it says so to each that came after

    assert driver.outcomes() == {"0": Outcome.STORED, "1": Outcome.STORED, "2": Outcome.REJECTED}
    assert driver.sends() == [["3", "4", "5", "6"], ["7", "8"]]


def test_after_a_refusal_a_lane_goes_no_further_ahead_than_it_came_and_further_with_each_that_is_stored() -> (
    None
):
    driver = batching(max_send=50, window=1_000)
    driver.submit(*numbered(*range(500)))
    sent = driver.append()
    driver.sends()
    driver.dispatch.refused(sent.number, 20, Refusal(Verdict.REJECT, "no", 1), 0.0)
    driver.dispatch.batch_ended(sent.number, 20, 0.0)
    driver.sends()
    assert driver.dispatch.in_flight == 20
    driver.dispatch.batch_stored(sent.number + 1, 18)
    driver.sends()
    assert driver.dispatch.in_flight == 20 + 18
    while driver.dispatch.in_flight:
        driver.dispatch.batch_stored(sent.number + 1, 500)
        driver.sends()

    assert Counter(driver.outcomes().values()) == {Outcome.STORED: 499, Outcome.REJECTED: 1}
    assert driver.is_empty()


def test_what_was_refused_of_a_flight_that_is_lost_is_rejected_and_what_was_behind_it_is_in_no_doubt() -> (
    None
):
    driver = batching()
    driver.submit(*numbered(1, 2, 3))
    sent = driver.append()
    driver.dispatch.refused(sent.number, 1, Refusal(Verdict.REJECT, "no", 1), 0.0)
    driver.tick(5.0)
    driver.tick(5.1)
    again = driver.singles()
    for index in range(3):
        driver.refused(again, index, Verdict.REJECT)

    assert driver.outcomes() == {"1": Outcome.UNKNOWN, "2": Outcome.REJECTED, "3": Outcome.REJECTED}


def test_a_refusal_of_what_the_broker_then_counts_as_stored_was_of_another() -> None:
    driver = batching()
    driver.submit(*numbered(1, 2, 3))
    sent = driver.append()
    driver.dispatch.refused(sent.number, 1, Refusal(Verdict.REJECT, "denied", 1), 0.0)
    driver.dispatch.batch_ended(sent.number, 2, 0.0)

    assert driver.outcomes() == dict.fromkeys("12", Outcome.STORED)
    driver.tick(0.1)
    assert driver.sends() == [["3"]]


@pytest.mark.parametrize("then", ["tick", "ended", "disconnected"])
@pytest.mark.parametrize("place", [-1, 0, 3, 7])
def test_a_refusal_of_a_place_that_is_not_out_strands_nobody(place: int, then: str) -> None:
    """Place 3 is the end of the sent: a broker that does not take it says so by that number."""
    driver = batching()
    driver.submit(*numbered(1, 2, 3))
    sent = driver.append()
    driver.dispatch.batch_stored(sent.number, 1)
    driver.dispatch.refused(sent.number, place, Refusal(Verdict.REJECT, "no", 1), 0.0)
    if then == "tick":
        driver.tick(5.0)
    elif then == "ended":
        driver.dispatch.batch_ended(sent.number, 1, 5.0)
    else:
        driver.dispatch.disconnected("gone")
        driver.dispatch.connected()
    driver.tick(6.0)
    again = driver.singles()
    driver.dispatch.acked_many((again.number, index, RECEIPT) for index in range(2))

    assert driver.outcomes() == dict.fromkeys("123", Outcome.STORED)
    driver.tick(7.0)
    assert driver.is_empty()


def test_a_flight_whose_first_is_refused_never_began() -> None:
    driver = batching()
    driver.submit(*numbered(1, 2, 3))
    driver.dispatch.refused(driver.append().number, 0, Refusal(Verdict.REJECT, "denied", 1), 0.0)

    assert driver.outcomes() == {"1": Outcome.REJECTED}
    assert driver.sends() == [["2", "3"]]


def test_what_no_route_takes_goes_one_by_one_beside_what_one_does() -> None:
    driver = batching(max_send=10)
    topics = ["orders", "elsewhere", "other", "elsewhere"]
    driver.submit(*(envelope(str(at), topic=topics[at % 4]) for at in range(8)))

    assert driver.sends() == [["0", "4"], ["2", "6"], ["1", "3", "5", "7"]]


def test_an_aggregate_on_two_topics_of_a_route_goes_in_one_flight() -> None:
    driver = Driver(
        route=lambda topic: Route("ALL", replicated=False, fresh=False), flow_interval=3
    )
    driver.submit(*(envelope(str(at), "a", topic=f"t{at % 2}") for at in range(4)))

    assert driver.sends() == [["0", "1", "2", "3"]]


def test_what_a_closed_lane_had_out_puts_its_route_in_doubt() -> None:
    driver = Driver(route=lambda topic: Route("R3", replicated=True, fresh=True), flow_interval=3)
    other = driver.new_lane()
    driver.submit(*numbered(1, 2))
    driver.append()
    driver.dispatch.remove_lane(driver.lane)
    driver.submit(*numbered(1, 2), lane=other)

    assert driver.counted("streams_in_doubt") == 1
    assert driver.sends() == [["1", "2"]]
    assert not driver.dispatch._batches.sent


def test_what_goes_again_behind_a_refusal_goes_whole_on_a_replicated_route_too() -> None:
    driver = Driver(route=lambda topic: Route("R3", replicated=True, fresh=True), flow_interval=3)
    driver.submit(*numbered(1, 2, 3, 4))
    sent = driver.append()
    driver.dispatch.refused(sent.number, 1, Refusal(Verdict.REJECT, "no", 1), 0.0)
    driver.dispatch.batch_ended(sent.number, 1, 0.0)

    assert driver.sends() == [[], ["3", "4"]]  # the end of the first, and what goes again
    assert len(driver.dispatch._batches.sent) == 1


def test_a_plain_ack_is_none_of_a_group() -> None:
    driver = Driver(atomic=True)
    driver.submit(envelope("1", "a"), envelope("2", "a"))
    sent = driver.groups()
    driver.dispatch.acked_many([(sent.number, 0, RECEIPT)])

    assert driver.settled() == []
    assert driver.dispatch.in_flight == 2


def test_a_leg_that_is_not_answered_is_awaited_from_when_it_was_sent() -> None:
    driver = batching()
    driver.submit(*numbered(*range(4)))
    sent = driver.append()
    assert driver.dispatch.next_tick() == 5.0
    driver.tick(3.0)
    driver.submit(*numbered(4, 5, 6))
    driver.append()
    driver.dispatch.batch_stored(sent.number, 6)
    driver.sends()

    assert driver.dispatch.next_tick() == 8.0
    driver.tick(8.0)
    assert driver.counted("retries") == 1
    driver.tick(8.1)
    assert driver.sends() == [["6"]]


@pytest.mark.parametrize("how", ["silence", "disconnected"])
def test_what_is_out_of_an_open_flight_goes_one_by_one_after_it_is_lost(how: str) -> None:
    driver = batching()
    driver.submit(*numbered(*range(6)))
    sent = driver.append()
    driver.append()
    driver.dispatch.batch_stored(sent.number, 3)
    driver.settled()
    if how == "silence":
        driver.sends()
        driver.tick(5.0)
        driver.tick(5.1)
    else:
        driver.dispatch.disconnected("gone")
        driver.dispatch.connected()
    again = driver.singles()

    assert sorted(ids(again)) == ["3", "4", "5"]
    driver.dispatch.batch_stored(sent.number, 5)  # late, and still true
    assert driver.outcomes() == dict.fromkeys("34", Outcome.STORED)
    driver.dispatch.acked(again.number, ids(again).index("5"), RECEIPT)
    assert driver.outcomes() == {"5": Outcome.STORED}
    assert driver.counted("late_acks") == 2


# Groups


def test_an_aggregates_envelopes_of_one_hand_over_are_sent_as_one_and_end_as_one() -> None:
    driver = Driver(atomic=True)
    driver.submit(
        envelope("1", "a"),
        envelope("2", "b"),
        envelope("3", "a"),
        envelope("4"),
        envelope("5", "a"),
    )
    driver.submit(envelope("6", "a"), envelope("7", "a"), envelope("8", "b"))
    sent, alone = driver.groups(), driver.singles()

    awaited = [driver.dispatch.in_flight_at(sent.number, index) for index in range(2)]
    assert [[each.event_id for each in some] for some in awaited] == [["1", "3", "5"], []]
    assert ids(alone) == ["2", "4"]
    assert driver.dispatch.in_flight == 5
    driver.dispatch.acked(sent.number, 0, Receipt("ORDERS", None, 9, duplicate=False))
    ends = {one.entry.envelope.event_id: one.receipt for one in driver.settled()}
    assert {event_id: receipt and receipt.sequence for event_id, receipt in ends.items()} == {
        "1": 7,
        "3": 8,
        "5": 9,
    }
    driver.refused(driver.groups(), 0, Verdict.REJECT)
    assert driver.outcomes() == {"6": Outcome.REJECTED, "7": Outcome.REJECTED}
    assert driver.dispatch.in_flight == 2


def test_a_group_that_is_not_answered_is_tried_again_as_one_and_its_end_is_that_of_all() -> None:
    driver = Driver(atomic=True, delivery_timeout=6.0)
    driver.submit(envelope("1", "a"), envelope("2", "a"))
    driver.groups()
    driver.tick(5.0)
    driver.tick(5.1)
    again = driver.groups()
    assert [each.event_id for each in driver.dispatch.in_flight_at(again.number, 0)] == ["1", "2"]
    driver.refused(again, 0, Verdict.REJECT)

    settled = driver.settled()
    assert [(one.outcome, one.entry.attempts) for one in settled] == [(Outcome.UNKNOWN, 2)] * 2
    driver.tick(6.0)
    assert driver.is_empty()


# Lanes that end


def test_a_closed_lane_settles_all_it_had_as_unknown_and_leaves_the_others_alone() -> None:
    driver = Driver(max_send=2)
    other = driver.new_lane()
    driver.submit(envelope("1", "a"), envelope("2"), envelope("3", "a"), envelope("4"))
    driver.submit(envelope("x"), lane=other)
    sent, untouched = driver.singles(), driver.singles()
    driver.refused(sent, 1, Verdict.RETRY)
    driver.dispatch.remove_lane(driver.lane)

    assert driver.outcomes() == dict.fromkeys(("1", "2", "3", "4"), Outcome.UNKNOWN)
    driver.dispatch.acked(sent.number, 0, RECEIPT)
    assert driver.settled() == []
    driver.dispatch.acked(untouched.number, 0, RECEIPT)
    assert driver.outcomes() == {"x": Outcome.STORED}
    assert driver.is_empty()


def test_a_late_ack_for_a_closed_lane_is_nobodys() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    sent = driver.singles()
    driver.tick(5.0)
    driver.dispatch.remove_lane(driver.lane)
    assert driver.outcomes() == {"1": Outcome.UNKNOWN}
    driver.dispatch.acked(sent.number, 0, RECEIPT)

    assert driver.settled() == []


def test_abandoned_all_lanes_end_with_unknown_results_and_nothing_is_sent() -> None:
    driver = Driver(max_send=1)
    other = driver.new_lane()
    driver.submit(envelope("1", "a"), envelope("2", "a"))
    driver.submit(envelope("x"), lane=other)
    driver.singles()
    driver.dispatch.abandon("the server is gone for good")

    settled = driver.settled()
    assert {one.entry.envelope.event_id for one in settled} == {"1", "2", "x"}
    assert {one.outcome for one in settled} == {Outcome.UNKNOWN}
    assert {one.refusal for one in settled} == {
        Refusal(Verdict.GIVE_UP, "the server is gone for good")
    }
    assert driver.sends() == []
    assert driver.is_empty()


def test_closing_a_lane_twice_does_nothing_the_second_time() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    driver.dispatch.remove_lane(driver.lane)
    driver.dispatch.remove_lane(driver.lane)

    assert driver.outcomes() == {"1": Outcome.UNKNOWN}


# When to look again


def test_an_idle_dispatch_wants_no_tick() -> None:
    driver = Driver()
    assert driver.dispatch.next_tick() == INFINITY
    driver.submit(envelope("1"))
    driver.dispatch.acked(driver.singles().number, 0, RECEIPT)
    driver.settled()
    driver.tick(driver.dispatch.next_tick())

    assert driver.dispatch.next_tick() == INFINITY


def test_the_next_tick_is_the_first_of_ack_deadline_backoff_and_delivery_timeout() -> None:
    driver = Driver(delivery_timeout=7.0)
    driver.submit(envelope("1"), envelope("2"))
    assert driver.dispatch.next_tick() == 7.0
    sent = driver.singles()
    assert driver.dispatch.next_tick() == 5.0
    driver.refused(sent, 0, Verdict.RETRY)
    assert 0.025 <= driver.dispatch.next_tick() <= 0.05
    driver.tick(5.0)
    driver.tick(5.5)
    driver.sends()

    assert driver.dispatch.next_tick() == 7.0


def test_after_a_tick_the_next_is_never_due_already() -> None:
    driver = Driver(delivery_timeout=6.0)
    driver.submit(*(envelope(str(number), "a" if number % 2 else None) for number in range(9)))
    while (due := driver.dispatch.next_tick()) != INFINITY:
        driver.tick(due)
        assert driver.dispatch.next_tick() > driver.now
        driver.sends()

    assert set(driver.outcomes().values()) == {Outcome.UNKNOWN}


# What it tells


def test_it_tells_what_is_out_where() -> None:
    driver = Driver()
    driver.submit(envelope("1", topic="a"), envelope("2", topic="b"), envelope("3", topic="a"))
    sent = driver.singles()
    driver.dispatch.acked(sent.number, 0, RECEIPT)

    assert driver.dispatch.in_flight_on("a") == [(sent.number, 2)]
    assert [found.event_id for found in driver.dispatch.in_flight_at(sent.number, 1)] == ["2"]
    assert driver.dispatch.in_flight_at(sent.number, 0) == []


def test_settled_envelopes_are_handed_out_once_by_lane_in_the_order_of_settlement() -> None:
    driver = Driver(max_send=3)
    other = driver.new_lane()
    driver.submit(envelope("1"), envelope("2"), envelope("3"))
    driver.submit(envelope("x"), lane=other)
    first, second = driver.singles(), driver.singles()
    for sent, index in [(first, 2), (second, 0), (first, 0)]:
        driver.dispatch.acked(sent.number, index, RECEIPT)

    taken = [
        (lane, [one.entry.envelope.event_id for group in some for one in each_settled(group)])
        for lane, some in driver.dispatch.take_settled()
    ]
    assert taken == [(driver.lane, ["3", "1"]), (other, ["x"])]
    assert driver.dispatch.take_settled() == []


def test_its_repr_tells_its_state() -> None:
    driver = Driver()
    driver.submit(envelope("1"), envelope("2"))
    driver.refused(driver.singles(), 0, Verdict.RETRY)

    assert repr(driver.dispatch) == "<Dispatch connected, 1 in flight, 1 backing off, 1 lanes>"
    driver.dispatch.disconnected("gone")
    assert repr(driver.dispatch) == "<Dispatch disconnected, 0 in flight, 1 backing off, 1 lanes>"


def test_a_library_that_says_nothing_by_itself_is_not_waited_for_beyond_the_delivery_timeout() -> (
    None
):
    policy = Policy(
        delivery_timeout=60.0,
        ack_timeout=None,
        one_per_aggregate=False,
        window=100,
        window_bytes=1 << 20,
        max_send=100,
    )
    dispatch = Dispatch(policy, lambda envelopes: [None] * len(envelopes), Random(1))
    lane = dispatch.add_lane()
    dispatch.connected()
    dispatch.submit(lane, [Envelope("t", b"", "e")], 0, 0.0)
    assert dispatch.next_send(30.0) is not None

    dispatch.tick(60.0)
    assert dispatch.take_settled() == []
    dispatch.tick(61.0)

    ((_, (settled,)),) = dispatch.take_settled()
    assert isinstance(settled, Settled)
    assert settled.outcome is Outcome.UNKNOWN
    assert settled.refusal is not None
    assert "no delivery report from the broker's library" in settled.refusal.reason
    assert dispatch.in_flight == 0

"""The order of one aggregate's envelopes, where the publisher asks for one at a time."""

from random import Random

import pytest

from bytewax_jetstream.dispatch import LaneQueue
from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.publishing import Verdict
from tests.support.dispatching import RECEIPT, Driver, batching, entry, envelope, event_ids, ids


def test_second_envelope_of_an_aggregate_waits_until_the_first_is_settled() -> None:
    driver = Driver()
    driver.submit(envelope("1", "a"), envelope("2", "a"), envelope("3", "b"), envelope("4"))
    sent = driver.singles()
    assert ids(sent) == ["1", "3", "4"]

    driver.dispatch.acked(sent.number, 1, RECEIPT, driver.now)
    driver.dispatch.acked(sent.number, 2, RECEIPT, driver.now)
    assert driver.sends() == []

    driver.dispatch.acked(sent.number, 0, RECEIPT, driver.now)
    assert driver.sends() == [["2"]]


def test_aggregate_keeps_its_order_through_retries() -> None:
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
        driver.dispatch.acked(again.number, 0, RECEIPT, driver.now)

    assert sent == ["0", "1", "2", "3"]
    driver.settled()
    assert driver.is_empty()


@pytest.mark.parametrize("verdict", [Verdict.REJECT, Verdict.STOP])
def test_next_of_an_aggregate_follows_a_rejected_one(verdict: Verdict) -> None:
    driver = Driver()
    driver.submit(envelope("1", "a"), envelope("2", "a"))
    driver.refused(driver.singles(), 0, verdict)

    assert driver.sends() == [["2"]]


def test_nothing_of_an_aggregate_is_sent_behind_an_unknown_one() -> None:
    driver = Driver(max_send=3)
    driver.submit(*(envelope(name, name[0]) for name in ("a1", "a2", "a3", "b1", "b2")))
    driver.submit(envelope("a4", "a"))
    sent = driver.singles()
    assert ids(sent) == ["a1", "b1"]
    driver.refused(sent, 0, Verdict.GIVE_UP)
    driver.submit(envelope("a5", "a"), envelope("c1", "c"))

    assert driver.sends() == [["c1"]]
    driver.dispatch.acked(sent.number, 1, RECEIPT, driver.now)
    assert driver.sends() == [["b2"]]
    settled = {one.entry.envelope.event_id: one for one in driver.settled()}
    assert list(settled) == ["a1", "a2", "a3", "a4", "a5", "b1"]
    for name in ("a2", "a3", "a4", "a5"):
        one = settled[name]
        assert (one.outcome, one.entry.attempts) == (Outcome.UNKNOWN, 0)
        assert one.refusal is not None
        assert "not sent: an envelope before it in aggregate a" in one.refusal.reason


def test_aggregate_goes_on_when_the_caller_has_collected_its_unknown_result() -> None:
    driver = Driver()
    driver.submit(envelope("a1", "a"))
    driver.refused(driver.singles(), 0, Verdict.GIVE_UP)
    driver.submit(envelope("a2", "a"))
    driver.dispatch.submit(driver.lane, [envelope("a3", "a")], 0, driver.now, seen=1)

    assert driver.sends() == [["a3"]]
    assert driver.outcomes() == {"a1": Outcome.UNKNOWN, "a2": Outcome.UNKNOWN}


def test_batch_carries_nothing_behind_an_unknown_envelope_of_its_aggregate() -> None:
    driver = batching(max_send=10, window=20)
    driver.submit(envelope("a1", "a"))
    driver.refused(driver.singles(), 0, Verdict.GIVE_UP)
    driver.submit(*(envelope(name, name[0]) for name in ("b1", "a2", "b2", "a3", "c1")))

    assert ids(driver.append()) == ["b1", "b2", "c1"]
    assert driver.outcomes() == dict.fromkeys(("a1", "a2", "a3"), Outcome.UNKNOWN)


def test_same_aggregate_in_two_lanes_does_not_wait() -> None:
    driver = Driver()
    other = driver.new_lane()
    driver.submit(envelope("1", "a"))
    driver.submit(envelope("2", "a"), lane=other)

    assert driver.sends() == [["1"], ["2"]]


def test_publisher_that_keeps_order_itself_gets_a_whole_aggregate_at_once() -> None:
    driver = Driver(one_per_aggregate=False)
    driver.submit(envelope("1", "a"), envelope("2", "a"))

    assert driver.sends() == [["1", "2"]]


def test_unknown_group_breaks_its_aggregate_for_as_many_results_as_it_has() -> None:
    driver = Driver(atomic=True)
    driver.submit(*(envelope(name, "a") for name in ("a1", "a2", "a3")))
    driver.refused(driver.groups(), 0, Verdict.GIVE_UP)
    assert len(driver.settled()) == 3
    for name in ("b1", "b2"):
        driver.dispatch.submit(driver.lane, [envelope(name, "b")], 0, driver.now, seen=3)
    sent = driver.singles()
    assert ids(sent) == ["b1"]
    driver.refused(sent, 0, Verdict.GIVE_UP)

    assert driver.sends() == []
    assert driver.outcomes() == dict.fromkeys(("b1", "b2"), Outcome.UNKNOWN)


def test_held_envelope_goes_on_when_the_one_before_it_is_taken_out() -> None:
    queue = LaneQueue({}, one_per_aggregate=True)
    first, second, third = (entry(name, "a") for name in "123")
    third.submission = third.submission._replace(seen=1)
    queue.enter_ready([first, second, third])
    queue.count_unknown("a", 1)

    assert event_ids(queue.take_broken()) == ["1", "2"]
    assert event_ids(queue.ready) == ["3"]
    assert queue.singles == 1


def test_silent_library_sends_nothing_behind_what_it_was_given_up_for() -> None:
    driver = Driver(ack_timeout=None, one_per_aggregate=False, window=2)
    driver.submit(*(envelope(name, name[0]) for name in ("a1", "a2", "a3", "b1")))
    sent = driver.singles()
    assert ids(sent) == ["a1", "a2"]
    driver.now = 59.0
    driver.dispatch.acked(sent.number, 1, RECEIPT, driver.now)  # the connection makes progress
    assert driver.sends() == [["a3"]]
    driver.submit(envelope("a4", "a"))
    driver.tick(60.0)

    assert driver.sends() == [], "a1 keeps its place, a3 is in flight"
    driver.dispatch.acked(sent.number, 0, RECEIPT, driver.now)
    assert driver.sends() == [["b1"]]
    assert driver.outcomes() == {
        "a2": Outcome.STORED,
        "a1": Outcome.UNKNOWN,
        "a4": Outcome.UNKNOWN,
    }


def test_nothing_goes_behind_what_may_not_be_sent_again_in_the_same_turn() -> None:
    driver = Driver(one_per_aggregate=False, duplicate_window=lambda topic: 10.0)
    driver.submit(envelope("a1", "a"))
    driver.singles()
    driver.dispatch.disconnected("gone", driver.now)
    driver.tick(5.1)
    driver.submit(envelope("a2", "a"), envelope("b1", "b"))
    driver.dispatch.connected(driver.now)

    assert driver.sends() == [["b1"]]
    assert driver.outcomes() == {"a1": Outcome.UNKNOWN, "a2": Outcome.UNKNOWN}


def test_retries_that_are_due_together_keep_their_order() -> None:
    driver = Driver(one_per_aggregate=False)
    driver.dispatch._singles._random = Steady()
    driver.submit(*(envelope(name) for name in "123"))
    sent = driver.singles()
    for index in range(3):
        driver.refused(sent, index, Verdict.RETRY)
    driver.tick(1.0)

    assert driver.sends() == [["1", "2", "3"]]


class Steady(Random):
    """Every pause is as long as it may be."""

    def uniform(self, a: float, b: float) -> float:
        return b

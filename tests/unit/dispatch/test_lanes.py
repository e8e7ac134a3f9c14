"""Lanes that are closed, and a dispatch that is abandoned."""

from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.publishing import Refusal, Verdict
from tests.support.dispatching import RECEIPT, Driver, batching, envelope, numbered


def test_closed_lane_settles_all_as_unknown_and_leaves_other_lanes_alone() -> None:
    driver = Driver(max_send=2)
    other = driver.new_lane()
    driver.submit(envelope("1", "a"), envelope("2"), envelope("3", "a"), envelope("4"))
    driver.submit(envelope("x"), lane=other)
    sent, untouched = driver.singles(), driver.singles()
    driver.refused(sent, 1, Verdict.RETRY)
    driver.dispatch.remove_lane(driver.lane)

    assert driver.outcomes() == dict.fromkeys(("1", "2", "3", "4"), Outcome.UNKNOWN)
    driver.dispatch.acked(sent.number, 0, RECEIPT, driver.now)
    assert driver.settled() == []
    driver.dispatch.acked(untouched.number, 0, RECEIPT, driver.now)
    assert driver.outcomes() == {"x": Outcome.STORED}
    assert driver.is_empty()


def test_late_ack_for_a_closed_lane_is_ignored() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    sent = driver.singles()
    driver.tick(5.0)
    driver.dispatch.remove_lane(driver.lane)
    assert driver.outcomes() == {"1": Outcome.UNKNOWN}
    driver.dispatch.acked(sent.number, 0, RECEIPT, driver.now)

    assert driver.settled() == []


def test_abandon_settles_all_lanes_as_unknown_and_sends_nothing() -> None:
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


def test_closed_lane_is_forgotten() -> None:
    driver = batching()
    driver.submit(*numbered(1, 2, 3))
    driver.append()
    driver.dispatch.remove_lane(driver.lane)

    assert repr(driver.dispatch).endswith(" 0 lanes>")
    assert not driver.dispatch._batches._lanes


def test_closing_a_lane_twice_does_nothing_the_second_time() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    driver.dispatch.remove_lane(driver.lane)
    driver.dispatch.remove_lane(driver.lane)

    assert driver.outcomes() == {"1": Outcome.UNKNOWN}

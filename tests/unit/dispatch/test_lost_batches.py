"""A batch gets no answer any more: it goes again as a batch, or its messages as singles."""

import pytest

from bytewax_jetstream.dispatch.dispatch import FEW
from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.publishing import Append, Receipt, Refusal, Route, Verdict
from tests.support.dispatching import RECEIPT, ROUTES, Driver, batching, ids, numbered


def test_append_is_awaited_from_when_it_was_sent() -> None:
    driver = batching()
    driver.submit(*numbered(*range(4)))
    sent = driver.append()
    assert driver.dispatch.next_tick() == 5.0
    driver.tick(3.0)
    driver.submit(*numbered(4, 5, 6))
    driver.append()
    driver.dispatch.batch_stored(sent.number, 6, driver.now)
    driver.sends()

    assert driver.dispatch.next_tick() == 8.0
    driver.tick(8.0)
    assert driver.counted("retries") == 1
    driver.tick(8.1)
    assert driver.sends() == [["6"]]


ENDINGS = pytest.mark.parametrize("how", ["disconnected", "ended"])


def lose(driver: Driver, sent: Append, how: str) -> None:
    """The batch is over, and nobody knows whether the rest of it is stored."""
    if how == "ended":
        driver.sends()
        batch = driver.dispatch._batches.sent[sent.number]
        driver.dispatch.batch_ended(sent.number, batch.stored, driver.now)
    else:
        driver.dispatch.disconnected("gone", driver.now)
        driver.dispatch.connected(driver.now)
        driver.tick(driver.now)


def test_silent_batch_sends_its_unstored_messages_again_as_singles() -> None:
    driver = batching()
    driver.submit(*numbered(*range(6)))
    sent = driver.append()
    driver.append()
    driver.dispatch.batch_stored(sent.number, 3, driver.now)
    driver.settled()
    driver.sends()
    driver.tick(5.0)
    driver.tick(5.1)
    again = driver.singles()

    assert sorted(ids(again)) == ["3", "4", "5"]
    driver.dispatch.batch_stored(sent.number, 5, driver.now)  # late, and it still counts
    assert driver.outcomes() == dict.fromkeys("34", Outcome.STORED)
    driver.dispatch.acked(again.number, ids(again).index("5"), RECEIPT, driver.now)
    assert driver.outcomes() == {"5": Outcome.STORED}
    assert driver.counted("late_acks") == 2


@ENDINGS
def test_lost_batch_goes_again_as_a_batch_before_what_waits(how: str) -> None:
    driver = batching()
    driver.submit(*numbered(*range(6)))
    sent = driver.append()
    driver.append()
    driver.dispatch.batch_stored(sent.number, 3, driver.now)
    lose(driver, sent, how)
    driver.submit(*numbered(6))
    again = driver.append()

    assert (ids(again), again.again) == (["3", "4", "5", "6"], True)
    driver.dispatch.batch_ended(sent.number, 5, driver.now)  # late: the new one will say as much
    driver.dispatch.batch_ended(again.number, 4, driver.now)
    assert driver.outcomes() == dict.fromkeys("0123456", Outcome.STORED)
    assert driver.counted("retries") == 3
    assert driver.is_empty()


@ENDINGS
def test_batch_that_is_lost_again_goes_on_as_one_while_some_of_it_is_stored(how: str) -> None:
    driver = batching()
    driver.submit(*numbered(*range(4)))
    for stored in (0, 1, 1):
        sent = driver.append()
        driver.dispatch.batch_stored(sent.number, stored, driver.now)
        lose(driver, sent, how)

    assert ids(driver.append()) == ["2", "3"]


@ENDINGS
def test_batch_lost_twice_with_nothing_stored_goes_as_singles(how: str) -> None:
    driver = batching()
    driver.submit(*numbered(*range(3)))
    sent = driver.append()
    lose(driver, sent, how)
    sent = driver.append()
    lose(driver, sent, how)
    driver.tick(driver.now + 0.2)
    again = driver.singles()

    assert sorted(ids(again)) == ["0", "1", "2"]
    driver.dispatch.batch_stored(sent.number, 2, driver.now)  # late, and it still counts
    assert driver.outcomes() == dict.fromkeys("01", Outcome.STORED)
    driver.dispatch.acked(again.number, ids(again).index("2"), RECEIPT, driver.now)
    assert driver.outcomes() == {"2": Outcome.STORED}
    assert driver.counted("late_acks") == 2


def test_lost_batch_is_unknown_when_its_time_is_over() -> None:
    driver = batching(delivery_timeout=9.0)
    driver.submit(*numbered(1, 2, aggregate="a"), *numbered(3, 4, aggregate="b"))
    driver.append()
    driver.dispatch.disconnected("gone", driver.now)
    for now in (4.0, 8.0):  # the clock runs
        driver.now = now
        driver.dispatch.connected(driver.now)
        sent = driver.append()
        driver.dispatch.batch_stored(sent.number, 1, driver.now)
        driver.dispatch.disconnected("gone", driver.now)
    driver.now = 9.0
    driver.dispatch.connected(driver.now)
    driver.submit(*numbered(5, 6, aggregate="b"), *numbered(7, 8, aggregate="c"))

    assert driver.sends() == [["7", "8"]]
    stored = dict.fromkeys("12", Outcome.STORED)
    assert driver.outcomes() == stored | dict.fromkeys("3456", Outcome.UNKNOWN)


def test_lost_batch_is_not_sent_again_when_its_stream_may_have_forgotten_it() -> None:
    driver = Driver(
        route=ROUTES.get, duplicate_window=lambda topic: 20.0, flow_interval=3, max_send=4
    )
    driver.submit(*numbered(1, 2, aggregate="a"))
    driver.append()
    driver.dispatch.disconnected("gone", driver.now)
    driver.now = 15.1
    driver.dispatch.connected(driver.now)
    driver.submit(*numbered(3, aggregate="a"), *numbered(4, 5, aggregate="b"))

    assert driver.sends() == [["4", "5"]]
    reasons = {one.entry.envelope.event_id: one.refusal for one in driver.settled()}
    assert "may have forgotten" in str(reasons["1"])
    assert "before it in aggregate a" in str(reasons["3"])


def test_lost_batch_on_a_replicated_stream_goes_as_singles_for_an_ack_timeout() -> None:
    driver = Driver(
        route=lambda topic: Route("R3", replicated=True, fresh=True), max_send=200, window=200
    )
    driver.submit(*numbered(*range(200), aggregate="a"))
    driver.append()
    driver.dispatch.disconnected("gone", driver.now)
    driver.dispatch.connected(driver.now)
    assert driver.lane.singles == 0
    for number in range(2 * FEW):
        driver.tick(0.0 if number < FEW else 5.0)  # an ack timeout after the loss
        single = driver.singles()
        assert ids(single) == [str(number)]
        receipt = Receipt("R3", None, number, duplicate=False)
        driver.dispatch.acked(single.number, 0, receipt, driver.now)
    again = driver.append()

    assert (ids(again)[0], again.again) == (str(2 * FEW), True)


def test_lost_batch_rejects_the_refused_message_and_retries_the_rest() -> None:
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


def test_append_not_yet_sent_when_the_connection_is_lost_is_withdrawn() -> None:
    driver = batching()
    driver.submit(*numbered(1, 2), *numbered(3, 4, topic="other"))
    assert ids(driver.append()) == ["1", "2"]
    driver.dispatch.disconnected("gone", driver.now)
    driver.dispatch.connected(driver.now)

    again = driver.append()
    assert ids(again) == ["1", "2"]
    driver.dispatch.batch_ended(again.number, 2, driver.now)
    assert driver.sends() == [["3", "4"]]

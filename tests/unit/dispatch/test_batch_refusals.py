"""A message of a batch is refused: nothing behind it is stored."""

from collections import Counter

import pytest

from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.publishing import Append, Refusal, Verdict
from tests.support.dispatching import RECEIPT, batching, numbered


def test_message_refused_mid_batch_is_rejected_and_the_rest_goes_in_another() -> None:
    driver = batching()
    driver.submit(*numbered(*range(8)))
    first, second = driver.append(), driver.append()
    driver.submit(*numbered(8))
    driver.dispatch.refused(first.number, 2, Refusal(Verdict.REJECT, "no", 1), 0.0)
    assert driver.sends() == [[]]  # its end: nothing more can be appended
    driver.dispatch.batch_ended(first.number, 2, 0.0)
    for _ in second.topics:
        driver.dispatch.batch_ended(first.number, 0, 0.0)  # the server's answer to each later one

    assert driver.outcomes() == {"0": Outcome.STORED, "1": Outcome.STORED, "2": Outcome.REJECTED}
    assert driver.sends() == [["3", "4", "5", "6"], ["7", "8"]]


def test_reach_after_a_refusal_grows_with_each_stored_message() -> None:
    driver = batching(max_send=50, window=1_000)
    driver.submit(*numbered(*range(500)))
    sent = driver.append()
    driver.sends()
    driver.dispatch.refused(sent.number, 20, Refusal(Verdict.REJECT, "no", 1), 0.0)
    driver.dispatch.batch_ended(sent.number, 20, 0.0)
    driver.sends()
    assert driver.dispatch.in_flight == 20
    driver.dispatch.batch_stored(sent.number + 1, 18, driver.now)
    driver.sends()
    assert driver.dispatch.in_flight == 20 + 18
    while driver.dispatch.in_flight:
        driver.dispatch.batch_stored(sent.number + 1, 500, driver.now)
        driver.sends()

    assert Counter(driver.outcomes().values()) == {Outcome.STORED: 499, Outcome.REJECTED: 1}
    assert driver.is_empty()


def test_refusal_of_a_message_that_is_then_counted_as_stored_is_forgotten() -> None:
    driver = batching()
    driver.submit(*numbered(1, 2, 3))
    sent = driver.append()
    driver.dispatch.refused(sent.number, 1, Refusal(Verdict.REJECT, "denied", 1), 0.0)
    driver.dispatch.batch_ended(sent.number, 2, 0.0)

    assert driver.outcomes() == dict.fromkeys("12", Outcome.STORED)
    driver.tick(0.1)
    assert driver.sends() == [["3"]]


def test_message_behind_a_forgotten_refusal_may_be_stored() -> None:
    driver = batching()
    driver.submit(*numbered(1, 2, 3))
    sent = driver.append()
    driver.dispatch.refused(sent.number, 1, Refusal(Verdict.REJECT, "denied", 1), 0.0)
    driver.dispatch.batch_ended(sent.number, 2, 0.0)
    driver.tick(0.1)
    driver.refused(driver.singles(), 0, Verdict.REJECT)

    assert driver.outcomes()["3"] is Outcome.UNKNOWN


@pytest.mark.parametrize("then", ["tick", "ended", "disconnected"])
@pytest.mark.parametrize("index", [-1, 0, 3, 7])
def test_refusal_of_an_index_that_is_not_in_flight_loses_no_message(index: int, then: str) -> None:
    """Index 3 is the end of the batch: a server that refuses the end names that index."""
    driver = batching()
    driver.submit(*numbered(1, 2, 3))
    sent = driver.append()
    driver.dispatch.batch_stored(sent.number, 1, driver.now)
    driver.dispatch.refused(sent.number, index, Refusal(Verdict.REJECT, "no", 1), 0.0)
    if then == "tick":
        driver.tick(5.0)
    elif then == "ended":
        driver.dispatch.batch_ended(sent.number, 1, 5.0)
    else:
        driver.dispatch.disconnected("gone", driver.now)
        driver.dispatch.connected(driver.now)
    driver.tick(6.0)
    again = driver.dispatch.next_send(driver.now)
    if isinstance(again, Append):
        driver.dispatch.batch_ended(again.number, 2, driver.now)
    else:
        assert again is not None
        acks = [(again.number, 0, RECEIPT), (again.number, 1, RECEIPT)]
        driver.dispatch.acked_many(acks, driver.now)

    assert driver.outcomes() == dict.fromkeys("123", Outcome.STORED)
    driver.tick(7.0)
    assert driver.is_empty()


def test_batch_whose_first_message_is_refused_never_began() -> None:
    driver = batching()
    driver.submit(*numbered(1, 2, 3))
    driver.dispatch.refused(driver.append().number, 0, Refusal(Verdict.REJECT, "denied", 1), 0.0)

    assert driver.outcomes() == {"1": Outcome.REJECTED}
    assert driver.sends() == [["2", "3"]]

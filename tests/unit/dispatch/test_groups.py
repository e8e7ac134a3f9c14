"""Groups: one aggregate's envelopes of a submission, stored all or none."""

from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.publishing import Receipt, Verdict
from tests.support.dispatching import RECEIPT, Driver, envelope, ids


def test_group_is_sent_as_one_and_settled_as_one() -> None:
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
    driver.dispatch.acked(sent.number, 0, Receipt("ORDERS", None, 9, duplicate=False), driver.now)
    ends = {one.entry.envelope.event_id: one.receipt for one in driver.settled()}
    assert {event_id: receipt and receipt.sequence for event_id, receipt in ends.items()} == {
        "1": 7,
        "3": 8,
        "5": 9,
    }
    driver.refused(driver.groups(), 0, Verdict.REJECT)
    assert driver.outcomes() == {"6": Outcome.REJECTED, "7": Outcome.REJECTED}
    assert driver.dispatch.in_flight == 2


def test_unanswered_group_is_tried_again_as_one_and_settled_as_one() -> None:
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


def test_ack_of_a_single_does_not_settle_a_group() -> None:
    driver = Driver(atomic=True)
    driver.submit(envelope("1", "a"), envelope("2", "a"))
    sent = driver.groups()
    driver.dispatch.acked_many([(sent.number, 0, RECEIPT)], driver.now)

    assert driver.settled() == []
    assert driver.dispatch.in_flight == 2


def test_group_that_is_only_asked_for_has_no_attempt_and_is_never_in_doubt() -> None:
    driver = Driver(atomic=True)
    driver.submit(envelope("1", "a"), envelope("2", "a", topic="large"))
    driver.groups()
    driver.tick(5.0)
    driver.tick(5.1)
    driver.refused(driver.groups(), 0, Verdict.REJECT)

    ends = [(one.outcome, one.entry.attempts) for one in driver.settled()]
    assert ends == [(Outcome.REJECTED, 0)] * 2


def test_rest_of_a_group_that_was_asked_for_is_sent_once_nothing_in_it_is_too_large() -> None:
    driver = Driver(atomic=True)
    driver.submit(envelope("1", "a"), envelope("2", "a", topic="large"), envelope("3", "a"))
    asked = driver.groups()
    driver.dispatch.group_known(asked.number, 0, [None, RECEIPT, None])
    sent = driver.groups()
    assert ids(sent) == ["1", "3"]
    driver.tick(5.0)
    driver.tick(5.1)
    driver.refused(driver.groups(), 0, Verdict.REJECT)

    ends = {one.entry.envelope.event_id: one.entry.attempts for one in driver.settled()}
    assert ends == {"2": 0, "1": 2, "3": 2}

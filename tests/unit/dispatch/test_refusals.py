"""What a refusal of a single means, alone and after an attempt without an answer."""

import pytest

from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.publishing import Refusal, Verdict
from tests.support.dispatching import LATER, RECEIPT, Driver, envelope, lose_the_answer


def test_temporary_refusal_is_tried_again() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    driver.refused(driver.singles(), 0, Verdict.RETRY)
    assert driver.settled() == []
    driver.tick(1.0)

    assert driver.sends() == [["1"]]


@pytest.mark.parametrize("verdict", [Verdict.REJECT, Verdict.STOP])
def test_permanent_refusal_rejects_the_envelope_with_its_reason(verdict: Verdict) -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    driver.refused(driver.singles(), 0, verdict, "too large")

    (settled,) = driver.settled()
    assert settled.outcome is Outcome.REJECTED
    assert settled.refusal == Refusal(verdict, "too large", 42)
    assert driver.is_empty()


def test_envelope_the_library_gave_up_is_unknown() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    driver.refused(driver.singles(), 0, Verdict.GIVE_UP, "timed out in the queue")

    (settled,) = driver.settled()
    assert settled.outcome is Outcome.UNKNOWN
    assert settled.refusal == Refusal(Verdict.GIVE_UP, "timed out in the queue", 42)


@pytest.mark.parametrize("how", ["silence", "disconnection"])
@pytest.mark.parametrize("verdict", [Verdict.REJECT, Verdict.STOP])
def test_refusal_after_an_unanswered_attempt_makes_the_envelope_unknown(
    how: str, verdict: Verdict
) -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    lose_the_answer(driver, how)
    driver.refused(driver.singles(), 0, verdict, "no permission")

    (settled,) = driver.settled()
    assert settled.outcome is Outcome.UNKNOWN
    assert settled.refusal is not None
    assert settled.refusal.verdict is verdict
    assert settled.refusal.reason == (
        "no permission; but an earlier attempt was never answered, so it may be stored"
    )


def test_late_refusal_of_the_lost_attempt_ends_the_uncertainty() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    lost = lose_the_answer(driver, "silence")
    again = driver.singles()
    driver.refused(lost, 0, Verdict.REJECT, "no permission")
    driver.refused(lost, 0, Verdict.REJECT, "a second time")
    assert driver.settled() == []
    driver.refused(again, 0, Verdict.REJECT, "no permission")

    assert driver.outcomes() == {"1": Outcome.REJECTED}


def test_second_answer_to_one_attempt_changes_nothing() -> None:
    driver = Driver()
    driver.submit(envelope("1"), envelope("2"))
    sent = driver.singles()
    driver.dispatch.acked(sent.number, 0, RECEIPT, driver.now)
    driver.dispatch.acked(sent.number, 0, RECEIPT, driver.now)
    driver.refused(sent, 0, Verdict.REJECT)

    assert driver.outcomes() == {"1": Outcome.STORED}
    assert driver.dispatch.in_flight == 1


def test_answer_to_something_never_sent_is_ignored() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    sent = driver.singles()
    for number, index in [(sent.number, 1), (sent.number, -1), (99, 0), (0, 0)]:
        driver.dispatch.acked(number, index, RECEIPT, driver.now)
        driver.dispatch.refused(number, index, LATER, driver.now)
        assert driver.dispatch.in_flight_at(number, index) == []
    driver.tick(5.0)
    driver.dispatch.acked(sent.number, 7, RECEIPT, driver.now)
    driver.dispatch.refused(sent.number, -1, LATER, driver.now)

    assert driver.settled() == []
    driver.tick(6.0)
    assert driver.sends() == [["1"]]

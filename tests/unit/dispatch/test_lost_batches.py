"""A batch gets no answer any more: its messages go again as singles."""

import pytest

from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.publishing import Refusal, Verdict
from tests.support.dispatching import RECEIPT, batching, ids, numbered


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


@pytest.mark.parametrize("how", ["silence", "disconnected"])
def test_lost_batch_sends_its_unstored_messages_again_as_singles(how: str) -> None:
    driver = batching()
    driver.submit(*numbered(*range(6)))
    sent = driver.append()
    driver.append()
    driver.dispatch.batch_stored(sent.number, 3, driver.now)
    driver.settled()
    if how == "silence":
        driver.sends()
        driver.tick(5.0)
        driver.tick(5.1)
    else:
        driver.dispatch.disconnected("gone", driver.now)
        driver.dispatch.connected(driver.now)
    again = driver.singles()

    assert sorted(ids(again)) == ["3", "4", "5"]
    driver.dispatch.batch_stored(sent.number, 5, driver.now)  # late, and it still counts
    assert driver.outcomes() == dict.fromkeys("34", Outcome.STORED)
    driver.dispatch.acked(again.number, ids(again).index("5"), RECEIPT, driver.now)
    assert driver.outcomes() == {"5": Outcome.STORED}
    assert driver.counted("late_acks") == 2


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

    assert ids(driver.singles()) == ["1", "2", "3", "4"]
    assert driver.sends() == []

"""When a silent attempt fails: answers to what was written before it renew it, others do not."""

import pytest

from bytewax_jetstream.dispatch.clocks import Answers
from bytewax_jetstream.envelope import Outcome
from tests.support.dispatching import RECEIPT, Driver, batching, envelope, ids, numbered


@pytest.mark.parametrize(
    ("answers", "since"),
    [
        ([], [0.0] * 4),
        ([(1, 5.0)], [0.0, 0.0, 5.0, 5.0]),
        ([(0, 4.0), (2, 5.0)], [0.0, 4.0, 4.0, 5.0]),
        ([(2, 4.0), (0, 5.0)], [0.0, 5.0, 5.0, 5.0]),
        ([(0, 5.0), (2, 5.0)], [0.0, 5.0, 5.0, 5.0]),
        ([(3, 5.0)], [0.0] * 4),
    ],
    ids=["none", "one", "in order", "out of order", "at once", "the last"],
)
def test_answer_renews_what_was_written_behind_it(
    answers: list[tuple[int, float]], since: list[float]
) -> None:
    found = Answers()
    for position, now in answers:
        found.add(position, now)

    assert [found.since(position, 0.0) for position in range(4)] == since


def test_attempt_is_never_older_than_its_write() -> None:
    found = Answers()
    found.add(0, 1.0)

    assert found.since(5, written=2.0) == 2.0


def test_forgetting_keeps_what_renews_the_oldest_in_flight() -> None:
    found = Answers()
    for position in range(100):
        found.add(position, float(position + 1))
    found.forget_before(99)

    assert found.since(99, 0.0) == 99.0
    assert len(found._positions) <= 2


def test_later_answer_does_not_renew_an_attempt_before_it() -> None:
    driver = Driver()
    driver.submit(*numbered(1, 2, 3))
    sent = driver.singles()
    driver.tick(4.0)
    driver.dispatch.acked(sent.number, 1, RECEIPT, driver.now)
    driver.tick(5.0)
    assert driver.dispatch.in_flight == 1, "1 is silent; 3 was renewed by 2"
    driver.tick(9.0)

    assert driver.dispatch.in_flight == 0
    assert driver.counted("retries") == 2
    assert driver.outcomes() == {"2": Outcome.STORED}


def test_attempt_is_not_silent_while_the_peer_takes_bytes_before_it() -> None:
    driver = Driver()
    driver.submit(envelope("1"))
    first = driver.singles()
    position = driver.dispatch.position
    driver.submit(envelope("2"))
    driver.singles()
    for _ in range(5):
        driver.tick(driver.now + 4.0)
        driver.dispatch.taken(position, driver.now)
    driver.tick(driver.now + 4.0)

    assert driver.counted("retries") == 1, "nothing of the first was taken"
    driver.dispatch.acked(first.number, 0, RECEIPT, driver.now)
    assert driver.outcomes() == {"1": Outcome.STORED}


def test_flow_ack_renews_the_rest_of_a_batch() -> None:
    driver = batching(max_send=10, window=20)
    driver.submit(*numbered(*range(9)))
    batch = driver.append()
    driver.tick(4.0)
    driver.dispatch.batch_stored(batch.number, 3, driver.now)
    driver.tick(8.9)
    assert driver.counted("retries") == 0
    driver.tick(9.0)

    assert driver.counted("retries") == 6


def test_lost_connection_renews_nothing_on_the_next() -> None:
    driver = Driver()
    driver.submit(*numbered(1, 2))
    sent = driver.singles()
    driver.dispatch.acked(sent.number, 0, RECEIPT, 4.0)
    driver.now = 4.0
    driver.dispatch.disconnected("gone", driver.now)
    driver.dispatch.connected(driver.now)
    assert ids(driver.singles()) == ["2"]
    assert driver.dispatch.next_tick() == 9.0

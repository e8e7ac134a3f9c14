"""When the dispatch wants to look again."""

from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.publishing import Verdict
from tests.support.dispatching import INFINITY, RECEIPT, Driver, envelope


def test_idle_dispatch_needs_no_tick() -> None:
    driver = Driver()
    assert driver.dispatch.next_tick() == INFINITY
    driver.submit(envelope("1"))
    driver.dispatch.acked(driver.singles().number, 0, RECEIPT, driver.now)
    driver.settled()
    driver.tick(driver.dispatch.next_tick())

    assert driver.dispatch.next_tick() == INFINITY


def test_next_tick_is_the_first_of_ack_deadline_backoff_and_delivery_timeout() -> None:
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


def test_tick_never_leaves_the_next_one_due_already() -> None:
    driver = Driver(delivery_timeout=6.0)
    driver.submit(*(envelope(str(number), "a" if number % 2 else None) for number in range(9)))
    while (due := driver.dispatch.next_tick()) != INFINITY:
        driver.tick(due)
        assert driver.dispatch.next_tick() > driver.now
        driver.sends()

    assert set(driver.outcomes().values()) == {Outcome.UNKNOWN}

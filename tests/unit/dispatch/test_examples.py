"""The worked examples in the docstrings of `batches` and `doubts`, played as they are written."""

from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.publishing import Ask, Receipt, Refusal, Route, Verdict
from tests.support.dispatching import Driver, envelope, ids

STORED, REJECTED = Outcome.STORED, Outcome.REJECTED
TOO_LARGE = Refusal(Verdict.REJECT, "message size exceeds maximum allowed", 10054)


def _receipt(sequence: int, *, duplicate: bool = False) -> Receipt:
    return Receipt("ORDERS", None, sequence, duplicate)


def _driver(*, replicated: bool = False) -> Driver:
    route = Route("ORDERS", replicated, fresh=False)
    return Driver(route=lambda topic: route, flow_interval=500)


def test_example_of_a_refused_message_in_a_batch() -> None:
    driver = _driver()
    driver.submit(*(envelope(f"e{number}") for number in range(1, 6)))
    append = driver.append()
    assert (ids(append), append.last) == (["e1", "e2", "e3", "e4", "e5"], True)

    driver.dispatch.refused(append.number, 2, TOO_LARGE, driver.now)
    driver.dispatch.batch_ended(append.number, 2, driver.now)
    assert driver.outcomes() == {"e1": STORED, "e2": STORED, "e3": REJECTED}

    following = driver.append()
    assert (ids(following), following.last) == (["e4", "e5"], True)
    driver.dispatch.batch_ended(following.number, 2, driver.now)
    assert driver.outcomes() == {"e4": STORED, "e5": STORED}
    assert driver.is_empty()


def test_example_of_a_silent_batch() -> None:
    for late in (False, True):
        driver = _driver()
        driver.submit(*(envelope(f"e{number}") for number in range(1, 6)))
        batch = driver.append()
        driver.tick(0.1)
        driver.dispatch.batch_stored(batch.number, 2, driver.now)
        assert driver.outcomes() == {"e1": STORED, "e2": STORED}

        driver.tick(5.1)
        assert driver.sends() == []
        driver.tick(5.15)
        again = driver.singles()
        assert sorted(ids(again)) == ["e3", "e4", "e5"]
        driver.tick(5.2)
        if late:
            driver.dispatch.batch_ended(batch.number, 5, driver.now)
        else:
            for index, event_id in enumerate(ids(again)):
                receipt = _receipt(index, duplicate=event_id == "e3")
                driver.dispatch.acked(again.number, index, receipt, driver.now)
        assert driver.outcomes() == {"e3": STORED, "e4": STORED, "e5": STORED}


def _reconnect(driver: Driver) -> None:
    driver.dispatch.disconnected("gone", driver.now)
    driver.dispatch.connected(driver.now)


def test_example_of_a_lost_batch() -> None:
    driver = _driver()
    driver.submit(*(envelope(f"e{number}") for number in range(1, 6)))
    batch = driver.append()
    driver.dispatch.batch_stored(batch.number, 2, driver.now)
    assert driver.outcomes() == {"e1": STORED, "e2": STORED}

    _reconnect(driver)
    again = driver.append()
    assert (ids(again), again.last, again.again) == (["e3", "e4", "e5"], True, True)
    driver.dispatch.batch_stored(again.number, 1, driver.now, duplicate=True)
    assert driver.outcomes() == {"e3": STORED}

    _reconnect(driver)
    third = driver.append()
    assert (ids(third), third.again) == (["e4", "e5"], True)
    _reconnect(driver)
    assert sorted(ids(driver.singles())) == ["e4", "e5"]


def test_example_of_a_segment_sorted_by_route() -> None:
    """The one in `Batches._sort`, with two messages each so that they go as batches."""
    routes = {topic: Route(topic.upper(), replicated=False, fresh=False) for topic in "ab"}
    driver = Driver(route=routes.get, flow_interval=500)
    aggregates = {"a1": "x", "a2": "x", "b1": "y", "b2": "y", "c1": "z", "a3": "y", "a4": "y"}
    driver.submit(*(envelope(name, of, topic=name[0]) for name, of in aggregates.items()))
    first, second, single = driver.append(), driver.append(), driver.singles()
    assert [ids(each) for each in (first, second, single)] == [["a1", "a2"], ["b1", "b2"], ["c1"]]
    assert driver.sends() == []

    driver.dispatch.batch_ended(first.number, 2, 0.0)
    driver.dispatch.acked(single.number, 0, _receipt(1), driver.now)
    assert driver.sends() == [], "y still has envelopes on their way to B"
    driver.dispatch.batch_ended(second.number, 2, 0.0)
    assert driver.sends() == [["a3", "a4"]]


def test_example_of_ids_asked_for_behind_a_duplicate() -> None:
    driver = Driver()
    driver.submit(*(envelope(f"e{number}", "a") for number in range(1, 10)))
    first = driver.singles()
    assert ids(first) == ["e1"]
    driver.dispatch.acked(first.number, 0, _receipt(1, duplicate=True), driver.now)

    ask = driver.dispatch.next_send(driver.now)
    assert isinstance(ask, Ask)
    assert ids(ask) == [f"e{number}" for number in range(2, 10)]
    assert driver.sends() == []
    known = [_receipt(number, duplicate=True) for number in range(2, 8)]
    driver.dispatch.known(ask.number, [*known, None, None])
    assert list(driver.outcomes().items()) == [(f"e{number}", STORED) for number in range(1, 8)]
    assert driver.sends() == [["e8"]]


def test_example_of_a_doubt() -> None:
    driver = _driver(replicated=True)
    driver.submit(envelope("e1"))
    first = driver.singles()
    assert driver.counted("streams_in_doubt") == 1
    driver.tick(0.1)
    driver.dispatch.acked(first.number, 0, _receipt(1), driver.now)
    assert driver.counted("streams_in_doubt") == 1

    driver.tick(5.0)
    driver.submit(envelope("e2"))
    second = driver.singles()
    driver.tick(5.1)
    driver.dispatch.acked(second.number, 0, _receipt(2), driver.now)
    assert driver.counted("streams_in_doubt") == 0

    driver.tick(6.0)
    driver.submit(*(envelope(f"e{number}") for number in (3, 4, 5)))
    batch = driver.append()
    assert (ids(batch), batch.number) == (["e3", "e4", "e5"], 3)
    driver.tick(11.0)
    assert driver.counted("streams_in_doubt") == 1
    driver.tick(11.1)
    again = driver.singles()
    assert (sorted(ids(again)), again.number) == (["e3", "e4", "e5"], 4)
    driver.tick(11.2)
    third, fourth = map(ids(again).index, ("e3", "e4"))
    driver.dispatch.acked(again.number, third, _receipt(3, duplicate=True), driver.now)
    assert driver.counted("streams_in_doubt") == 1
    driver.tick(11.3)
    driver.dispatch.acked(again.number, fourth, _receipt(4), driver.now)
    assert driver.counted("streams_in_doubt") == 0

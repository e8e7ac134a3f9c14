"""Batches: where a stream takes them, what goes in one, and when it ends."""

from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.publishing import Append, Route
from tests.support.dispatching import INFINITY, Driver, batching, envelope, ids, numbered


def test_short_batch_is_sent_with_its_end() -> None:
    driver = batching()
    driver.submit(*numbered(1, 2, 3))
    append = driver.append()

    assert (ids(append), append.first, append.last) == (["1", "2", "3"], 0, True)
    driver.dispatch.batch_ended(append.number, 3, 0.0)
    assert driver.outcomes() == dict.fromkeys("123", Outcome.STORED)
    assert driver.is_empty()


def test_batch_goes_on_while_there_is_more_and_ends_before_a_silence() -> None:
    driver = batching()
    driver.submit(*numbered(*range(6)))
    first, second = driver.append(), driver.append()
    assert (ids(first), first.first, first.last) == (["0", "1", "2", "3"], 0, False)
    assert (ids(second), second.first, second.last) == (["4", "5"], 4, False)
    assert driver.sends() == []
    driver.submit(*numbered(6))
    third = driver.append()
    assert (ids(third), third.first, third.last) == (["6"], 6, False)
    driver.dispatch.batch_stored(first.number, 3, driver.now)
    assert driver.sends() == []
    driver.dispatch.batch_stored(first.number, 6, driver.now)
    end = driver.append()

    assert (ids(end), end.first, end.last) == ([], 7, True)
    assert list(driver.outcomes()) == ["0", "1", "2", "3", "4", "5"]
    driver.dispatch.batch_ended(first.number, 7, 0.0)
    assert driver.outcomes() == {"6": Outcome.STORED}
    assert driver.counted("batches") == 1
    assert driver.is_empty()


def test_envelopes_submitted_after_the_end_wait_for_the_next_batch() -> None:
    driver = batching()
    driver.submit(*numbered(1, 2))
    append = driver.append()
    driver.submit(*numbered(3, 4))
    assert driver.sends() == []
    driver.dispatch.batch_ended(append.number, 2, 0.0)

    following = driver.append()
    assert following.number != append.number
    assert ids(following) == ["3", "4"]


def test_batch_stored_to_its_last_message_ends_without_another_answer() -> None:
    driver = batching()
    driver.submit(*numbered(*range(6)))
    number = driver.append().number
    driver.append()
    driver.dispatch.batch_stored(number, 6, driver.now)
    end = driver.append()

    assert (ids(end), end.last) == ([], True)
    assert driver.outcomes() == dict.fromkeys("012345", Outcome.STORED)
    assert driver.is_empty()
    assert driver.dispatch.next_tick() == INFINITY


def test_full_window_ends_batches_that_would_get_no_flow_ack() -> None:
    driver = batching(window=6)
    lanes = [driver.new_lane() for _ in range(3)]
    for lane in lanes:
        driver.submit(*(envelope(f"{id(lane)} {number}") for number in range(4)), lane=lane)
    sent = []
    while (append := driver.dispatch.next_send(0.0)) is not None:
        assert isinstance(append, Append)
        lane = driver.dispatch._batches.sent[append.number].lane.queue
        sent.append((lanes.index(lane), len(ids(append)), append.last))

    # Four messages of the first batch are in flight. There is room for two of another, too few
    # for a flow ack.
    assert sent == [(0, 4, False)]
    driver.dispatch.batch_stored(1, 3, driver.now)
    assert [len(found) for found in driver.sends()] == [4, 0]


def test_envelope_for_another_route_ends_the_batch_and_waits_for_the_next() -> None:
    driver = batching()
    driver.submit(*numbered(*range(4)))
    driver.submit(*numbered(4, 5, topic="other"))
    driver.submit(*numbered(6, 7))
    first, end = driver.append(), driver.append()
    assert ids(first) == ["0", "1", "2", "3"]
    assert (ids(end), end.number, end.last) == ([], first.number, True)
    assert driver.sends() == []
    driver.dispatch.batch_ended(first.number, 4, 0.0)

    other = driver.append()
    assert (ids(other), other.topics) == (["4", "5"], ["other", "other"])
    assert driver.sends() == [[]]  # its end: what waits goes to another route
    driver.dispatch.batch_ended(other.number, 2, 0.0)
    assert driver.sends() == [["6", "7"]]


def test_topics_without_a_route_go_as_singles_beside_the_batches() -> None:
    driver = batching(max_send=10)
    topics = ["orders", "elsewhere", "other", "elsewhere"]
    driver.submit(*(envelope(str(index), topic=topics[index % 4]) for index in range(8)))

    assert driver.sends() == [["0", "4"], ["2", "6"], ["1", "3", "5", "7"]]


def test_aggregate_on_two_topics_of_one_route_goes_in_one_batch() -> None:
    driver = Driver(
        route=lambda topic: Route("ALL", replicated=False, fresh=False), flow_interval=3
    )
    driver.submit(*(envelope(str(index), "a", topic=f"t{index % 2}") for index in range(4)))

    assert driver.sends() == [["0", "1", "2", "3"]]


def test_routes_are_asked_for_in_the_order_of_the_topics() -> None:
    """Asking may begin a doubt, so in another order the same run would not be the same again."""
    asked: list[str] = []
    topics = [f"topic-{number}" for number in range(20)]

    def route(topic: str) -> None:
        asked.append(topic)

    driver = Driver(route=route)
    driver.submit(*(envelope(topic, topic=topic) for topic in topics))
    driver.singles()

    assert asked[:20] == topics

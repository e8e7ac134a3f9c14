"""Replicated streams: which are in doubt, and which ids may be in process."""

import pytest

from bytewax_jetstream.dispatch.doubts import Doubts
from bytewax_jetstream.publishing import Receipt, Refusal, Route, Verdict
from tests.support.dispatching import RECEIPT, Driver, envelope, ids, numbered


def test_batch_of_a_closed_lane_leaves_its_stream_in_doubt() -> None:
    driver = Driver(route=lambda topic: Route("R3", replicated=True, fresh=True), flow_interval=3)
    other = driver.new_lane()
    driver.submit(*numbered(1, 2))
    driver.append()
    driver.dispatch.remove_lane(driver.lane)
    driver.submit(*numbered(1, 2), lane=other)

    assert driver.counted("streams_in_doubt") == 1
    assert driver.sends() == [["1", "2"]]
    assert not driver.dispatch._batches.sent


def test_messages_behind_a_refused_one_go_as_a_batch_on_a_replicated_stream() -> None:
    driver = Driver(route=lambda topic: Route("R3", replicated=True, fresh=True), flow_interval=3)
    driver.submit(*numbered(1, 2, 3, 4))
    sent = driver.append()
    driver.dispatch.refused(sent.number, 1, Refusal(Verdict.REJECT, "no", 1), 0.0)
    driver.dispatch.batch_ended(sent.number, 1, 0.0)

    assert driver.sends() == [[], ["3", "4"]]  # the end of the first batch, and the second
    assert len(driver.dispatch._batches.sent) == 1


def test_refusal_in_a_batch_keeps_the_ids_another_lane_has_in_flight() -> None:
    """`x` is in flight in the other lane, so the server may count it as stored and yet lose it."""
    driver = Driver(route=lambda topic: Route("R3", replicated=True, fresh=True), flow_interval=3)
    driver.submit(envelope("x"), lane=driver.new_lane())
    driver.singles()
    driver.submit(*numbered(1, 2, 3))
    batch = driver.append()
    driver.submit(envelope("x"), envelope("4"))
    driver.dispatch.refused(batch.number, 1, Refusal(Verdict.REJECT, "no", 1), 0.0)
    driver.dispatch.batch_ended(batch.number, 1, 0.0)

    third = driver.singles()
    assert ids(third) == ["3"]
    driver.dispatch.acked(third.number, 0, RECEIPT, driver.now)
    assert ids(driver.singles()) == ["x", "4"]


# `Doubts` by itself

ACK_TIMEOUT = 5.0
REPLICATED = Route("R3", replicated=True, fresh=False)
FRESH = Route("NEW", replicated=True, fresh=True)
ON_ONE_SERVER = Route("R1", replicated=False, fresh=False)
ROUTES = {"r3": REPLICATED, "new": FRESH, "r1": ON_ONE_SERVER}


def the_doubts() -> Doubts:
    return Doubts(ROUTES.get, ACK_TIMEOUT)


@pytest.mark.parametrize(
    ("route", "in_doubt"), [(REPLICATED, True), (FRESH, False), (ON_ONE_SERVER, False)]
)
def test_stream_is_in_doubt_after_a_start_if_an_earlier_run_may_have_used_it(
    route: Route, in_doubt: bool
) -> None:
    doubts = the_doubts()

    assert doubts.is_about(route, last_number=0, now=0.0) is in_doubt
    assert len(doubts) == in_doubt


def a_receipt(stream: str | None = "R3", *, duplicate: bool | None = False) -> Receipt:
    return Receipt(stream, None, 1, duplicate)


@pytest.mark.parametrize(
    ("number", "sent", "receipt", "in_doubt"),
    [
        (4, 15.0, a_receipt(), False),
        (4, 15.0, a_receipt(duplicate=None), False),
        (4, 15.0, a_receipt(duplicate=True), True),
        (4, 15.0, a_receipt("OTHER"), True),
        (4, 15.0, a_receipt(None), True),
        (3, 15.0, a_receipt(), True),
        (4, 14.9, a_receipt(), True),
    ],
    ids=["new", "perhaps new", "duplicate", "other stream", "no stream", "sent before", "too soon"],
)
def test_doubt_after_a_start_ends_when_something_new_and_sent_later_is_stored(
    number: int, sent: float, receipt: Receipt, in_doubt: bool
) -> None:
    doubts = the_doubts()
    doubts.is_about(REPLICATED, last_number=3, now=10.0)
    doubts.stored(number, sent, receipt)

    assert doubts.is_about(REPLICATED, last_number=number, now=sent) is in_doubt


@pytest.mark.parametrize(("number", "in_doubt"), [(7, True), (8, False)])
def test_doubt_after_a_silence_ends_with_any_later_send(number: int, in_doubt: bool) -> None:
    doubts = the_doubts()
    doubts.is_about(FRESH, last_number=0, now=0.0)
    doubts.unanswered([envelope("1", topic="new")], last_number=7, now=0.0)
    doubts.stored(number, 0.0, a_receipt("NEW"))

    assert doubts.is_about(FRESH, last_number=9, now=0.0) is in_doubt


def test_silence_during_a_doubt_keeps_the_time_before_which_no_send_ends_it() -> None:
    doubts = the_doubts()
    doubts.is_about(REPLICATED, last_number=0, now=10.0)
    doubts.unanswered([envelope("1", topic="r3")], last_number=2, now=10.0)
    doubts.stored(3, 14.9, a_receipt())
    assert len(doubts) == 1
    doubts.stored(3, 15.0, a_receipt())

    assert len(doubts) == 0


@pytest.mark.parametrize("topic", ["r1", "elsewhere"])
def test_silence_leaves_no_doubt_where_nothing_can_be_in_process(topic: str) -> None:
    doubts = the_doubts()
    doubts.unanswered([envelope("1", topic=topic)], last_number=1, now=0.0)

    assert len(doubts) == 0


def test_only_ids_on_replicated_streams_may_be_in_process() -> None:
    doubts = the_doubts()
    topics = {"1": "r3", "2": "r1", "3": "new", "4": "elsewhere", "5": "r3"}
    doubts.add_singles([envelope(event_id, topic=topic) for event_id, topic in topics.items()])
    assert doubts.in_process == {"1", "3", "5"}
    doubts.add_batch(numbered(6, 7))
    doubts.not_in_process(numbered(1, 2, 6))

    assert doubts.in_process == {"3", "5", "7"}


@pytest.mark.parametrize(
    ("number", "sent", "in_process"),
    [(8, 25.0, {"3"}), (8, 24.9, {"1", "2", "3"}), (7, 25.0, {"1", "2", "3"})],
    ids=["sent later", "sent too soon", "sent before"],
)
def test_lost_ids_are_not_in_process_once_something_new_and_sent_later_is_stored(
    number: int, sent: float, in_process: set[str]
) -> None:
    doubts = the_doubts()
    lost = [envelope(event_id, topic="new") for event_id in "123"]
    doubts.add_batch(lost)
    doubts.unanswered(lost, last_number=7, now=20.0)
    doubts.add_singles(lost[2:])  # sent again
    doubts.stored(number, sent, a_receipt("NEW"))

    assert doubts.in_process == in_process


def test_lost_ids_stay_in_process_when_more_is_lost() -> None:
    doubts = the_doubts()
    first, second = (envelope(event_id, topic="new") for event_id in "12")
    doubts.add_batch([first, second])
    doubts.unanswered([first], last_number=7, now=20.0)
    doubts.unanswered([second], last_number=9, now=24.0)
    doubts.stored(10, 26.0, a_receipt("NEW"))
    assert doubts.in_process == {"1", "2"}
    doubts.stored(11, 29.0, a_receipt("NEW"))

    assert doubts.in_process == set()

"""`Mailbox` by itself: between the ACK workers that settle and the thread that collects."""

import threading
import time
from collections import deque

import pytest

from bytewax_jetstream.envelope import Outcome, PublishResult
from bytewax_jetstream.pool.mailbox import Mailbox
from bytewax_jetstream.pool.results import Delivery
from tests.support.pooling import InThread

RESULT = PublishResult(
    outcome=Outcome.STORED,
    event_id="e",
    topic="topic",
    aggregate_id=None,
    event_type=None,
    broker="fake",
    stream=None,
    partition=None,
    sequence=None,
    duplicate=None,
    attempts=1,
    ack_seconds=0.0,
    reason=None,
    code=None,
    envelope=None,
    worker=0,
    epoch=0,
)
LONG = 120.0
"""Seconds that no test is to wait."""


def a_delivery(oks: int = 0, errs: int = 0) -> Delivery:
    return Delivery([RESULT] * oks, [RESULT] * errs, 0, "e")


def test_unsettled_counts_what_is_expected_and_not_delivered() -> None:
    mailbox = Mailbox(0)
    mailbox.expect(10)
    mailbox.expect(5)
    mailbox.deliver(a_delivery(oks=3, errs=1), None)

    assert mailbox.unsettled == 11


def test_deliveries_are_taken_once_and_in_order() -> None:
    mailbox = Mailbox(0)
    mailbox.expect(3)
    first, second = a_delivery(oks=1), a_delivery(oks=2)
    mailbox.deliver(first, None)
    mailbox.deliver(second, None)
    assert len(mailbox) == 2

    taken = mailbox.take()
    assert [id(delivery) for delivery in taken] == [id(first), id(second)]
    assert mailbox.take() == []


@pytest.mark.parametrize(
    ("unsettled", "below", "seconds", "fewer"),
    [(0, 1, LONG, True), (4, 5, LONG, True), (5, 5, 0.0, False), (5, 5, 0.01, False)],
    ids=["nothing", "fewer", "no time", "time is over"],
)
def test_wait_says_whether_fewer_are_unsettled(
    unsettled: int, below: int, seconds: float, fewer: bool
) -> None:
    mailbox = Mailbox(0)
    mailbox.expect(unsettled)
    begun = time.monotonic()

    assert mailbox.wait(below, seconds) is fewer
    assert time.monotonic() - begun < LONG / 2


@pytest.mark.parametrize(("delivered", "fewer"), [(1, False), (2, True)])
def test_wait_ends_with_the_next_delivery(
    delivered: int, fewer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mailbox = Mailbox(0)
    mailbox.expect(2)
    waits, answers = threading.Event(), list[bool]()
    wait = mailbox._news.wait

    def observed(timeout: float | None = None) -> bool:
        waits.set()  # under the lock: a delivery comes after the wait has begun
        return wait(timeout)

    monkeypatch.setattr(mailbox._news, "wait", observed)
    waiting = InThread(lambda: answers.append(mailbox.wait(1, LONG)))
    assert waits.wait(LONG)
    begun = time.monotonic()
    mailbox.deliver(a_delivery(oks=delivered), None)

    assert waiting.end() is None
    assert answers == [fewer]
    assert time.monotonic() - begun < LONG / 2


def test_stop_is_there_before_the_results_can_be_taken() -> None:
    mailbox = Mailbox(0)
    mailbox.expect(1)
    stops: list[PublishResult | None] = []

    class Watched(deque[Delivery]):
        def append(self, delivery: Delivery) -> None:
            stops.append(mailbox.stop)
            super().append(delivery)

    mailbox._deliveries = Watched()
    unknown = a_delivery(errs=1)
    mailbox.deliver(unknown, unknown.errs[0])

    assert stops == [unknown.errs[0]]


def test_first_stop_is_kept() -> None:
    mailbox = Mailbox(0)
    mailbox.expect(3)
    first, second = RESULT._replace(event_id="first"), RESULT._replace(event_id="second")
    for stop in (None, first, second):
        mailbox.deliver(a_delivery(errs=1), stop)

    assert mailbox.stop is first

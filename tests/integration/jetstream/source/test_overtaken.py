"""Messages that a stream removes before they are read are counted, and a warning says how many."""

import logging
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.reading import Driver, feed_of, numbered, put, source
from tests.support.streams import Names, api, change_stream, make_stream
from tests.support.waiting import until

LIMIT = 50


def numbers_in(url: str, stream: str) -> int:
    return int(api(url, f"STREAM.INFO.{stream}")["state"]["messages"])


def has_what_it_asked_for(driver: Driver) -> bool:
    """Whether nothing is on its way to a reader that has no room for more."""
    return not any(pull.left for pull in feed_of(driver)._pulls)


def overtake_by_count(url: str, stream: str) -> None:
    change_stream(url, stream, max_msgs=LIMIT)


def overtake_by_bytes(url: str, stream: str) -> None:
    change_stream(url, stream, max_bytes=2_000)


def overtake_by_age(url: str, stream: str) -> None:
    change_stream(url, stream, max_age=10**8, duplicate_window=10**8)
    until(lambda: numbers_in(url, stream) == 0)


def overtake_by_purge(url: str, stream: str) -> None:
    api(url, f"STREAM.PURGE.{stream}", {"keep": LIMIT})


@pytest.mark.parametrize("kind", ["sequence", "durable"])
@pytest.mark.parametrize(
    "overtake", [overtake_by_count, overtake_by_bytes, overtake_by_age, overtake_by_purge]
)
@pytest.mark.parametrize("tail", [True, False], ids=["tail", "to the end"])
def test_limits_that_overtake_a_reader_are_told_with_the_number_of_lost_messages(
    url: str,
    names: Names,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    overtake: Callable[[str, str], None],
    tail: bool,
) -> None:
    stream = names()
    make_stream(url, stream, f"{stream}.>")
    put(url, stream, numbered(f"{stream}.a", 2000))
    made = source(url, stream, tail=tail, batch_size=10, durable="d" if kind == "durable" else None)

    with caplog.at_level(logging.WARNING), Driver(made) as driver:
        driver.until(lambda: len(driver.items) >= 20)
        until(lambda: has_what_it_asked_for(driver))
        overtake(url, stream)
        if tail:
            put(url, stream, numbered(f"{stream}.a", 1, first=2001))
            driver.until(lambda: driver.items and driver.numbers[-1] == 2001)
        else:
            driver.to_end(epochs=True)

    count = 2001 if tail else 2000
    assert len(driver.items) < count
    assert made.skipped == count - len(driver.items)
    assert "were removed before they were read" in caplog.text
    assert f"{made.skipped} since the start" in caplog.text


@pytest.mark.parametrize("kind", ["sequence", "durable"])
def test_limits_that_overtake_a_stopped_reader_are_told_at_the_next_start(
    url: str, names: Names, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    stream = names()
    make_stream(url, stream, stream)
    put(url, stream, numbered(stream, 10))

    def made() -> Any:
        return source(url, stream, tail=True, durable="d" if kind == "durable" else None)

    with Driver(made()) as driver:
        driver.until(lambda: len(driver.items) == 10)
        state = driver.part.snapshot()
        driver.step()
    change_stream(url, stream, max_msgs=LIMIT)
    put(url, stream, numbered(stream, 200, first=11))
    again = made()

    with caplog.at_level(logging.WARNING), Driver(again, state=state) as driver:
        driver.until(lambda: len(driver.items) == LIMIT)

    assert again.skipped == 150
    expected = "sequences 11 to 160 were removed before they were read: 150 messages, 150 since"
    assert expected in caplog.text


def test_reader_of_one_subject_is_told_the_most_it_can_have_missed(
    url: str, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    stream = names()
    make_stream(url, stream, f"{stream}.>")
    for _ in range(20):
        put(url, stream, numbered(f"{stream}.a", 50) + numbered(f"{stream}.b", 50))
    made = source(url, stream, tail=True, batch_size=10, subjects=f"{stream}.a")

    with caplog.at_level(logging.WARNING), Driver(made) as driver:
        driver.until(lambda: len(driver.items) >= 20)
        until(lambda: has_what_it_asked_for(driver))
        overtake_by_count(url, stream)
        put(url, stream, numbered(f"{stream}.a", 1, first=51))
        driver.until(lambda: driver.numbers[-1] == 51)

    missed = 1001 - len(driver.items)
    assert missed <= made.skipped <= 2 * missed + 200  # messages of the other subject
    assert "up to" in caplog.text


@pytest.mark.parametrize("kind", ["sequence", "durable"])
def test_reader_of_a_rare_subject_is_not_warned_while_it_waits(
    url: str, names: Names, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    stream = names()
    make_stream(url, stream, f"{stream}.>", max_msgs=LIMIT)
    durable = "d" if kind == "durable" else None
    made = source(url, stream, tail=True, subjects=f"{stream}.a", durable=durable)

    with caplog.at_level(logging.WARNING), Driver(made) as driver:
        for round_ in range(1, 4):
            put(url, stream, numbered(f"{stream}.a", 1))
            driver.until(lambda: len(driver.items) == round_)  # noqa: B023  # called in this round
            put(url, stream, numbered(f"{stream}.b", 4 * LIMIT))

    assert made.skipped == 0
    assert not [one for one in caplog.messages if "removed" in one]


def test_stream_whose_messages_were_replaced_before_the_start_is_read_without_a_warning(
    url: str, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    stream = names()
    make_stream(url, stream, f"{stream}.>", max_msgs_per_subject=1)
    for number in range(300):
        put(url, stream, numbered(f"{stream}.{number % 7 if number else 'first'}", 1))
    made = source(url, stream)

    with caplog.at_level(logging.WARNING), Driver(made) as driver:
        driver.to_end()

    assert len(driver.items) == 8
    assert made.skipped == 0
    assert not caplog.messages


def test_messages_replaced_while_they_wait_to_be_read_are_counted(url: str, names: Names) -> None:
    stream = names()
    make_stream(url, stream, f"{stream}.>", max_msgs_per_subject=1)
    made = source(url, stream, tail=True, batch_size=1)

    with Driver(made) as driver:
        frames = [numbered(f"{stream}.{number % 7}", 1, first=number)[0] for number in range(3000)]
        put(url, stream, frames)
        driver.until(lambda: driver.items and driver.sequences[-1] == 3000, timeout=30)

    assert len(driver.items) + made.skipped == 3000
    assert made.skipped


@pytest.mark.parametrize("kind", ["sequence", "durable"])
def test_reader_that_keeps_up_with_a_short_stream_counts_nothing(
    url: str, names: Names, kind: str
) -> None:
    stream = names()
    make_stream(url, stream, stream, max_msgs=LIMIT)
    made = source(url, stream, tail=True, durable="d" if kind == "durable" else None)

    with Driver(made) as driver:
        for round_ in range(10):
            put(url, stream, numbered(stream, 20, first=20 * round_ + 1))
            driver.until(lambda: len(driver.items) == 20 * (round_ + 1))  # noqa: B023  # called in this round
        driver.part.snapshot()
        driver.step()

    assert made.skipped == 0

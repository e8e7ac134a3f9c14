import logging
from datetime import timedelta

import pytest

from bytewax_jetstream.jetstream.source.reading import Reading
from bytewax_jetstream.jetstream.source.skipped import LOG_SECONDS, Skipped


def counter(*, last: int = 0, subject: str | None = None) -> Skipped:
    return Skipped(Reading("S", subject, "first", None, timedelta(seconds=1), 1), last)


def test_gap_after_the_last_message_at_the_start_is_counted_at_once() -> None:
    skipped = counter(last=10)

    skipped.gap(11, 15, waited=False, now=0.0)

    assert (skipped.count, skipped.is_unsure) == (4, False)


def test_gap_that_was_there_at_the_start_is_counted_only_up_to_the_streams_first_message() -> None:
    skipped = counter(last=10)
    skipped.gap(2, 5, waited=True, now=0.0)
    skipped.gap(7, 13, waited=True, now=0.0)
    assert skipped.count == 2  # 11 and 12

    skipped.ask()
    skipped.settle(8, 0.0)

    assert skipped.count == 2 + 3 + 1
    assert not skipped.is_unsure


def test_gap_that_comes_after_the_question_waits_for_the_next_answer() -> None:
    skipped = counter(last=10)
    skipped.gap(2, 5, waited=True, now=0.0)
    skipped.ask()
    skipped.gap(6, 9, waited=True, now=0.0)

    skipped.settle(5, 0.0)
    assert (skipped.count, skipped.is_unsure) == (3, True)

    skipped.ask()
    skipped.settle(20, 0.0)
    assert skipped.count == 6


@pytest.mark.parametrize(("waited", "count"), [(False, 0), (True, 3)])
def test_gap_between_messages_of_a_subject_counts_only_if_messages_waited(
    waited: bool, count: int
) -> None:
    skipped = counter(subject="a")

    skipped.gap(2, 5, waited=waited, now=0.0)
    skipped.ask()
    skipped.settle(20, 0.0)

    assert skipped.count == count


def test_skipped_messages_are_logged_at_most_every_ten_seconds_and_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    skipped = counter()

    with caplog.at_level(logging.WARNING):
        skipped.add(1, 4, 0.0)
        skipped.add(5, 7, 1.0)
        skipped.add(9, 10, LOG_SECONDS - 1)
        skipped.add(12, 13, LOG_SECONDS)
        skipped.add(14, 15, LOG_SECONDS + 1)
        skipped.report()
        skipped.report()

    told = "stream S: sequences {} were removed before they were read: {} since the start"
    assert [message.split(": raise")[0] for message in caplog.messages] == [
        told.format("1 to 3", "3 messages, 3"),
        told.format("5 to 12", "4 messages, 7"),
        told.format("14 to 14", "1 messages, 8"),
    ]

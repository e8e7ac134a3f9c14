"""Denied messages: rejected where nothing was ever stored, tried again where something was."""

from collections.abc import Sequence
from typing import Any, cast

import pytest

from bytewax_jetstream.jetstream.publisher.denials import Denials
from bytewax_jetstream.publishing import PublisherEvents, Refusal, Verdict

TOPIC, OTHER = "orders.new", "orders.old"


class _Events:
    """What is in flight, as a test says, and what was refused."""

    def __init__(self) -> None:
        self.in_flight: dict[str, list[tuple[int, int]]] = {}
        self.refusals: dict[tuple[int, int], Verdict] = {}
        self.certain: dict[tuple[int, int], bool] = {}

    def in_flight_on(self, topic: str) -> Sequence[tuple[int, int]]:
        return self.in_flight.get(topic, [])

    def refused(self, number: int, index: int, refusal: Refusal) -> None:
        self.refusals[number, index] = refusal.verdict
        self.certain[number, index] = refusal.no_attempt_stored


def _send(denials: Denials, number: int, *topics: str) -> int:
    """Send singles; returns how many were written."""
    denials.sent(number, 0, topics)
    return sum(
        denials.lets_out(topic, number, index, b"%d.%d" % (number, index))
        for index, topic in enumerate(topics)
    )


def _deny(denials: Denials, topic: str) -> None:
    denials.dropped(topic)
    denials.denied(topic)


@pytest.fixture
def events() -> _Events:
    return _Events()


@pytest.fixture
def denials(events: _Events) -> Denials:
    return Denials(cast(PublisherEvents, cast(Any, events)))


def test_what_was_never_allowed_is_rejected(events: _Events, denials: Denials) -> None:
    _send(denials, 1, TOPIC, OTHER, TOPIC)
    events.in_flight[TOPIC] = [(1, 0), (1, 2)]
    _deny(denials, TOPIC)
    assert denials.act() == b""
    assert not events.refusals
    _deny(denials, TOPIC)
    denials.act()

    assert events.refusals == {(1, 0): Verdict.REJECT, (1, 2): Verdict.REJECT}


def test_what_was_never_allowed_is_rejected_also_after_silent_attempts(
    events: _Events, denials: Denials
) -> None:
    _send(denials, 1, TOPIC, TOPIC)
    # These attempts end before a denial comes, and so do the next ones before the others come.
    assert _send(denials, 2, TOPIC, TOPIC) == 2
    _deny(denials, TOPIC)
    _deny(denials, TOPIC)
    assert _send(denials, 3, TOPIC, TOPIC) == 0
    events.in_flight[TOPIC] = [(3, 0), (3, 1)]
    denials.act()
    assert not events.refusals, "two of the four that were written may be let through"
    _deny(denials, TOPIC)
    _deny(denials, TOPIC)
    assert denials.act() == b""

    assert events.refusals == {(3, 0): Verdict.REJECT, (3, 1): Verdict.REJECT}
    assert all(events.certain.values()), "every attempt was denied"


def test_questions_that_are_dropped_count_beside_the_messages(
    events: _Events, denials: Denials
) -> None:
    _send(denials, 1, TOPIC)
    denials.written([TOPIC, TOPIC])
    events.in_flight[TOPIC] = [(1, 0)]
    denials.dropped(TOPIC)
    _deny(denials, TOPIC)
    denials.act()
    assert not events.refusals
    denials.dropped(TOPIC)
    denials.act()

    assert events.refusals == {(1, 0): Verdict.REJECT}


def test_what_waited_for_a_denial_is_written_when_its_topic_turns_out_to_be_open(
    events: _Events, denials: Denials
) -> None:
    _send(denials, 1, TOPIC, TOPIC)
    _deny(denials, TOPIC)
    assert _send(denials, 2, TOPIC) == 0
    denials.acked(1, 0)
    events.in_flight[TOPIC] = [(1, 1), (2, 0)]

    assert denials.act() == b"2.0"
    assert events.refusals == {(1, 1): Verdict.RETRY}


@pytest.mark.parametrize("way", ["single", "batch", "end of batch", "group"])
def test_what_was_stored_on_before_is_tried_again(
    events: _Events, denials: Denials, way: str
) -> None:
    if way == "group":
        denials.sent_as_group(1, 3, [OTHER, TOPIC])
        denials.acked(1, 3)
    else:
        denials.sent(1, 0, [OTHER, TOPIC])
        match way:
            case "single":
                denials.acked(1, 1)
            case "batch":
                denials.stored_in_batch(1, 2)
            case "end of batch":
                denials.batch_ends(1, 2)
    denials.sent(2, 0, [TOPIC])
    events.in_flight[TOPIC] = [(2, 0)]
    _deny(denials, TOPIC)
    denials.act()

    assert events.refusals == {(2, 0): Verdict.RETRY}


def test_only_what_a_batch_has_stored_shows_a_permission(events: _Events, denials: Denials) -> None:
    denials.sent(1, 0, [OTHER])
    denials.sent(1, 1, [TOPIC])
    denials.stored_in_batch(1, 1)
    events.in_flight[TOPIC] = [(1, 1)]
    _deny(denials, TOPIC)
    denials.batch_ends(1, 1)

    assert events.refusals == {(1, 1): Verdict.REJECT}


def test_permission_is_remembered_over_a_connection_and_open_questions_are_not(
    events: _Events, denials: Denials
) -> None:
    denials.sent(1, 0, [TOPIC, OTHER])
    denials.acked(1, 0)
    denials.connected()
    assert not denials.tried
    for topic, number in ((TOPIC, 2), (OTHER, 3)):
        denials.sent(number, 0, [topic])
        events.in_flight[topic] = [(number, 0)]
        _deny(denials, topic)
    denials.act()

    assert events.refusals == {(2, 0): Verdict.RETRY, (3, 0): Verdict.REJECT}


@pytest.mark.parametrize("denied_before", [False, True])
def test_attempt_that_an_earlier_connection_may_have_taken_stays_uncertain(
    events: _Events, denials: Denials, denied_before: bool
) -> None:
    _send(denials, 1, TOPIC)
    if denied_before:
        _deny(denials, TOPIC)
    denials.connected()
    _send(denials, 2, TOPIC)
    events.in_flight[TOPIC] = [(2, 0)]
    _deny(denials, TOPIC)
    denials.act()

    assert events.refusals == {(2, 0): Verdict.REJECT}
    assert events.certain == {(2, 0): denied_before}


def test_nothing_is_kept_of_messages_on_topics_that_are_known(denials: Denials) -> None:
    denials.sent(1, 0, [TOPIC] * 10)
    denials.acked(1, 0)
    denials.sent(2, 0, [TOPIC] * 10)
    denials.sent_as_group(3, 0, [TOPIC] * 3)

    assert not denials.tried

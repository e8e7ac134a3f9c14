"""Segments, entries and groups by themselves."""

from datetime import timedelta

import pytest

from bytewax_jetstream.dispatch import Entry, Submission
from bytewax_jetstream.dispatch.segment import Group, segments_of
from bytewax_jetstream.envelope import Envelope, PublishOptions
from bytewax_jetstream.publishing import Alone, Refusal, Verdict, Wire
from tests.support.dispatching import entry, envelope, event_ids, numbered, segment

SUBMISSION = Submission(1.0, 9)
OPTIONS = PublishOptions(ttl=timedelta(seconds=5))


# Splitting


def test_split_takes_the_first_envelopes_with_their_wires_and_bytes() -> None:
    rest = segment(envelope("1", size=1), envelope("2", size=20), envelope("3", size=300))
    first = rest.split(2)

    assert (first.wires, first.count, first.size) == (["1", "2"], 2, 21)
    assert (rest.wires, rest.count, rest.size) == (["3"], 1, 300)
    assert event_ids(first.entries()) == ["1", "2"]
    assert event_ids(rest.entries()) == ["3"]


def test_split_part_keeps_submission_attempts_and_being_alone() -> None:
    rest = segment(*numbered(1, 2), alone=True, attempts=3)
    first = rest.split(1)

    assert (first.submission, first.attempts, first.alone) == (rest.submission, 3, True)


def test_split_of_everything_leaves_an_empty_segment() -> None:
    rest = segment(*numbered(1, 2))
    rest.split(2)

    assert (rest.count, rest.size, rest.entries()) == (0, 0, [])


@pytest.mark.parametrize(
    ("room", "room_bytes", "fitting"),
    [
        (3, 60, 3),
        (9, 999, 3),
        (2, 60, 2),
        (3, 59, 2),
        (3, 30, 2),
        (3, 29, 1),
        (3, 10, 1),
        (3, 9, 1),
        (1, 60, 1),
    ],
)
def test_fitting_counts_what_has_room_and_at_least_one(
    room: int, room_bytes: int, fitting: int
) -> None:
    three = segment(envelope("1", size=10), envelope("2", size=20), envelope("3", size=30))

    assert three.fitting(room, room_bytes) == fitting


# Making segments of a submission


def test_wire_that_needs_an_answer_of_its_own_stands_alone() -> None:
    wires: list[Wire] = [b"1", Alone(b"2"), Alone(b"3"), b"4"]
    made = segments_of(SUBMISSION, numbered(1, 2, 3, 4), wires, atomic=False)

    assert [(each.wires, each.alone) for each in made] == [
        ([b"1"], False),
        ([b"2", b"3"], True),
        ([b"4"], False),
    ]


def test_tombstone_counts_no_bytes() -> None:
    tombstone = envelope("1")._replace(payload=None)
    made = segment(tombstone, envelope("2", size=20))

    assert (made.size, made.fitting(2, 20), made.entries()[0].size) == (20, 2, 0)


def in_short(*names: str) -> list[Envelope]:
    """Envelopes of their event ids: `1/a` is of aggregate `a`, `1*` has options."""
    made = []
    for name in names:
        event_id, _, aggregate = name.rstrip("*").partition("/")
        options = OPTIONS if name.endswith("*") else None
        made.append(envelope(event_id, aggregate or None)._replace(options=options))
    return made


@pytest.mark.parametrize(
    ("atomic", "names", "made"),
    [
        (False, [], []),
        (False, ["1", "2/a", "3/a"], [("together", ["1", "2", "3"])]),
        (
            False,
            ["1", "2", "3*", "4*", "5"],
            [("together", ["1", "2"]), ("alone", ["3", "4"]), ("together", ["5"])],
        ),
        (True, ["1", "2/a", "3/b"], [("together", ["1", "2", "3"])]),
        (
            True,
            ["1", "2/a", "3/b", "4/a", "5/b", "6"],
            [
                ("together", ["1"]),
                ("group", ["2", "4"]),
                ("group", ["3", "5"]),
                ("together", ["6"]),
            ],
        ),
        (
            True,
            ["1*", "2/a*", "3/a", "4"],
            [("alone", ["1"]), ("group", ["2", "3"]), ("together", ["4"])],
        ),
    ],
    ids=["empty", "one", "options", "atomic without groups", "atomic", "atomic with options"],
)
def test_submission_is_split_only_where_envelopes_cannot_go_together(
    atomic: bool, names: list[str], made: list[tuple[str, list[str]]]
) -> None:
    envelopes = in_short(*names)
    wires: list[Wire] = [each.event_id for each in envelopes]
    segments = segments_of(SUBMISSION, envelopes, wires, atomic=atomic)

    assert [
        ("group" if each.group else "alone" if each.alone else "together", each.wires)
        for each in segments
    ] == made
    for each in segments:
        assert each.wires == [one.event_id for one in each.envelopes]
        assert each.submission is SUBMISSION


def test_segments_leave_the_callers_list_alone() -> None:
    envelopes = numbered(1, 2)
    (only,) = segments_of(SUBMISSION, envelopes, [b"", b""], atomic=False)
    only.split(1)

    assert len(envelopes) == 2


# Entries


def test_entries_keep_wire_attempts_and_submission_of_their_segment() -> None:
    two = segment(envelope("1", size=5), envelope("2", size=6), attempts=2)

    assert [
        (each.envelope.event_id, each.wire, each.attempts, each.size, each.count)
        for each in two.entries()
    ] == [("1", "1", 2, 5, 1), ("2", "2", 2, 6, 1)]
    assert {each.submission for each in two.entries()} == {two.submission}


def test_group_is_one_entry_with_the_messages_and_bytes_of_all() -> None:
    (group,) = segment(envelope("1", size=5), envelope("2", size=6), group=True).entries()

    assert isinstance(group, Group)
    assert (group.count, group.size, group.wires) == (2, 11, ["1", "2"])
    assert [each.event_id for each in group.envelopes] == ["1", "2"]


def test_members_of_a_group_share_its_attempts() -> None:
    (group,) = segment(*numbered(1, 2), group=True).entries()
    assert isinstance(group, Group)
    group.attempts = 3

    assert [(each.envelope.event_id, each.attempts) for each in group.members()] == [
        ("1", 3),
        ("2", 3),
    ]
    assert not any(isinstance(each, Group) for each in group.members())


def test_entry_counts_its_unanswered_attempts_and_keeps_the_first_reason() -> None:
    one: Entry = entry("1")
    first = Refusal(Verdict.RETRY, "no leader", 503)
    one.unanswered(first, 1.0)
    one.unanswered(Refusal(Verdict.RETRY, "no ack within 5 s"), 1.0)

    assert (one.in_doubt, one.last) == (2, first)

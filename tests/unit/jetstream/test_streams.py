"""Which topics a subject covers, what makes a stream too weak, and what an update says."""

import re
from datetime import timedelta
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytewax_jetstream.jetstream.streams import (
    Coverage,
    _changes,
    _shortcomings,
    covers,
    overlap,
    weakness_of,
)
from tests.support.stream_configs import MINUTE, ON_THE_SERVER, wanted

# Which topics a subject covers


def _regex(pattern: str) -> re.Pattern[str]:
    """Another way to say what a subject matches."""
    tokens = {"*": r"[^.]+", ">": r".+"}
    return re.compile(
        r"\.".join(tokens.get(token, re.escape(token)) for token in pattern.split("."))
    )


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("orders", "orders", True),
        ("orders", "order", False),
        ("orders", "orders.new", False),
        ("orders.new", "orders", False),
        ("orders.*", "orders.new", True),
        ("orders.*", "orders", False),
        ("orders.*", "orders.new.eu", False),
        ("orders.*.eu", "orders.new.eu", True),
        ("orders.*.eu", "orders.new.us", False),
        ("*", "orders", True),
        ("*.*", "orders", False),
        ("orders.>", "orders.new", True),
        ("orders.>", "orders.new.eu", True),
        ("orders.>", "orders", False),
        ("orders.*.>", "orders.new", False),
        (">", "orders", True),
        (">", "orders.new.eu", True),
        ("o*ders", "orders", False),
        # Narrower patterns, as they stand in settings
        (">", ">", True),
        ("orders.>", "orders.*", True),
        ("orders.>", "orders.*.>", True),
        ("orders.*", "orders.>", False),
        ("*.>", ">", False),
        ("*", "*", True),
        ("orders", "*", False),
    ],
)
def test_subject_covers_topics_and_narrower_subjects(
    pattern: str, topic: str, expected: bool
) -> None:
    assert covers(pattern, topic) is expected


TOKENS = st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=4).map(".".join)
PATTERNS = TOKENS | TOKENS.map("{}.>".format) | st.just(">")
TOPICS = st.lists(st.sampled_from(["a", "b", "aa", "a*"]), min_size=1, max_size=5).map(".".join)


@settings(max_examples=400, deadline=None)
@given(PATTERNS, TOPICS)
def test_coverage_agrees_with_a_regular_expression(pattern: str, topic: str) -> None:
    assert covers(pattern, topic) == bool(_regex(pattern).fullmatch(topic))


ALL_TOPICS = [
    ".".join(tokens) for length in range(1, 6) for tokens in product("abz", repeat=length)
]


@settings(max_examples=200, deadline=None)
@given(PATTERNS, PATTERNS)
def test_subject_covers_another_if_it_covers_all_of_its_topics(wide: str, narrow: str) -> None:
    topics = [topic for topic in ALL_TOPICS if _regex(narrow).fullmatch(topic)]

    assert covers(wide, narrow) == all(_regex(wide).fullmatch(topic) for topic in topics)


@settings(max_examples=200, deadline=None)
@given(st.lists(PATTERNS | TOPICS, max_size=6), TOPICS)
def test_coverage_finds_the_stream_of_a_topic(subjects: list[str], topic: str) -> None:
    streams = {
        f"S{number}": {"name": f"S{number}", "subjects": [one]}
        for number, one in enumerate(subjects)
    }
    covered = Coverage(streams).of(topic)
    expected: set[str | None] = {
        f"S{number}" for number, one in enumerate(subjects) if _regex(one).fullmatch(topic)
    }

    assert (covered.stream if covered else None) in (expected or {None})


def test_coverage_accepts_streams_without_subjects() -> None:
    coverage = Coverage(
        {"MIRROR": {"name": "MIRROR", "mirror": {"name": "ORDERS"}}, "S": {"subjects": None}}
    )

    assert coverage.of("orders") is None
    assert coverage.knows("MIRROR")
    assert coverage.knows("S")


# What is too weak


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (
            {"no_ack": True},
            (
                "stream ORDERS has no_ack set, so it never confirms what it stored: "
                "set no_ack to false"
            ),
        ),
        (
            {"sealed": True},
            "stream ORDERS is sealed and accepts no messages: publish to another stream",
        ),
        (
            {"persist_mode": "async"},
            (
                "stream ORDERS acknowledges before it writes (persist_mode async): "
                "use the default persist mode"
            ),
        ),
        (
            {"mirror": {"name": "X"}},
            "stream ORDERS is a mirror and accepts no messages: publish to its origin stream",
        ),
    ],
)
def test_a_stream_that_cannot_keep_what_an_ack_promises_says_why(
    field: dict[str, Any], words: str
) -> None:
    config = {**ON_THE_SERVER, **field}

    assert weakness_of(config) == words
    assert list(_shortcomings(config, wanted(), 10.0).values()) == [words]
    covered = Coverage({"ORDERS": config}).of("orders.new")
    assert covered is not None
    assert covered.weakness == words


def test_an_ordinary_stream_has_no_weakness() -> None:
    assert (
        weakness_of({**ON_THE_SERVER, "no_ack": False, "sealed": False, "persist_mode": "default"})
        is None
    )


@pytest.mark.parametrize(
    ("has", "asks", "words"),
    [
        (
            {"subjects": ["orders.*"]},
            {},
            "subject orders.> is not among the stream's subjects (orders.*)",
        ),
        ({"subjects": None}, {}, "subject orders.> is not among the stream's subjects ()"),
        ({"storage": "memory"}, {}, "storage is memory, the settings require file"),
        ({"num_replicas": 1}, {"replicas": 3}, "num_replicas is 1, the settings require 3"),
        ({"retention": "workqueue"}, {}, "retention is workqueue, the settings require limits"),
        (
            {"retention": "limits"},
            {"retention": "interest"},
            "retention is limits, the settings require interest",
        ),
        (
            {"discard": "old"},
            {"discard": "new"},
            (
                "discard is old, which drops stored messages when the stream is full; "
                "the settings require new"
            ),
        ),
        (
            {"duplicate_window": MINUTE},
            {"duplicate_window": timedelta(minutes=2)},
            "duplicate_window is 0:01:00, the settings require 0:02:00",
        ),
        (
            {"duplicate_window": MINUTE, "max_age": MINUTE},
            {"duplicate_window": timedelta(minutes=2)},
            (
                "duplicate_window is 0:01:00, the settings require 0:02:00, and the stream's "
                "max_age of 0:01:00 allows no more"
            ),
        ),
        (
            {"duplicate_window": MINUTE // 10},
            {},
            "duplicate_window is 0:00:06, the settings require 0:00:10",
        ),
        (
            {"allow_msg_ttl": False},
            {"allow_message_ttl": True},
            "allow_msg_ttl is off, the settings require it on",
        ),
        (
            {},
            {"allow_message_schedules": True},
            ("allow_msg_schedules is off, the settings require it on (nats-server 2.12 or later)"),
        ),
        ({"max_msgs": 10}, {"max_messages": 11}, "max_msgs is 10, the settings require 11"),
        ({"max_bytes": 10}, {"max_bytes": 11}, "max_bytes is 10, the settings require 11"),
        (
            {"max_msg_size": 10},
            {"max_message_size": 11},
            "max_msg_size is 10, the settings require 11",
        ),
        (
            {"max_age": MINUTE},
            {"max_age": timedelta(hours=1)},
            "max_age is 0:01:00, the settings require 1:00:00",
        ),
    ],
)
def test_stream_that_keeps_less_than_required_says_in_what(
    has: dict[str, Any], asks: dict[str, Any], words: str
) -> None:
    assert list(_shortcomings({**ON_THE_SERVER, **has}, wanted(**asks), 10.0).values()) == [words]


@pytest.mark.parametrize(
    ("has", "asks"),
    [
        ({}, {}),
        ({"subjects": ["audit", ">"]}, {}),
        ({"storage": "file"}, {"storage": "memory"}),
        ({"num_replicas": 3}, {"replicas": 1}),
        ({"discard": "new"}, {"discard": "old"}),
        ({"duplicate_window": 60 * MINUTE}, {}),
        ({"duplicate_window": MINUTE, "max_age": MINUTE}, {}),
        ({"allow_msg_ttl": True}, {}),
        ({"max_msgs": -1}, {"max_messages": 11}),
        ({"max_msgs": 12}, {"max_messages": 11}),
        ({"max_msgs": 10}, {}),
        ({"max_age": 0}, {"max_age": timedelta(hours=1)}),
    ],
)
def test_stream_that_keeps_as_much_or_more_is_left_alone(
    has: dict[str, Any], asks: dict[str, Any]
) -> None:
    config = {**ON_THE_SERVER, **has}

    assert _shortcomings(config, wanted(**asks), 10.0) == {}
    assert _changes(config, wanted(**asks), takes_batches=False, least_window=10.0) == {}


# What an update says


def test_only_insufficient_fields_are_changed() -> None:
    config = {**ON_THE_SERVER, "duplicate_window": MINUTE, "num_replicas": 5}

    assert _changes(config, wanted(max_messages=1000), takes_batches=False, least_window=10.0) == {
        "duplicate_window": 2 * MINUTE
    }


def test_subjects_are_added_and_none_is_removed() -> None:
    config = {**ON_THE_SERVER, "subjects": ["orders.new", "audit.>", "orders.eu.*"]}

    assert _changes(
        config,
        wanted(subjects=("orders.>", "audit.x", "bills")),
        takes_batches=False,
        least_window=10.0,
    ) == {"subjects": ["audit.>", "orders.>", "bills"]}, (
        "a subject that a new one covers must go: the server refuses subjects that overlap"
    )


def test_weakness_that_no_setting_concerns_is_not_fixed() -> None:
    assert (
        _changes(
            {**ON_THE_SERVER, "sealed": True}, wanted(), takes_batches=False, least_window=10.0
        )
        == {}
    )


def test_batches_are_enabled_if_the_server_can_and_the_settings_ask() -> None:
    assert _changes(ON_THE_SERVER, wanted(), takes_batches=True, least_window=10.0) == {
        "allow_batched": True
    }
    assert (
        _changes(ON_THE_SERVER, wanted(allow_batched=False), takes_batches=True, least_window=10.0)
        == {}
    )
    assert (
        _changes(
            {**ON_THE_SERVER, "allow_batched": True},
            wanted(),
            takes_batches=True,
            least_window=10.0,
        )
        == {}
    )
    assert "allow_batched" not in _shortcomings(ON_THE_SERVER, wanted(), 10.0), (
        "a stream without it keeps its promises"
    )


# Which subjects no two streams may have


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("orders", "orders", True),
        ("orders", "returns", False),
        ("orders.*", "orders.new", True),
        ("orders.*", "*.new", True),
        ("orders.>", "*.new.eu", True),
        ("orders.>", "orders", False),
        ("orders.*", "orders.new.eu", False),
        ("*.new", "orders.old", False),
        (">", "orders", True),
    ],
)
def test_overlap_of_two_subjects(one: str, other: str, expected: bool) -> None:
    assert overlap(one, other) is overlap(other, one) is expected


PATTERNS = st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=3).map(".".join)


@given(PATTERNS, PATTERNS, st.booleans(), st.booleans())
def test_subjects_overlap_when_some_topic_matches_both(
    one: str, other: str, one_is_open: bool, other_is_open: bool
) -> None:
    one, other = one + ".>" * one_is_open, other + ".>" * other_is_open
    topics = (
        ".".join(tokens) for size in range(1, 6) for tokens in product(("a", "b"), repeat=size)
    )

    assert overlap(one, other) == any(covers(one, each) and covers(other, each) for each in topics)

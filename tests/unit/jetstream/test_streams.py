import asyncio
import re
from datetime import timedelta
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytewax_jetstream.errors import StreamError
from bytewax_jetstream.jetstream.connection.connection import JetStreamApiError
from bytewax_jetstream.jetstream.streams import (
    REMEDY,
    STREAM_NAME_IN_USE,
    STREAM_NOT_FOUND,
    Coverage,
    _changes,
    _shortcomings,
    covers,
    ensure_streams,
    read_coverage,
    weakness_of,
)
from bytewax_jetstream.settings import JetStreamSettings, StreamSettings

MINUTE = 60 * 10**9

ON_THE_SERVER: dict[str, Any] = {
    "name": "ORDERS",
    "subjects": ["orders.>"],
    "storage": "file",
    "num_replicas": 1,
    "retention": "limits",
    "discard": "old",
    "duplicate_window": 2 * MINUTE,
    "max_msgs": -1,
    "max_bytes": -1,
    "max_msg_size": -1,
    "max_age": 0,
    "allow_direct": True,
    "deny_purge": True,
    "metadata": {"owner": "billing"},
    "a_field_of_tomorrow": {"depth": [1, 2]},
}


def wanted(**fields: Any) -> StreamSettings:
    return StreamSettings(**{"name": "ORDERS", "subjects": ("orders.>",), **fields})


# Which topics a subject takes in


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
def test_a_subject_takes_in_topics_and_narrower_subjects(
    pattern: str, topic: str, expected: bool
) -> None:
    assert covers(pattern, topic) is expected


TOKENS = st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=4).map(".".join)
PATTERNS = TOKENS | TOKENS.map("{}.>".format) | st.just(">")
TOPICS = st.lists(st.sampled_from(["a", "b", "aa", "a*"]), min_size=1, max_size=5).map(".".join)


@settings(max_examples=400, deadline=None)
@given(PATTERNS, TOPICS)
def test_a_topic_is_covered_as_a_regular_expression_says(pattern: str, topic: str) -> None:
    assert covers(pattern, topic) == bool(_regex(pattern).fullmatch(topic))


ALL_TOPICS = [
    ".".join(tokens) for length in range(1, 6) for tokens in product("abz", repeat=length)
]


@settings(max_examples=200, deadline=None)
@given(PATTERNS, PATTERNS)
def test_a_subject_takes_in_another_when_it_takes_in_all_of_its_topics(
    wide: str, narrow: str
) -> None:
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


def test_coverage_knows_streams_without_subjects() -> None:
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
            "stream ORDERS has no_ack set and never says what it stored: set no_ack to false",
        ),
        ({"sealed": True}, "stream ORDERS is sealed and takes nothing: publish to another stream"),
        (
            {"persist_mode": "async"},
            "stream ORDERS acknowledges before it writes (persist_mode async): use the default persist mode",
        ),
        (
            {"mirror": {"name": "X"}},
            "stream ORDERS is a mirror and takes nothing: publish to its origin",
        ),
    ],
)
def test_a_stream_that_cannot_keep_what_an_ack_promises_says_why(
    field: dict[str, Any], words: str
) -> None:
    config = {**ON_THE_SERVER, **field}

    assert weakness_of(config) == words
    assert list(_shortcomings(config, wanted()).values()) == [words]
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
        ({"subjects": ["orders.*"]}, {}, "subject orders.> is not among its subjects (orders.*)"),
        ({"subjects": None}, {}, "subject orders.> is not among its subjects ()"),
        ({"storage": "memory"}, {}, "storage is memory, asked is file"),
        ({"num_replicas": 1}, {"replicas": 3}, "replicas are 1, asked are 3"),
        ({"retention": "workqueue"}, {}, "retention is workqueue, asked is limits"),
        (
            {"retention": "limits"},
            {"retention": "interest"},
            "retention is limits, asked is interest",
        ),
        (
            {"discard": "old"},
            {"discard": "new"},
            "discard is old, which drops stored messages when the stream is full; asked is new",
        ),
        ({"duplicate_window": MINUTE}, {}, "duplicate_window is 0:01:00, asked is 0:02:00"),
        (
            {"allow_msg_ttl": False},
            {"allow_message_ttl": True},
            "allow_msg_ttl is off, asked is on",
        ),
        ({"max_msgs": 10}, {"max_messages": 11}, "max_msgs is 10, asked is 11"),
        ({"max_bytes": 10}, {"max_bytes": 11}, "max_bytes is 10, asked is 11"),
        ({"max_msg_size": 10}, {"max_message_size": 11}, "max_msg_size is 10, asked is 11"),
        (
            {"max_age": MINUTE},
            {"max_age": timedelta(hours=1)},
            "max_age is 0:01:00, asked is 1:00:00",
        ),
    ],
)
def test_a_stream_that_keeps_less_than_asked_says_in_what(
    has: dict[str, Any], asks: dict[str, Any], words: str
) -> None:
    assert list(_shortcomings({**ON_THE_SERVER, **has}, wanted(**asks)).values()) == [words]


@pytest.mark.parametrize(
    ("has", "asks"),
    [
        ({}, {}),
        ({"subjects": ["audit", ">"]}, {}),
        ({"storage": "file"}, {"storage": "memory"}),
        ({"num_replicas": 3}, {"replicas": 1}),
        ({"discard": "new"}, {"discard": "old"}),
        ({"duplicate_window": 60 * MINUTE}, {}),
        ({"allow_msg_ttl": True}, {}),
        ({"max_msgs": -1}, {"max_messages": 11}),
        ({"max_msgs": 12}, {"max_messages": 11}),
        ({"max_msgs": 10}, {}),
        ({"max_age": 0}, {"max_age": timedelta(hours=1)}),
    ],
)
def test_a_stream_that_keeps_as_much_or_more_is_left_alone(
    has: dict[str, Any], asks: dict[str, Any]
) -> None:
    config = {**ON_THE_SERVER, **has}

    assert _shortcomings(config, wanted(**asks)) == {}
    assert _changes(config, wanted(**asks), takes_batches=False) == {}


# What an update says


def test_only_what_falls_short_is_changed() -> None:
    config = {**ON_THE_SERVER, "duplicate_window": MINUTE, "num_replicas": 5}

    assert _changes(config, wanted(max_messages=1000), takes_batches=False) == {
        "duplicate_window": 2 * MINUTE
    }


def test_subjects_are_added_and_none_is_taken_away() -> None:
    config = {**ON_THE_SERVER, "subjects": ["orders.new", "audit.>", "orders.eu.*"]}

    assert _changes(
        config, wanted(subjects=("orders.>", "audit.x", "bills")), takes_batches=False
    ) == {"subjects": ["audit.>", "orders.>", "bills"]}, (
        "what a new subject takes in must not stand beside it: the server refuses subjects that overlap"
    )


def test_a_weakness_that_no_setting_asks_for_is_not_mended_in_passing() -> None:
    assert _changes({**ON_THE_SERVER, "sealed": True}, wanted(), takes_batches=False) == {}


def test_whole_flights_are_turned_on_where_the_server_can_and_the_settings_want_it() -> None:
    assert _changes(ON_THE_SERVER, wanted(), takes_batches=True) == {"allow_batched": True}
    assert _changes(ON_THE_SERVER, wanted(allow_batched=False), takes_batches=True) == {}
    assert _changes({**ON_THE_SERVER, "allow_batched": True}, wanted(), takes_batches=True) == {}
    assert "allow_batched" not in _shortcomings(ON_THE_SERVER, wanted()), (
        "a stream without it keeps its promises"
    )


# Against an API that answers from memory


class Api:
    """Answers as a server with these streams, and keeps what it was asked."""

    takes_batches = False

    def __init__(self, *configs: dict[str, Any], page: int = 256) -> None:
        self.streams = {config["name"]: config for config in configs}
        self.asked: list[tuple[str, dict[str, Any] | None]] = []
        self.refusals: dict[str, JetStreamApiError] = {}
        self._page = page

    async def request(
        self, subject: str, body: dict[str, Any] | None = None, seconds: float | None = None
    ) -> dict[str, Any]:
        self.asked.append((subject, body))
        verb, name = subject.split(".")[1], subject.split(".")[-1]
        if subject in self.refusals:
            raise self.refusals.pop(subject)
        if verb == "LIST":
            assert body is not None
            some = list(self.streams.values())[body["offset"] : body["offset"] + self._page]
            return {
                "total": len(self.streams),
                "streams": [{"config": config} for config in some] or None,
            }
        if verb == "INFO" and name not in self.streams:
            raise JetStreamApiError(STREAM_NOT_FOUND, "stream not found")
        if verb in ("CREATE", "UPDATE"):
            assert body is not None
            self.streams[name] = body
        return {"config": self.streams[name]}

    @property
    def verbs(self) -> list[str]:
        return [subject.split(".")[1] for subject, _ in self.asked]


def ensure(api: Api, *streams: StreamSettings, **fields: Any) -> Coverage | None:
    return asyncio.run(ensure_streams(api, JetStreamSettings(streams=streams, **fields)))


def refusal(api: Api, *streams: StreamSettings, **fields: Any) -> str:
    with pytest.raises(StreamError) as caught:
        ensure(api, *streams, **fields)
    return str(caught.value)


def test_a_missing_stream_is_made_with_what_the_settings_say_and_nothing_else() -> None:
    api = Api()
    coverage = ensure(
        api, wanted(max_age=timedelta(days=1), allow_message_ttl=True), topics=("orders.new",)
    )

    assert api.asked[1] == (
        "STREAM.CREATE.ORDERS",
        {
            "name": "ORDERS",
            "subjects": ["orders.>"],
            "storage": "file",
            "num_replicas": 1,
            "retention": "limits",
            "duplicate_window": 2 * MINUTE,
            "max_age": 24 * 60 * MINUTE,
            "allow_msg_ttl": True,
        },
    )
    assert coverage is not None
    assert coverage.of("orders.new") is not None


def test_an_update_is_merged_into_what_the_server_has() -> None:
    api = Api({**ON_THE_SERVER, "duplicate_window": MINUTE})
    ensure(api, wanted(discard="new"), stream_strategy="create_or_update")

    assert api.verbs == ["INFO", "UPDATE", "LIST"]
    assert api.asked[1][1] == {**ON_THE_SERVER, "duplicate_window": 2 * MINUTE, "discard": "new"}


@pytest.mark.parametrize("strategy", ["create", "validate"])
def test_without_the_strategy_for_it_nothing_is_updated(strategy: str) -> None:
    api = Api({**ON_THE_SERVER, "duplicate_window": MINUTE, "storage": "memory"})
    reason = refusal(api, wanted(), stream_strategy=strategy)

    assert reason.startswith(
        "stream ORDERS is weaker than the settings ask: storage is memory, asked is file; duplicate"
    )
    assert "stream_strategy=create_or_update" in reason
    assert api.verbs == ["INFO"]


def test_what_the_server_did_not_change_is_still_too_weak() -> None:
    class Stubborn(Api):
        async def request(
            self, subject: str, body: dict[str, Any] | None = None, seconds: float | None = None
        ) -> dict[str, Any]:
            if ".UPDATE." in subject:
                return {"config": self.streams["ORDERS"]}
            return await super().request(subject, body, seconds)

    api = Stubborn({**ON_THE_SERVER, "discard": "old"})

    assert "discard is old" in refusal(
        api, wanted(discard="new"), stream_strategy="create_or_update"
    )


def test_what_the_server_refuses_to_change_is_named() -> None:
    api = Api({**ON_THE_SERVER, "storage": "memory"})
    api.refusals["STREAM.UPDATE.ORDERS"] = JetStreamApiError(
        10052, "stream configuration update can not change storage"
    )

    assert refusal(api, wanted(), stream_strategy="create_or_update") == (
        "stream ORDERS cannot be updated (storage): stream configuration update can not change storage (10052)"
    )


def test_validate_does_not_make_what_is_missing() -> None:
    assert refusal(Api(), wanted(), stream_strategy="validate") == (
        "stream ORDERS is missing: create it, or use stream_strategy=create"
    )


def test_skip_asks_nothing() -> None:
    api = Api()

    assert ensure(api, wanted(), topics=("bills",), stream_strategy="skip") is None
    assert api.asked == []


def test_a_stream_another_process_made_meanwhile_is_checked_like_any_other() -> None:
    class Late(Api):
        async def request(
            self, subject: str, body: dict[str, Any] | None = None, seconds: float | None = None
        ) -> dict[str, Any]:
            if ".CREATE." in subject:
                self.streams["ORDERS"] = {**ON_THE_SERVER, "storage": "memory"}
                raise JetStreamApiError(STREAM_NAME_IN_USE, "stream name already in use")
            return await super().request(subject, body, seconds)

    assert "storage is memory" in refusal(Late(), wanted())


def test_a_stream_that_cannot_be_looked_up_or_made_says_why() -> None:
    api = Api()
    api.refusals["STREAM.INFO.ORDERS"] = JetStreamApiError(10118, "stream is offline")
    assert refusal(api, wanted()) == "stream ORDERS cannot be looked up: stream is offline (10118)"

    api.refusals["STREAM.CREATE.ORDERS"] = JetStreamApiError(
        10065, "subjects overlap with an existing stream"
    )
    assert refusal(api, wanted()) == (
        "stream ORDERS cannot be created: subjects overlap with an existing stream (10065)"
    )


def test_a_declared_topic_needs_a_stream_that_covers_it() -> None:
    assert (
        refusal(Api(ON_THE_SERVER), topics=("orders.new", "bills"))
        == f"no stream covers topic bills: {REMEDY}"
    )


def test_a_declared_topic_needs_a_stream_that_keeps_what_an_ack_promises() -> None:
    api = Api({**ON_THE_SERVER, "sealed": True})

    assert refusal(api, topics=("orders.new",)).startswith(
        "topic orders.new: stream ORDERS is sealed"
    )


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5])
def test_all_pages_of_the_streams_are_read_and_no_more(count: int) -> None:
    api = Api(
        *({"name": f"S{number}", "subjects": [f"s.{number}"]} for number in range(count)), page=2
    )
    coverage = asyncio.run(read_coverage(api))

    assert set(coverage.configs) == {f"S{number}" for number in range(count)}
    assert len(api.asked) == max(1, (count + 1) // 2)


def test_a_stream_deleted_between_two_pages_does_not_keep_us_reading() -> None:
    class Shrinking(Api):
        async def request(
            self, subject: str, body: dict[str, Any] | None = None, seconds: float | None = None
        ) -> dict[str, Any]:
            page = await super().request(subject, body, seconds)
            self.streams.popitem()
            return {**page, "total": 99}

    api = Shrinking(*({"name": f"S{number}"} for number in range(4)), page=2)
    asyncio.run(read_coverage(api))

    assert len(api.asked) <= 3


def test_a_stream_that_has_no_leader_for_now_still_covers_what_it_covered() -> None:
    """As a cluster of nats-server 2.15.1 lists it: by name, in `missing`."""

    class Leaderless(Api):
        async def request(
            self, subject: str, body: dict[str, Any] | None = None, seconds: float | None = None
        ) -> dict[str, Any]:
            self.asked.append((subject, body))
            return {
                "total": 2,
                "offset": 0,
                "limit": 256,
                "streams": [],
                "missing": ["ORDERS", "OTHER"],
            }

    api = Leaderless()
    known = Coverage({"ORDERS": {"name": "ORDERS", "subjects": ["orders.>"]}})
    coverage = asyncio.run(read_coverage(api, known))

    assert [subject for subject, _ in api.asked] == ["STREAM.LIST"]
    covered = coverage.of("orders.new")
    assert covered is not None
    assert covered.stream == "ORDERS"
    assert coverage.silent == {"OTHER"}
    assert coverage.knows("OTHER")
    assert not coverage.lacks("bills"), "OTHER may cover it"
    assert refusal(api, topics=("bills",)).startswith(
        "no stream covers topic bills (no leader answers for ORDERS, OTHER): "
    )

"""Streams made or checked before the first message, against a real nats-server."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from bytewax_jetstream.envelope import Envelope, Outcome
from bytewax_jetstream.errors import StreamError
from bytewax_jetstream.settings import StreamSettings
from bytewax_jetstream.testing import NatsServer
from tests.support.lanes import jetstream, publish
from tests.support.proxy import Proxy
from tests.support.streams import api, envelopes, make_stream, stored

SECOND = 1_000_000_000


def _config(url: str, name: str) -> dict[str, Any]:
    config: dict[str, Any] = api(url, f"STREAM.INFO.{name}")["config"]
    return config


def _streams(url: str) -> set[str]:
    return set(api(url, "STREAM.NAMES")["streams"] or ())


def test_create_makes_the_declared_stream_and_publishes_to_it(nats_server: NatsServer) -> None:
    wanted = StreamSettings(
        name="MADE",
        subjects=("made.*", "made.deep.>"),
        storage="memory",
        retention="workqueue",
        discard="new",
        max_messages=1_000,
        max_bytes=1_000_000,
        max_message_size=10_000,
        max_age=timedelta(hours=1),
        duplicate_window=timedelta(minutes=5),
        allow_message_ttl=True,
    )
    settings = jetstream(nats_server.url, streams=(wanted,), topics=("made.a", "made.deep.a.b"))

    results = publish(settings, *envelopes(10, "made.a"))

    assert {result.stream for result in results.values()} == {"MADE"}
    config = _config(nats_server.url, "MADE")
    expected = {
        "storage": "memory",
        "retention": "workqueue",
        "discard": "new",
        "num_replicas": 1,
        "allow_msg_ttl": True,
    }
    assert {key: config[key] for key in expected} == expected
    assert config["subjects"] == ["made.*", "made.deep.>"]
    assert (config["max_msgs"], config["max_bytes"], config["max_msg_size"]) == (
        1_000,
        1_000_000,
        10_000,
    )
    assert (config["max_age"], config["duplicate_window"]) == (3_600 * SECOND, 300 * SECOND)


def test_create_leaves_a_sufficient_stream_unchanged(nats_server: NatsServer) -> None:
    make_stream(
        nats_server.url,
        "STRONG",
        "strong.>",
        "more",
        description="ours",
        duplicate_window=600 * SECOND,
        discard="new",
    )
    before = _config(nats_server.url, "STRONG")
    wanted = StreamSettings(name="STRONG", subjects=("strong.a", "strong.b.*"))

    publish(jetstream(nats_server.url, streams=(wanted,)), *envelopes(1, "strong.a"))

    assert _config(nats_server.url, "STRONG") == before


def test_create_or_update_changes_declared_fields_and_resets_no_others(
    nats_server: NatsServer,
) -> None:
    make_stream(
        nats_server.url,
        "UPDATED",
        "updated.a",
        "updated.kept",
        allow_direct=True,
        allow_rollup_hdrs=True,
        allow_batched=True,
        metadata={"owner": "somebody"},
        description="ours",
        max_msgs_per_subject=77,
        duplicate_window=60 * SECOND,
        max_msgs=10,
    )
    before = _config(nats_server.url, "UPDATED")
    assert before["allow_batched"], "a field that nats-py does not know, or this test shows nothing"
    wanted = StreamSettings(
        name="UPDATED", subjects=("updated.a", "updated.b"), max_messages=1_000, discard="new"
    )
    settings = jetstream(
        nats_server.url,
        streams=(wanted,),
        stream_strategy="create_or_update",
        topics=("updated.b",),
    )

    publish(settings, *envelopes(1, "updated.b"))

    changed = {
        "subjects": ["updated.a", "updated.kept", "updated.b"],
        "max_msgs": 1_000,
        "discard": "new",
        "duplicate_window": 120 * SECOND,
    }
    assert _config(nats_server.url, "UPDATED") == {**before, **changed}


def test_create_or_update_sends_no_update_when_nothing_changes(
    nats_server: NatsServer,
) -> None:
    wanted = StreamSettings(
        name="SAME", subjects=("same.>",), discard="new", max_age=timedelta(hours=1)
    )
    publish(jetstream(nats_server.url, streams=(wanted,)), *envelopes(1, "same.a"))

    with Proxy(nats_server.url) as proxy:
        settings = jetstream(proxy.url, streams=(wanted,), stream_strategy="create_or_update")
        publish(settings, *envelopes(1, "same.a"))

        assert proxy.requests.messages_to(b"$JS.API.STREAM.INFO") == 1
        assert proxy.requests.messages_to(b"$JS.API.STREAM.UPDATE") == 0


def test_create_or_update_never_lowers_what_a_stream_keeps(nats_server: NatsServer) -> None:
    make_stream(nats_server.url, "LOWER", "lower.>", duplicate_window=600 * SECOND, max_msgs=1_000)
    publish(jetstream(nats_server.url), *envelopes(100, "lower.a"))
    before = _config(nats_server.url, "LOWER")
    wanted = StreamSettings(
        name="LOWER",
        subjects=("lower.a",),
        max_messages=10,
        discard="old",
        max_age=timedelta(hours=1),
        allow_batched=False,
    )

    publish(jetstream(nats_server.url, streams=(wanted,), stream_strategy="create_or_update"))

    assert _config(nats_server.url, "LOWER") == before
    assert len(stored(nats_server.url, "LOWER")) == 100


def test_create_or_update_reports_what_the_server_refuses_to_change(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "STORAGE", "storage", storage="memory")
    settings = jetstream(
        nats_server.url,
        streams=(StreamSettings(name="STORAGE", subjects=("storage",), allow_batched=False),),
        stream_strategy="create_or_update",
    )

    with pytest.raises(
        StreamError, match=r"^stream STORAGE cannot be updated \(storage\): .*storage.* \(10052\)"
    ):
        publish(settings)


def test_validate_makes_nothing(nats_server: NatsServer) -> None:
    before = _streams(nats_server.url)
    wanted = StreamSettings(name="ABSENT", subjects=("absent.>",))

    with pytest.raises(
        StreamError, match=r"^stream ABSENT is missing: create it, or use stream_strategy=create$"
    ):
        publish(jetstream(nats_server.url, streams=(wanted,), stream_strategy="validate"))

    assert _streams(nats_server.url) == before


def test_validate_accepts_an_existing_stream(nats_server: NatsServer) -> None:
    make_stream(nats_server.url, "THERE", "there.>")
    wanted = StreamSettings(name="THERE", subjects=("there.a",))
    settings = jetstream(
        nats_server.url, streams=(wanted,), stream_strategy="validate", topics=("there.a",)
    )

    assert publish(settings, *envelopes(1, "there.a"))["e-0"].stream == "THERE"


def test_skip_asks_the_server_nothing(nats_server: NatsServer) -> None:
    make_stream(nats_server.url, "SKIPPED", "skipped.>")
    with Proxy(nats_server.url) as proxy:
        results = publish(
            jetstream(proxy.url, stream_strategy="skip"), *envelopes(100, "skipped.a")
        )

        assert proxy.requests.messages_to(b"$JS.") == 0
    assert {(result.outcome, result.stream) for result in results.values()} == {
        (Outcome.STORED, "SKIPPED")
    }


@pytest.mark.parametrize("strategy", ["create", "validate"])
@pytest.mark.parametrize(
    ("config", "wanted", "says"),
    [
        ({"storage": "memory"}, {}, "storage is memory, the settings require file"),
        ({}, {"replicas": 3}, "num_replicas is 1, the settings require 3"),
        (
            {"duplicate_window": 60 * SECOND},
            {"duplicate_window": timedelta(minutes=2)},
            "duplicate_window is 0:01:00, the settings require 0:02:00",
        ),
        (
            {"discard": "old"},
            {"discard": "new"},
            "discard is old, which drops stored messages .* the settings require new",
        ),
        (
            {},
            {"subjects": ("{}.a", "{}.elsewhere.x", "outside.{}")},
            r"subject outside\.\S+ is not among the stream's subjects",
        ),
        ({"retention": "interest"}, {}, "retention is interest, the settings require limits"),
        ({}, {"allow_message_ttl": True}, "allow_msg_ttl is off, the settings require it on"),
        ({"max_msgs": 10}, {"max_messages": 11}, "max_msgs is 10, the settings require 11"),
        (
            {"max_bytes": 1_000},
            {"max_bytes": 2_000},
            "max_bytes is 1000, the settings require 2000",
        ),
        (
            {"max_msg_size": 10},
            {"max_message_size": 20},
            "max_msg_size is 10, the settings require 20",
        ),
        (
            {"max_age": 3_600 * SECOND},
            {"max_age": timedelta(days=1)},
            "max_age is 1:00:00, the settings require 1 day, 0:00:00",
        ),
        (
            {"no_ack": True},
            {},
            "no_ack set, so it never confirms what it stored: set no_ack to false",
        ),
        ({"persist_mode": "async"}, {}, "acknowledges before it writes"),
    ],
    ids=lambda value: next(iter(value), "plain") if isinstance(value, dict) else "",
)
def test_weak_stream_is_refused_with_what_to_change(
    nats_server: NatsServer,
    names: Callable[[], str],
    config: dict[str, Any],
    wanted: dict[str, Any],
    says: str,
    strategy: str,
) -> None:
    name = names()
    make_stream(nats_server.url, name, f"{name}.>", **config)
    subjects = tuple(subject.format(name) for subject in wanted.get("subjects", (f"{name}.a",)))
    stream = StreamSettings(**{**wanted, "name": name, "subjects": subjects})
    before = _config(nats_server.url, name)

    with pytest.raises(
        StreamError,
        match=rf"^stream {name} is weaker than the settings require: .*{says}.*: change the",
    ):
        publish(jetstream(nats_server.url, streams=(stream,), stream_strategy=strategy))

    assert _config(nats_server.url, name) == before


def test_refusal_of_a_weak_stream_names_every_shortcoming(nats_server: NatsServer) -> None:
    make_stream(nats_server.url, "WEAK", "weak", storage="memory", duplicate_window=SECOND)
    wanted = StreamSettings(name="WEAK", subjects=("weak", "weaker"), replicas=3)

    with pytest.raises(StreamError) as refused:
        publish(jetstream(nats_server.url, streams=(wanted,)))

    for part in (
        "storage is memory",
        "num_replicas is 1",
        "duplicate_window is 0:00:01",
        "subject weaker is not among",
    ):
        assert part in str(refused.value)
        assert sum(each.startswith(part) for each in refused.value.shortcomings) == 1
    assert refused.value.stream == "WEAK"


def test_a_stream_that_cannot_be_made_says_why(nats_server: NatsServer) -> None:
    make_stream(nats_server.url, "TAKEN", "taken.>")
    overlapping = StreamSettings(name="OVERLAPPING", subjects=("taken.a",))
    too_many = StreamSettings(name="TOOMANY", subjects=("toomany",), replicas=3)

    with pytest.raises(
        StreamError,
        match=r"^stream OVERLAPPING cannot be created: subjects overlap .* \(10065\); change its",
    ):
        publish(jetstream(nats_server.url, streams=(overlapping,)))
    with pytest.raises(
        StreamError,
        match=r"^stream TOOMANY cannot be created: replicas > 1 not supported .*\(10074\); "
        "change its",
    ):
        publish(jetstream(nats_server.url, streams=(too_many,)))


def test_a_declared_topic_that_no_stream_covers_fails_at_the_start(nats_server: NatsServer) -> None:
    make_stream(nats_server.url, "COVERS", "covers.*")

    with pytest.raises(
        StreamError,
        match=r"^no stream covers topic covers\.a\.b: add it to the subjects of a stream",
    ):
        publish(jetstream(nats_server.url, topics=("covers.a", "covers.a.b")))


def test_unknown_topic_in_a_later_envelope_is_rejected_and_others_are_stored(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "LATER", "later.*")
    settings = jetstream(nats_server.url, topics=("later.a",))

    results = publish(
        settings,
        Envelope("later.a", b"", event_id="1"),
        Envelope("elsewhere.a", b"", event_id="2"),
        Envelope("later.new", b"", event_id="3"),
    )

    assert results["1"].outcome is results["3"].outcome is Outcome.STORED
    assert results["2"].outcome is Outcome.REJECTED
    assert str(results["2"].reason).startswith(
        "no stream covers topic elsewhere.a: add it to the subjects"
    )


def test_many_streams_are_read_page_by_page(own_nats_server: NatsServer) -> None:
    # The server lists 256 streams at a time.
    for number in range(260):
        make_stream(own_nats_server.url, f"PAGE{number:03}", f"page.{number}", storage="memory")
    settings = jetstream(
        own_nats_server.url, topics=tuple(f"page.{number}" for number in range(260))
    )

    results = publish(settings, *(Envelope(f"page.{n}", b"", event_id=f"{n}") for n in range(260)))

    assert {result.stream for result in results.values()} == {
        f"PAGE{number:03}" for number in range(260)
    }

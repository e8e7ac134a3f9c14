"""A bad envelope is rejected with what to do, and every other envelope is stored."""

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from nats.aio.client import Client, ServerVersion

from bytewax_jetstream.envelope import Envelope, Outcome, PublishOptions
from bytewax_jetstream.testing import NatsServer
from tests.support.dataflows import Envelopes, publishing, recovery_store, run
from tests.support.lanes import broker_of, jetstream, opened, publish, settle
from tests.support.proxy import Proxy
from tests.support.streams import FLAWLESS, Names, audit, envelopes, make_stream, stored
from tests.support.ways import both_ways, publish_by

HEADER = b"NATS/1.0\r\nNats-Msg-Id: e-1\r\n\r\n"


def _bad(**fields: Any) -> Envelope:
    return Envelope(**{"topic": "bad.x", "payload": b"", "event_id": "bad", **fields})


BAD_ENVELOPES = [
    (_bad(topic=""), "the topic is empty"),
    (_bad(topic=None), "the topic must be a str, not NoneType"),
    (_bad(topic=7), "the topic must be a str, not int"),
    (_bad(topic="bad.*"), "has a wildcard, white space or a control character: replace it"),
    (_bad(topic="bad.>"), "has a wildcard"),
    (_bad(topic="bad x"), "white space"),
    (_bad(topic="bad\tx"), "white space"),
    (_bad(topic="bad.\x00"), "control character"),
    (_bad(topic="bad.\x0b"), "control character"),
    (_bad(topic="bad.\x7f"), "control character"),
    (_bad(topic="bad.x\r\nPUB evil 0"), "control character"),
    (_bad(topic="bad.\x85x"), "cannot be printed: replace them"),
    (_bad(topic="bad.\ud800"), "cannot be printed: replace them"),
    (_bad(topic="bad." + "x" * 4_996), "has 5000 bytes, the limit is 1024: shorten it"),
    (_bad(topic="bad..x"), "has an empty token: remove the extra dot"),
    (_bad(topic=".bad"), "has an empty token"),
    (
        _bad(topic="$JS.API.STREAM.DELETE.BAD"),
        "is reserved for the server: choose one that does not start with $",
    ),
    (_bad(topic="_INBOX.x"), "is reserved for the server"),
    (_bad(payload="text"), "the payload must be bytes or None, not str"),
    (_bad(payload=bytearray(b"x")), "the payload must be bytes or None, not bytearray"),
    (_bad(payload=memoryview(b"x")), "the payload must be bytes or None, not memoryview"),
    (_bad(event_id=""), "the event id is missing"),
    (_bad(event_id=None), "the event id is missing"),
    (_bad(event_id=7), "the event id must be a str, not int"),
    (_bad(event_id="a\r\nb"), "has control characters, or spaces at either end: remove them"),
    (_bad(event_id="a "), "spaces at either end"),
    (_bad(event_id="x" * 70_000), "the limit is 65535: shorten them"),
    (_bad(aggregate_id=7), "the aggregate id must be a str, not int"),
    (_bad(aggregate_id=["a"]), "must each be a str or None"),
    (_bad(event_type="a\ud800"), "has lone surrogates, which are not text: remove them"),
    (
        _bad(headers={"Nats-Rollup": "all"}),
        "header Nats-Rollup is reserved: use the envelope's fields",
    ),
    (_bad(headers={"nats-msg-id": "x"}), "header nats-msg-id is reserved"),
    (_bad(headers={"Event-Id": "x"}), "header Event-Id is reserved"),
    (_bad(headers={"": "x"}), "invalid header name"),
    (_bad(headers={7: "x"}), "invalid header name"),
    (_bad(headers={"a": "\ud800"}), "header a '\\ud800' has lone surrogates"),
    (_bad(headers={"a": 7}), "header a must be a str, bytes or None, not int"),
    (_bad(headers={"a": "x" * 70_000}), "shorten them"),
    (_bad(headers=["a"]), "must be a mapping, or a sequence of (name, value) pairs, not a list"),
    (_bad(timestamp=0), "the timestamp must be a datetime, not int"),
    (_bad(options=PublishOptions(ttl=timedelta(seconds=0.5))), "give whole seconds, at least 1"),
    (_bad(options=PublishOptions(expected_last_sequence=-1)), "give 0 or a stream sequence"),
    (_bad(options={"ttl": 1}), "the options must be PublishOptions, not dict"),
    (_bad(payload=b"x" * (1024 * 1024)), "split the message or raise the server's max_payload"),
    (
        _bad(topic="uncovered.x"),
        "no stream covers topic uncovered.x: add it to the subjects of a stream",
    ),
]


@both_ways
def test_bad_envelope_is_rejected_with_what_to_do_and_the_others_are_stored(
    nats_server: NatsServer, way: str
) -> None:
    stream = f"BAD-{way}"
    make_stream(nats_server.url, stream, f"{stream}.>")
    make_stream(nats_server.url, "BAD", "bad.>", "evil", allow_rollup_hdrs=True)
    good = envelopes(len(BAD_ENVELOPES), f"{stream}.good")
    mixed = [
        each for pair in zip(good, (bad for bad, _ in BAD_ENVELOPES), strict=True) for each in pair
    ]

    with Proxy(nats_server.url) as proxy:
        results = publish_by(way, jetstream(proxy.url), mixed)

        assert proxy.connections == 1, "a bad envelope cost the connection"
        assert proxy.requests.messages_to(b"bad") == proxy.requests.messages_to(b"evil") == 0
    assert len(results) == len(mixed)
    rejected = {
        str(result.envelope): result for result in results if result.outcome is Outcome.REJECTED
    }
    for bad, says in BAD_ENVELOPES:
        payload: object = bad.payload
        shown = (
            bad._replace(payload=b"x") if isinstance(payload, memoryview) else bad
        )  # it cannot be pickled
        result = rejected.pop(str(shown))
        assert says in str(result.reason)
        assert len(str(result.reason)) < 300
        assert bool(result.attempts) == (bad.topic == "uncovered.x"), "only such a topic is tried"
    assert not rejected
    assert audit(nats_server.url, stream, good) == FLAWLESS


def test_text_that_looks_like_the_protocol_is_carried_and_not_obeyed(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "EVIL", "carried", allow_rollup_hdrs=True)
    evil = "a\r\nNats-Rollup: all\r\n\r\nPUB evil 0\r\n"
    batch = [
        Envelope("carried", b"1", "first"),
        Envelope("carried", b"2", "second", evil, evil, {evil: evil, "Status": "503"}),
    ]

    publish(jetstream(nats_server.url), *batch)

    assert [message.payload for message in stored(nats_server.url, "EVIL")] == [b"1", b"2"]


def test_rejected_envelopes_of_any_kind_survive_in_the_recovery_store(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    make_stream(nats_server.url, "PICKLED", "pickled")
    unpicklable = [
        Envelope("pickled", cast(bytes, payload), event_id=f"bad-{number}")
        for number, payload in enumerate(
            (memoryview(b"x"), threading.Lock(), iter("x"), lambda: b"x")
        )
    ]
    good = envelopes(10, "pickled")
    made = publishing(Envelopes([*good, *unpicklable], batch_size=100), jetstream(nats_server.url))

    run(made.flow, store=recovery_store(tmp_path / "store"), epoch=timedelta(0))

    assert [result.event_id for result in made.errs] == [
        envelope.event_id for envelope in unpicklable
    ]
    assert audit(nats_server.url, "PICKLED", good) == FLAWLESS


@both_ways
def test_payload_may_reach_the_servers_limit_to_the_byte(way: str) -> None:
    with NatsServer(config="max_payload: 10000") as server, Proxy(server.url) as proxy:
        make_stream(server.url, "LIMIT", "limit")
        most = 10_000 - len(HEADER)
        full = Envelope("limit", b"x" * most, event_id="e-1")
        over = Envelope("limit", b"x" * (most + 1), event_id="e-2")

        results = {
            result.event_id: result
            for result in publish_by(way, jetstream(proxy.url), [over, full])
        }

        assert results["e-1"].outcome is Outcome.STORED
        assert results["e-2"].outcome is Outcome.REJECTED
        assert str(results["e-2"].reason).startswith(
            "payload and headers have 10001 bytes, the server's limit is 10000"
        )
        assert proxy.connections == 1
        assert [len(message.payload) for message in stored(server.url, "LIMIT")] == [most]


def test_message_too_large_for_its_stream_is_rejected_alone(nats_server: NatsServer) -> None:
    make_stream(nats_server.url, "SMALL", "small", max_msg_size=100)
    with opened(jetstream(nats_server.url)) as (pool, lane):
        large = Envelope("small", b"x" * 101, event_id="large")

        results = settle(lane, [large, *envelopes(100, "small")])

        assert broker_of(pool)["reconnects"] == 0
    result = results.pop("large")
    assert (result.outcome, result.code, result.envelope) == (Outcome.REJECTED, 10054, large)
    assert "message size exceeds maximum allowed" in str(result.reason)
    assert {result.outcome for result in results.values()} == {Outcome.STORED}


@both_ways
@pytest.mark.parametrize("allow_batched", [False, True], ids=["singles", "batches"])
def test_envelope_that_is_handed_over_twice_is_stored_once_and_a_duplicate(
    nats_server: NatsServer, names: Names, way: str, allow_batched: bool
) -> None:
    stream = names()
    make_stream(nats_server.url, stream, stream, allow_batched=allow_batched)
    first, *others = envelopes(7, stream)
    batch = [first, *others[:4], first, first._replace(event_type="again"), *others[4:]]

    results = publish_by(way, jetstream(nats_server.url), batch)

    assert {result.outcome for result in results} == {Outcome.STORED}
    same = [(each.sequence, each.duplicate) for each in results if each.event_id == "e-0"]
    assert (len(same), same.count((1, True))) == (3, 2)
    assert not any(each.duplicate for each in results if each.event_id != "e-0")
    assert audit(nats_server.url, stream, [first, *others]) == FLAWLESS


@both_ways
@pytest.mark.parametrize("allow_batched", [False, True], ids=["singles", "batches"])
def test_other_message_under_an_event_id_of_its_batch_is_rejected(
    nats_server: NatsServer, names: Names, way: str, allow_batched: bool
) -> None:
    stream = names()
    make_stream(nats_server.url, stream, f"{stream}.>", allow_batched=allow_batched)
    first = Envelope(f"{stream}.placed", b"12", "order-1", event_type="placed")
    paid, other = Envelope(f"{stream}.paid", b"12", "order-1"), first._replace(payload=None)
    good = Envelope(f"{stream}.placed", b"3", "order-2")

    results = publish_by(way, jetstream(nats_server.url), [first, paid, good, other])

    rejected = [result for result in results if result.outcome is Outcome.REJECTED]
    assert [result.envelope for result in rejected] == [paid, other]
    for result, said in zip(rejected, ["paid (2 bytes)", "(no payload)"], strict=True):
        assert result.attempts == 0
        assert f"one on {stream}.placed of type 'placed' (2 bytes)" in str(result.reason)
        assert f"{said}; a stream keeps only the first message" in str(result.reason)
    assert [message.payload for message in stored(nats_server.url, stream)] == [b"12", b"3"]


def test_event_id_may_name_one_message_on_each_stream(
    nats_server: NatsServer, names: Names
) -> None:
    streams = names(), names()
    for stream in streams:
        make_stream(nats_server.url, stream, stream)
    with opened(jetstream(nats_server.url)) as (_, lane):
        lane.submit([Envelope(stream, stream.encode(), "same") for stream in streams])
        results = lane.flush()

    assert {(result.stream, result.duplicate) for result in results} == {
        (stream, False) for stream in streams
    }


def test_messages_under_one_event_id_are_all_stored_without_dedupe(
    nats_server: NatsServer, names: Names
) -> None:
    stream = names()
    make_stream(nats_server.url, stream, stream)
    with opened(jetstream(nats_server.url, dedupe=False)) as (_, lane):
        lane.submit([Envelope(stream, b"%d" % number, "same") for number in range(3)])
        results = lane.flush()

    assert {result.outcome for result in results} == {Outcome.STORED}
    assert len(stored(nats_server.url, stream)) == 3


def test_ttl_is_rejected_by_a_server_that_would_ignore_it(
    nats_server: NatsServer, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = names()
    make_stream(nats_server.url, stream, stream, allow_msg_ttl=True)
    batch = [
        Envelope(stream, b"1", "e-1", options=PublishOptions(ttl=timedelta(seconds=60))),
        Envelope(stream, b"2", "e-2", options=PublishOptions(expected_last_sequence=0)),
    ]
    monkeypatch.setattr(Client, "connected_server_version", ServerVersion("2.10.26"))

    results = publish(jetstream(nats_server.url), *batch)

    assert results["e-1"].outcome is Outcome.REJECTED
    assert "use nats-server 2.11 or later, or leave the ttl out" in str(results["e-1"].reason)
    assert results["e-2"].outcome is Outcome.STORED
    assert [message.payload for message in stored(nats_server.url, stream)] == [b"2"]

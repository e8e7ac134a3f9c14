"""Whatever is wrong with an input ends in one clear error or one rejected result, and harms nothing
else.
"""

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from bytewax.errors import BytewaxRuntimeError

from bytewax_jetstream.envelope import Envelope, Outcome, PublishOptions, PublishResult
from bytewax_jetstream.errors import ConnectError, JetStreamPipelineError, PublishError, StreamError
from bytewax_jetstream.settings import JetStreamSettings, StreamSettings
from bytewax_jetstream.testing import NatsServer
from tests.support.child import TOLD, Told
from tests.support.dataflows import Envelopes, publishing, recovery_store, root_cause, run
from tests.support.lanes import broker_of, jetstream, opened, publish, settle
from tests.support.proxy import Proxy
from tests.support.streams import FLAWLESS, api, audit, envelopes, make_stream, stored
from tests.support.waiting import until

CANARY = "canary-8d21c4"
HEADER = b"NATS/1.0\r\nNats-Msg-Id: e-1\r\n\r\n"

both_ways = pytest.mark.parametrize("way", ["pool", "dataflow"])


def _publish(
    way: str, settings: JetStreamSettings, batch: Sequence[Envelope]
) -> list[PublishResult]:
    """Publish with the bare pool or in a dataflow; an error of ours comes out as it is."""
    if way == "pool":
        with opened(settings) as (_, lane):
            lane.submit(batch)
            return lane.flush()
    made = publishing(Envelopes(batch), settings)
    try:
        run(made.flow)
    except BytewaxRuntimeError as error:
        cause = root_cause(error)
        assert isinstance(cause, JetStreamPipelineError), "a traceback without a sentence"
        raise cause from None
    return made.oks + made.errs


def _bad(**fields: Any) -> Envelope:
    return Envelope(**{"topic": "bad.x", "payload": b"", "event_id": "bad", **fields})


BAD_ENVELOPES = [
    (_bad(topic=""), "the topic is empty"),
    (_bad(topic=None), "the topic is a NoneType: give a str"),
    (_bad(topic=7), "the topic is a int: give a str"),
    (_bad(topic="bad.*"), "has a wildcard, white space or a control character: replace it"),
    (_bad(topic="bad.>"), "has a wildcard"),
    (_bad(topic="bad x"), "white space"),
    (_bad(topic="bad\tx"), "white space"),
    (_bad(topic="bad.\x00"), "control character"),
    (_bad(topic="bad.\x0b"), "control character"),
    (_bad(topic="bad.\x7f"), "control character"),
    (_bad(topic="bad.x\r\nPUB evil 0"), "control character"),
    (_bad(topic="bad.\u2028x"), "cannot be printed: replace them"),
    (_bad(topic="bad.\ud800"), "cannot be printed: replace them"),
    (_bad(topic="bad." + "x" * 4_996), "has 5000 characters, allowed are 1024: shorten it"),
    (_bad(topic="bad..x"), "has an empty token: remove the surplus dot"),
    (_bad(topic=".bad"), "has an empty token"),
    (
        _bad(topic="$JS.API.STREAM.DELETE.BAD"),
        "belongs to the server: choose one without leading $",
    ),
    (_bad(topic="_INBOX.x"), "belongs to the server"),
    (_bad(payload="text"), "the payload is a str: give bytes"),
    (_bad(payload=None), "the payload is a NoneType: give bytes"),
    (_bad(payload=bytearray(b"x")), "the payload is a bytearray: give bytes"),
    (_bad(payload=memoryview(b"x")), "the payload is a memoryview: give bytes"),
    (_bad(event_id=""), "the event id is missing"),
    (_bad(event_id=None), "the event id is missing"),
    (_bad(event_id=7), "the event id is a int: give a str"),
    (_bad(event_id="a\r\nb"), "has control characters or blanks at an end: remove them"),
    (_bad(event_id="a "), "blanks at an end"),
    (_bad(event_id="x" * 70_000), "allowed are 65535: shorten them"),
    (_bad(aggregate_id="a\r\nNats-Rollup: all"), "control characters"),
    (_bad(aggregate_id=7), "Aggregate-Id is a int: give a str"),
    (_bad(aggregate_id=["a"]), ": give a str"),
    (_bad(event_type="a\x00"), "control characters"),
    (
        _bad(headers={"Nats-Rollup": "all"}),
        "header Nats-Rollup is reserved: use the envelope's fields",
    ),
    (_bad(headers={"nats-msg-id": "x"}), "header nats-msg-id is reserved"),
    (_bad(headers={"Event-Id": "x"}), "header Event-Id is reserved"),
    (_bad(headers={"Status": "503"}), "header Status is reserved"),
    (_bad(headers={"a\r\nb": "x"}), "is not one: use letters, digits and dashes"),
    (_bad(headers={"": "x"}), "is not one"),
    (_bad(headers={7: "x"}), "is not one"),
    (_bad(headers={"a": "b\r\nNats-Rollup: all"}), "control characters"),
    (_bad(headers={"a": " b"}), "blanks at an end"),
    (_bad(headers={"a": 7}), "header a is a int: give a str"),
    (_bad(headers={"a": "x" * 70_000}), "shorten them"),
    (_bad(headers=["a"]), "the headers are a list: give a mapping"),
    (_bad(options=PublishOptions(ttl=timedelta(seconds=0.5))), "give whole seconds, at least 1"),
    (_bad(options=PublishOptions(expected_last_sequence=-1)), "give 0 or a stream sequence"),
    (_bad(options={"ttl": 1}), "the options are a dict: give PublishOptions"),
    (_bad(payload=b"x" * (1024 * 1024)), "split the message or raise the server's max_payload"),
    (
        _bad(topic="uncovered.x"),
        "no stream covers topic uncovered.x: add it to the subjects of a stream",
    ),
]


@both_ways
def test_a_bad_envelope_is_rejected_with_what_to_do_and_harms_nobody_else(
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
        results = _publish(way, jetstream(proxy.url), mixed)

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
        assert result.attempts == 0
    assert not rejected
    assert audit(nats_server.url, stream, good) == FLAWLESS


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
def test_a_payload_may_fill_the_servers_limit_to_the_byte_and_no_further(way: str) -> None:
    with NatsServer(config="max_payload: 10000") as server, Proxy(server.url) as proxy:
        make_stream(server.url, "LIMIT", "limit")
        most = 10_000 - len(HEADER)
        full = Envelope("limit", b"x" * most, event_id="e-1")
        over = Envelope("limit", b"x" * (most + 1), event_id="e-2")

        results = {
            result.event_id: result for result in _publish(way, jetstream(proxy.url), [over, full])
        }

        assert results["e-1"].outcome is Outcome.STORED
        assert results["e-2"].outcome is Outcome.REJECTED
        assert str(results["e-2"].reason).startswith(
            "payload and headers have 10001 bytes, the server allows 10000"
        )
        assert proxy.connections == 1
        assert [len(message.payload) for message in stored(server.url, "LIMIT")] == [most]


def test_a_message_that_a_stream_finds_too_large_is_rejected_alone(nats_server: NatsServer) -> None:
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
def test_a_repeated_event_id_is_stored_once_and_called_a_duplicate(
    nats_server: NatsServer, way: str
) -> None:
    stream = f"REPEATED-{way}"
    make_stream(nats_server.url, stream, stream)
    batch = [Envelope(stream, b"%d" % number, event_id="same") for number in range(3)]

    results = _publish(way, jetstream(nats_server.url), batch)

    assert [(result.outcome, result.sequence, result.duplicate) for result in results] == [
        (Outcome.STORED, 1, False), (Outcome.STORED, 1, True), (Outcome.STORED, 1, True),
    ]  # fmt: skip
    assert [message.payload for message in stored(nats_server.url, stream)] == [b"0"]


@both_ways
def test_a_server_that_is_not_there_is_named_within_the_connect_timeout(way: str) -> None:
    with NatsServer() as server:
        settings = jetstream(server.url, connect_timeout=1)
    began = time.monotonic()

    with pytest.raises(
        ConnectError, match=rf"^no connection to {server.url} within 1 s .*: see whether the server"
    ):
        _publish(way, settings, envelopes(10, "x"))

    assert time.monotonic() - began < 10


@both_ways
def test_a_server_that_accepts_and_says_nothing_is_named_within_the_connect_timeout(
    own_nats_server: NatsServer, way: str
) -> None:
    own_nats_server.pause()
    began = time.monotonic()

    with pytest.raises(ConnectError, match=rf"^no connection to {own_nats_server.url} within 1 s"):
        _publish(way, jetstream(own_nats_server.url, connect_timeout=1), envelopes(10, "x"))

    assert time.monotonic() - began < 10


def test_a_server_that_falls_silent_while_the_streams_are_checked_is_an_error(
    nats_server: NatsServer,
) -> None:
    with Proxy(nats_server.url) as proxy:
        proxy.answers.loses = lambda frame: frame.startswith(b"MSG ")

        with pytest.raises(ConnectError, match=r"^no answer to \$JS.API.STREAM.LIST within 1 s"):
            publish(jetstream(proxy.url, connect_timeout=1))


@both_ways
def test_a_wrong_password_is_said_at_once_and_never_shown(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with NatsServer(config="authorization { user: amy, password: right }") as server:
        settings = jetstream(server.url, user="amy", password=CANARY, connect_timeout=600)

        with pytest.raises(ConnectError) as refused:
            _publish(way, settings, envelopes(10, "x"))

    assert str(refused.value) == (
        f"no connection to {server.url} (nats: 'Authorization Violation'): correct the credentials in the settings"
    )
    assert CANARY not in "".join(traceback.format_exception(refused.value)) + caplog.text + repr(
        settings
    )


@pytest.fixture(params=[False, True], ids=["one by one", "whole flights"])
def guarded(request: pytest.FixtureRequest) -> Iterator[NatsServer]:
    """A server with a stream OPEN and users who may do this and not that."""
    users = """
        authorization { users: [
            { user: all, password: all }
            { user: some, password: some, permissions: { publish: { deny: ["open.Denied.*", "ghost.>"] } } }
            { user: deaf, password: deaf, permissions: { subscribe: { deny: ["_INBOX.>"] } } }
            { user: plain, password: plain, permissions: { publish: { allow: ["open.>"] } } }
        ]}
    """
    with NatsServer(config=users) as server:
        config = {"name": "OPEN", "subjects": ["open.>"], "allow_batched": request.param}
        api(server.url, "STREAM.CREATE.OPEN", config, user="all", password="all")
        yield server


def _as(user: str, server: NatsServer | Proxy, **settings: Any) -> JetStreamSettings:
    return jetstream(server.url, user=user, password=user, **settings)


@both_ways
def test_a_subject_without_permission_is_rejected_and_the_others_are_stored(
    guarded: NatsServer, way: str
) -> None:
    denied = [
        Envelope("open.Denied.x", b"%d" % number, event_id=f"d-{number}") for number in range(3_000)
    ]
    fine = envelopes(3_000, "open.fine")
    mixed = [envelope for pair in zip(denied, fine, strict=True) for envelope in pair]
    with Proxy(guarded.url) as proxy:
        results = {result.event_id: result for result in _publish(way, _as("some", proxy), mixed)}

        assert proxy.connections == 1
    assert len(results) == len(mixed)
    assert {results[each.event_id].outcome for each in fine} == {Outcome.STORED}
    assert {results[each.event_id].outcome for each in denied} == {Outcome.REJECTED}
    assert (
        results["d-0"].reason
        == "this user may not publish on open.Denied.x: grant it, then publish again"
    )
    assert len(stored(guarded.url, "OPEN", user="all", password="all")) == len(fine)


def test_all_of_a_flight_without_permission_is_rejected_at_once(guarded: NatsServer) -> None:
    denied = [
        Envelope("open.Denied.x", b"%d" % number, event_id=f"d-{number}") for number in range(40)
    ]
    began = time.monotonic()
    with opened(_as("some", guarded, ack_timeout=20)) as (_, lane):
        results = settle(lane, denied)

    assert {result.outcome for result in results.values()} == {Outcome.REJECTED}
    assert time.monotonic() - began < 10, "it waited for an ack that nobody sends"


@both_ways
def test_a_user_who_may_hear_no_answers_is_told_so_at_the_start(
    guarded: NatsServer, way: str
) -> None:
    with pytest.raises(
        ConnectError,
        match=r'^Permissions Violation for Subscription to "_INBOX.*": let this user subscribe to _INBOX\.>$',
    ):
        _publish(way, _as("deaf", guarded), envelopes(10, "open.x"))


@both_ways
def test_a_user_without_the_jetstream_api_is_told_to_skip_the_check_and_then_can_publish(
    guarded: NatsServer, way: str
) -> None:
    with pytest.raises(
        ConnectError,
        match=r'^Permissions Violation for Publish to "\$JS\.API\.STREAM\.LIST": .*stream_strategy=skip$',
    ):
        _publish(way, _as("plain", guarded), envelopes(10, "open.x"))

    results = _publish(way, _as("plain", guarded, stream_strategy="skip"), envelopes(10, "open.x"))

    assert {result.outcome for result in results} == {Outcome.STORED}


def test_an_unmet_expectation_that_cannot_be_looked_up_is_unknown(guarded: NatsServer) -> None:
    # It may be its own earlier success that is in the way, and this user may not see.
    expecting = Envelope(
        "open.x", b"", event_id="e", options=PublishOptions(expected_last_sequence=0)
    )
    settings = _as("plain", guarded, stream_strategy="skip")
    publish(settings, *envelopes(1, "open.x"))

    result = publish(settings, expecting)["e"]

    assert (result.outcome, result.code) == (Outcome.UNKNOWN, 10071)
    assert "whether it was stored before could not be looked up: Permissions Violation" in str(
        result.reason
    )


@both_ways
def test_a_server_without_jetstream_is_one_sentence(way: str) -> None:
    with (
        NatsServer(jetstream=False) as server,
        pytest.raises(
            ConnectError,
            match=r"^nobody answers \$JS\.API\.\S+: JetStream is off on this server or for this account, or",
        ),
    ):
        _publish(way, jetstream(server.url), envelopes(10, "x"))


@both_ways
def test_a_missing_stream_is_one_sentence(nats_server: NatsServer, way: str) -> None:
    settings = jetstream(
        nats_server.url,
        stream_strategy="validate",
        streams=(StreamSettings(name="NONE", subjects=("none",)),),
    )

    with pytest.raises(
        StreamError, match=r"^stream NONE is missing: create it, or use stream_strategy=create$"
    ):
        _publish(way, settings, envelopes(10, "none"))


@both_ways
def test_a_declared_topic_without_a_stream_is_one_sentence(
    nats_server: NatsServer, way: str
) -> None:
    with pytest.raises(
        StreamError, match=r"^no stream covers topic nowhere\.a: add it to the subjects of a stream"
    ):
        _publish(way, jetstream(nats_server.url, topics=("nowhere.a",)), envelopes(10, "nowhere.a"))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"no_ack": True}, "no_ack set and never says what it stored: set no_ack to false"),
        ({"sealed": True}, "is sealed and takes nothing: publish to another stream"),
        ({"persist_mode": "async"}, "acknowledges before it writes"),
    ],
    ids=["no_ack", "sealed", "async"],
)
def test_a_stream_that_cannot_keep_the_promise_rejects_its_topics_only(
    nats_server: NatsServer, config: dict[str, Any], says: str
) -> None:
    stream = f"UNFIT-{'-'.join(config)}"
    make_stream(nats_server.url, stream, f"{stream}.>", **{**config, "sealed": False})
    make_stream(nats_server.url, f"FIT-{stream}", f"FIT-{stream}.>")
    if config.get("sealed"):
        _seal(nats_server.url, stream)
    batch = [
        Envelope(f"{stream}.x", b"", event_id="unfit"),
        Envelope(f"FIT-{stream}.x", b"", event_id="fit"),
    ]

    with pytest.raises(StreamError, match=rf"^topic {stream}\.x: .*{says}"):
        publish(jetstream(nats_server.url, topics=(f"{stream}.x",)))
    results = publish(jetstream(nats_server.url), *batch)

    assert results["fit"].outcome is Outcome.STORED
    assert results["unfit"].outcome is Outcome.REJECTED
    assert says in str(results["unfit"].reason)


def _seal(url: str, stream: str) -> None:
    config = api(url, f"STREAM.INFO.{stream}")["config"]
    api(url, f"STREAM.UPDATE.{stream}", {**config, "sealed": True})


def test_a_stream_that_never_acknowledges_ends_at_the_delivery_timeout(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "NOACK", "noack", no_ack=True)
    settings = jetstream(
        nats_server.url, stream_strategy="skip", ack_timeout=0.2, delivery_timeout=1
    )

    results = publish(settings, *envelopes(200, "noack", aggregates=10))

    assert {result.outcome for result in results.values()} == {Outcome.UNKNOWN}
    assert max(result.ack_seconds for result in results.values()) < 10
    assert "(no ack within 0.2 s): see to the broker" in str(results["e-0"].reason)


def test_a_full_stream_is_unknown_at_the_delivery_timeout_and_says_what_to_do(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "FULL", "full", discard="new", max_msgs=50)
    with opened(jetstream(nats_server.url, delivery_timeout=1)) as (pool, lane):
        results = settle(lane, envelopes(100, "full"))

        assert broker_of(pool)["reconnects"] == 0
    unknown = [result for result in results.values() if result.outcome is Outcome.UNKNOWN]
    assert len(unknown) == 50
    for result in unknown:
        assert result.code == 10077
        assert "not settled within 1 s" in str(result.reason)
        assert (
            "maximum messages exceeded (10077): make room in the stream or raise its limits"
            in str(result.reason)
        )
        assert result.envelope is not None


def test_a_full_stream_stops_a_dataflow_and_its_epoch_is_replayed(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    make_stream(nats_server.url, "FULLFLOW", "fullflow", discard="new", max_msgs=50)
    batch = envelopes(100, "fullflow")
    store = recovery_store(tmp_path / "store")
    made = publishing(Envelopes(batch), jetstream(nats_server.url, delivery_timeout=1))

    with pytest.raises(BytewaxRuntimeError) as stopped:
        run(made.flow, store=store)
    cause = root_cause(stopped.value)
    assert isinstance(cause, PublishError)
    assert re.match(
        r"flow\.publish stops, its epoch uncommitted: envelope e-\d+ on fullflow is unknown: .*make room in",
        str(cause),
    )

    _change(nats_server.url, "FULLFLOW", max_msgs=1_000)
    run(made.flow, store=store)

    assert audit(nats_server.url, "FULLFLOW", batch) == FLAWLESS
    assert not made.errs
    assert {result.event_id for result in made.oks} == {envelope.event_id for envelope in batch}


@both_ways
def test_a_full_stream_goes_on_when_room_is_made_in_time(nats_server: NatsServer, way: str) -> None:
    stream = f"ROOM-{way}"
    make_stream(nats_server.url, stream, stream, discard="new", max_bytes=5_000)
    batch = envelopes(300, stream)
    with Proxy(nats_server.url) as proxy:

        def make_room() -> None:
            until(
                lambda: proxy.requests.messages_to(stream.encode()) > len(batch)
            )  # so something was refused
            _change(nats_server.url, stream, max_bytes=5_000_000)

        thread = threading.Thread(target=make_room)
        thread.start()
        results = _publish(way, jetstream(proxy.url), batch)
        thread.join()

    assert {result.outcome for result in results} == {Outcome.STORED}
    assert audit(nats_server.url, stream, batch) == FLAWLESS


def _change(url: str, stream: str, **changes: Any) -> None:
    config = api(url, f"STREAM.INFO.{stream}")["config"]
    api(url, f"STREAM.UPDATE.{stream}", {**config, **changes})


def _delete(url: str, stream: str) -> None:
    api(url, f"STREAM.DELETE.{stream}")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (
            _delete,
            r"(rejected|unknown): no stream covers topic \S+ any more: add it to the subjects",
        ),
        (
            _seal,
            r"(rejected|unknown): the server refused it: .*sealed.*\(10109\): publish to another",
        ),
    ],
    ids=["deleted", "sealed"],
)
@pytest.mark.parametrize("whole", [False, True], ids=["one by one", "whole flights"])
def test_a_stream_that_goes_while_a_dataflow_runs_stops_it_with_its_epoch_uncommitted(
    nats_server: NatsServer, tmp_path: Path, harm: Any, says: str, whole: bool
) -> None:
    stream = f"GOES{harm.__name__}{whole}"
    make_stream(nats_server.url, stream, stream, allow_batched=whole)
    batch = envelopes(1_000, stream)
    gone = threading.Event()

    def before(index: int) -> None:
        if index == 500 and not gone.is_set():
            harm(nats_server.url, stream)
            gone.set()

    store = recovery_store(tmp_path / "store")
    made = publishing(Envelopes(batch, before=before), jetstream(nats_server.url, ack_timeout=0.5))
    began = time.monotonic()

    with pytest.raises(BytewaxRuntimeError) as stopped:
        run(made.flow, store=store)

    assert time.monotonic() - began < 20
    assert re.search(says, str(root_cause(stopped.value)))
    assert "its epoch uncommitted" in str(root_cause(stopped.value))
    assert not made.errs, "a whole dataflow dead-lettered"
    if gone.is_set() and harm is _delete:
        make_stream(nats_server.url, stream, stream)
        run(made.flow, store=store)
        ids = {message.headers["Nats-Msg-Id"] for message in stored(nats_server.url, stream)}
        assert ids >= {envelope.event_id for envelope in batch[500:]}


def test_a_stream_deleted_under_the_bare_pool_is_said_within_seconds(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "DELETED", "deleted")
    make_stream(nats_server.url, "STAYS", "stays")
    with opened(jetstream(nats_server.url, ack_timeout=0.5, delivery_timeout=60)) as (pool, lane):
        settle(lane, envelopes(10, "deleted"))
        _delete(nats_server.url, "DELETED")

        results = settle(
            lane, [*envelopes(100, "deleted", first=10), *envelopes(100, "stays", first=1_000)]
        )

        assert broker_of(pool)["reconnects"] == 0
    for event_id, result in results.items():
        assert result.outcome is (
            Outcome.STORED if result.topic == "stays" else Outcome.REJECTED
        ), event_id
        assert result.ack_seconds < 20
    assert "no stream covers topic deleted any more" in str(results["e-10"].reason)


def _run_child(
    folder: Path, store: Path, limit: str = "unlimited"
) -> subprocess.CompletedProcess[str]:
    told = Told("nats://127.0.0.1:1", str(folder))
    command = [
        sys.executable,
        "-B",
        "-m",
        "bytewax.run",
        "tests.support.child:flow",
        "-r",
        str(store),
        "-s",
        "1",
        "-b",
        "0",
    ]
    return subprocess.run(
        ["/bin/sh", "-c", f'ulimit -f {limit}; exec "$@"', "sh", *command],
        env={**os.environ, TOLD: json.dumps(told._asdict())},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_missing_recovery_directory_is_bytewaxs_own_clear_error(tmp_path: Path) -> None:
    ended = _run_child(tmp_path, tmp_path / "absent")

    assert ended.returncode == 1
    assert (
        f'recovery directory "{tmp_path / "absent"}" does not exist'
        in ended.stderr.splitlines()[-1]
    )


def test_a_recovery_directory_that_was_not_made_ready_is_bytewaxs_own_clear_error(
    tmp_path: Path,
) -> None:
    ended = _run_child(tmp_path, tmp_path)

    assert ended.returncode == 1
    assert "No recovery partitions found" in ended.stderr.splitlines()[-1]


def test_an_unwritable_recovery_directory_is_bytewaxs_own_clear_error(tmp_path: Path) -> None:
    # A file-size limit, because permissions do not stop root, who runs the tests in many
    # containers.
    ended = _run_child(tmp_path, recovery_store(tmp_path / "store"), limit="0")

    assert ended.returncode == 1
    assert "disk I/O error" in ended.stderr.splitlines()[-1]

"""A missing or silent server is one clear error; a refused user is one, or one rejected result for
each envelope.
"""

import logging
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from bytewax_jetstream.envelope import Envelope, Outcome, PublishOptions
from bytewax_jetstream.errors import ConnectError
from bytewax_jetstream.settings import JetStreamSettings
from bytewax_jetstream.testing import NatsServer
from tests.support.lanes import jetstream, opened, publish, settle
from tests.support.proxy import Proxy
from tests.support.streams import api, envelopes, stored
from tests.support.ways import both_ways, publish_by

CANARY = "canary-8d21c4"


@both_ways
def test_unreachable_server_is_named_within_the_connect_timeout(way: str) -> None:
    with NatsServer() as server:
        settings = jetstream(server.url, connect_timeout=1)
    began = time.monotonic()

    with pytest.raises(
        ConnectError, match=rf"^no connection to {server.url} within 1 s .*: check that the server"
    ):
        publish_by(way, settings, envelopes(10, "x"))

    assert time.monotonic() - began < 30


@both_ways
def test_silent_server_is_named_within_the_connect_timeout(
    own_nats_server: NatsServer, way: str
) -> None:
    own_nats_server.pause()
    began = time.monotonic()

    with pytest.raises(ConnectError, match=rf"^no connection to {own_nats_server.url} within 1 s"):
        publish_by(way, jetstream(own_nats_server.url, connect_timeout=1), envelopes(10, "x"))

    assert time.monotonic() - began < 30


def test_server_that_falls_silent_during_the_stream_check_is_an_error(
    nats_server: NatsServer,
) -> None:
    with Proxy(nats_server.url) as proxy:
        proxy.answers.loses = lambda frame: frame.startswith(b"MSG ")

        with pytest.raises(ConnectError, match=r"^no answer to \$JS.API.STREAM.LIST within 1 s"):
            publish(jetstream(proxy.url, connect_timeout=1))


@both_ways
def test_wrong_password_is_reported_at_once_and_never_shown(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with NatsServer(config="authorization { user: amy, password: right }") as server:
        settings = jetstream(server.url, user="amy", password=CANARY, connect_timeout=600)

        with pytest.raises(ConnectError) as refused:
            publish_by(way, settings, envelopes(10, "x"))

    assert str(refused.value) == (
        f"no connection to {server.url} (nats: 'Authorization Violation'): correct the credentials "
        "in the settings"
    )
    assert CANARY not in "".join(traceback.format_exception(refused.value)) + caplog.text + repr(
        settings
    )


@pytest.fixture(params=[False, True], ids=["singles", "batches"])
def guarded(request: pytest.FixtureRequest) -> Iterator[NatsServer]:
    """A server with a stream OPEN and users with different permissions."""
    users = """
        authorization { users: [
            { user: all, password: all }
            { user: some, password: some,
              permissions: { publish: { deny: ["open.Denied.*", "ghost.>"] } } }
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
        results = {result.event_id: result for result in publish_by(way, _as("some", proxy), mixed)}

        assert proxy.connections == 1
    assert len(results) == len(mixed)
    assert {results[each.event_id].outcome for each in fine} == {Outcome.STORED}
    assert {results[each.event_id].outcome for each in denied} == {Outcome.REJECTED}
    assert (
        results["d-0"].reason
        == "this user may not publish on open.Denied.x: allow it, then publish again"
    )
    assert len(stored(guarded.url, "OPEN", user="all", password="all")) == len(fine)


def test_a_subject_without_permission_is_rejected_behind_a_slow_link(
    guarded: NatsServer,
) -> None:
    denied = [
        Envelope("open.Denied.x", b"%d" % number, event_id=f"d-{number}") for number in range(1_000)
    ]
    fine = envelopes(1_000, "open.fine")
    mixed = [envelope for pair in zip(denied, fine, strict=True) for envelope in pair]
    # Attempts end before their denials have come, and begin again.
    with (
        Proxy(guarded.url, rate=50_000) as proxy,
        opened(_as("some", proxy, ack_timeout=0.5, delivery_timeout=120)) as (_, lane),
    ):
        results = settle(lane, mixed)

    assert {results[each.event_id].outcome for each in fine} == {Outcome.STORED}
    assert {results[each.event_id].outcome for each in denied} == {Outcome.REJECTED}


def test_batch_without_permission_is_rejected_at_once(guarded: NatsServer) -> None:
    denied = [
        Envelope("open.Denied.x", b"%d" % number, event_id=f"d-{number}") for number in range(40)
    ]
    began = time.monotonic()
    with opened(_as("some", guarded, ack_timeout=120, delivery_timeout=240)) as (_, lane):
        results = settle(lane, denied)

    assert {result.outcome for result in results.values()} == {Outcome.REJECTED}
    assert time.monotonic() - began < 60, "it waited for an ack that nobody sends"


@both_ways
def test_user_who_may_not_receive_answers_is_refused_at_the_start(
    guarded: NatsServer, way: str
) -> None:
    with pytest.raises(
        ConnectError,
        match=r'^Permissions Violation for Subscription to "_INBOX.*": '
        r"allow this user to subscribe to _INBOX\.>, or set inbox_prefix",
    ):
        publish_by(way, _as("deaf", guarded), envelopes(10, "open.x"))


@both_ways
def test_user_without_the_jetstream_api_can_publish_when_the_check_is_skipped(
    guarded: NatsServer, way: str
) -> None:
    with pytest.raises(
        ConnectError,
        match=r'^Permissions Violation for Publish to "\$JS\.API\.STREAM\.LIST": '
        r".*stream_strategy=skip$",
    ):
        publish_by(way, _as("plain", guarded), envelopes(10, "open.x"))

    results = publish_by(
        way, _as("plain", guarded, stream_strategy="skip"), envelopes(10, "open.x")
    )

    assert {result.outcome for result in results} == {Outcome.STORED}


def test_an_unmet_expectation_is_looked_up_without_the_right_to_read_the_stream(
    guarded: NatsServer,
) -> None:
    expecting = Envelope(
        "open.x", b"", event_id="e", options=PublishOptions(expected_last_sequence=1)
    )
    settings = _as("plain", guarded, stream_strategy="skip")
    publish(settings, *envelopes(1, "open.x"))

    first = publish(settings, expecting)["e"]
    again = publish(settings, expecting)["e"]
    other = publish(settings, expecting._replace(event_id="other"))["other"]

    assert (first.outcome, first.duplicate) == (Outcome.STORED, False)
    assert (again.outcome, again.duplicate, again.sequence) == (Outcome.STORED, True, 2)
    assert (other.outcome, other.code) == (Outcome.REJECTED, 10071)


def test_an_unmet_expectation_without_ids_that_cannot_be_looked_up_is_unknown(
    guarded: NatsServer,
) -> None:
    # Its own earlier attempt may be what fails the expectation, and this user may not look that up.
    expecting = Envelope(
        "open.x", b"", event_id="e", options=PublishOptions(expected_last_sequence=0)
    )
    settings = _as("plain", guarded, stream_strategy="skip", dedupe=False)
    publish(settings, *envelopes(1, "open.x"))

    result = publish(settings, expecting)["e"]

    assert (result.outcome, result.code) == (Outcome.UNKNOWN, 10071)
    assert "the server could not say whether it was stored before: Permissions Violation" in str(
        result.reason
    )


@both_ways
def test_server_without_jetstream_is_one_clear_error(way: str) -> None:
    with (
        NatsServer(jetstream=False) as server,
        pytest.raises(
            ConnectError,
            match=r"^nothing answers \$JS\.API\.\S+: "
            r"enable JetStream on this server and for this account, or",
        ),
    ):
        publish_by(way, jetstream(server.url), envelopes(10, "x"))

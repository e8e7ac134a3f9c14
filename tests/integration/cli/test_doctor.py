"""`doctor` beside real nats-servers, healthy and not; each failing step says what to do."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bytewax_jetstream.testing import NatsServer
from tests.support.certificates import Certificates
from tests.support.commands import Given, call
from tests.support.doctor import doctor, failure, only
from tests.support.jwt import operator_mode
from tests.support.proxy import Proxy
from tests.support.streams import Names, api, make_stream

USERS = """
    authorization { users: [
        { user: all, password: all }
        { user: some, password: some, permissions: { publish: { deny: ["closed"] } } }
        { user: deaf, password: deaf, permissions: { subscribe: { deny: ["_INBOX.>"] } } }
        { user: plain, password: plain, permissions: { publish: { allow: ["open"] } } }
        { user: reader, password: reader, permissions: {
            publish: { deny: ["$JS.API.STREAM.CREATE.>", "$JS.API.STREAM.UPDATE.>"] } } }
    ]}
"""
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def guarded() -> Iterator[NatsServer]:
    """A server whose users have different permissions, with streams for `open` and `closed`."""
    with NatsServer(config=USERS) as server:
        for name in ("open", "closed"):
            config = {"name": name.upper(), "subjects": [name]}
            api(server.url, f"STREAM.CREATE.{name.upper()}", config, user="all", password="all")
        yield server


@contextmanager
def speaking(hello: bytes, answer: bytes = b"") -> Iterator[int]:
    """Something on a port that says this, and this to whatever it hears."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                try:
                    connection.sendall(hello)
                    while connection.recv(4096):
                        if answer:
                            connection.sendall(answer)
                            break
                except OSError:
                    continue

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


# A server that flows can use


def test_every_step_passes_where_a_flow_could_publish(
    nats_server: NatsServer, given: Given, names: Names
) -> None:
    stream = names()
    make_stream(nats_server.url, stream, f"{stream}.x")
    given(servers=nats_server.url, topics=f"{stream}.x")

    steps = doctor(0)

    passed = [step["step"] for step in steps if step["status"] == "ok"]
    assert list(dict.fromkeys(passed)) == [
        *("settings", "name", "tcp", "server", "authentication", "inbox", "api", "publish"),
        *("topics", "limits", "clock"),
    ]
    assert {step["status"] for step in steps} == {"ok", "skipped"}
    shown = call("doctor")
    assert shown.code == 0
    assert f"topic {stream}.x is stored by stream {stream}" in shown.out
    assert shown.out.endswith("No step failed.\n")


def test_doctor_stores_nothing_and_makes_nothing(
    nats_server: NatsServer, given: Given, names: Names
) -> None:
    stream = names()
    make_stream(nats_server.url, stream, f"{stream}.x")
    given(
        servers=nats_server.url,
        topics=f"{stream}.x,{stream}.y",
        streams=[{"name": f"{stream}-new", "subjects": [f"{stream}.y"]}],
    )
    before = api(nats_server.url, "INFO")["streams"]

    steps = doctor(0)

    assert f"stream {stream}-new is missing, and the run will create it" in str(steps)
    assert api(nats_server.url, "INFO")["streams"] == before
    assert api(nats_server.url, f"STREAM.INFO.{stream}")["state"]["messages"] == 0


def test_nothing_configured_looks_for_a_jetstream_on_this_machine(given: Given) -> None:
    given()

    steps = call("doctor", "--json").json["steps"]

    assert {step["server"] for step in steps} == {"", "nats://127.0.0.1:4222"}
    assert only(steps, "settings", "ok")["said"] == "all have their defaults"


def test_empty_variable_is_a_warning(nats_server: NatsServer, given: Given) -> None:
    given(servers=nats_server.url, token="", user=" ")

    steps = doctor(0)

    said = {step["said"] for step in steps if step["status"] == "warning"}
    assert said == {"BYTEWAX_JETSTREAM_TOKEN is empty", "BYTEWAX_JETSTREAM_USER is empty"}


def test_server_that_fails_beside_one_that_works_is_a_warning(
    nats_server: NatsServer, given: Given
) -> None:
    given(servers=f"nats://127.0.0.1:9,{nats_server.url}")

    assert only(doctor(0), "tcp", "warning")["server"] == "nats://127.0.0.1:9"


# Reaching a server


def test_unknown_name_is_named(given: Given) -> None:
    given(servers="nats://no-such-host.invalid:4222", connect_timeout=5)

    assert "no-such-host.invalid has no address" in failure(3, "name")


def test_closed_port_is_named(given: Given) -> None:
    given(servers="nats://127.0.0.1:9")

    said = failure(3, "tcp")

    assert "127.0.0.1 port 9: Connection refused" in said
    assert "check that the server is running and listens on port 9" in said


@pytest.mark.parametrize(
    ("hello", "says"),
    [
        (b"SSH-2.0-OpenSSH_9\r\n", "it is not a NATS server: it says 'SSH-2.0-OpenSSH_9'"),
        (b"INFO nothing\r\n", "it is not a NATS server"),
        (b"", "it says nothing"),
    ],
)
def test_what_is_not_a_nats_server_is_named(given: Given, hello: bytes, says: str) -> None:
    with speaking(hello) as port:
        given(servers=f"nats://127.0.0.1:{port}", connect_timeout=1)

        said = failure(3, "server")

    assert says in said
    assert "correct the port" in said


# TLS


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "ours")


def test_certificate_that_is_fine_says_until_when(given: Given, certificates: Certificates) -> None:
    with NatsServer(config=certificates.block()) as server:
        given(servers=server.url, tls_ca_file=certificates.ca)

        said = only(doctor(0), "tls", "ok")["said"]

    assert re.search(r"^TLSv1\.3, the certificate is valid for 127\.0\.0\.1 until \d{4}-", said)


@pytest.mark.parametrize("first", [False, True], ids=["info first", "handshake first"])
@pytest.mark.parametrize(
    ("names", "dates", "says"),
    [
        (
            ("127.0.0.1",),
            {"not_after": NOW - timedelta(days=3)},
            f"expired on {NOW - timedelta(days=3):%Y-%m-%d}",
        ),
        (("127.0.0.1",), {"not_before": NOW + timedelta(days=1)}, "is not valid yet -> correct"),
        (("nats.example",), {}, "not valid for 127.0.0.1: it is for nats.example -> use one of"),
    ],
    ids=["expired", "not yet", "another name"],
)
def test_certificate_that_is_not_valid_is_explained(
    given: Given,
    tmp_path: Path,
    names: tuple[str, ...],
    dates: dict[str, Any],
    says: str,
    *,
    first: bool,
) -> None:
    issued = Certificates(tmp_path / "issued", *names, **dates)
    config = issued.block("handshake_first: true" if first else "")
    with NatsServer(config=config) as server:
        given(servers=server.url, tls_ca_file=issued.ca, tls_handshake_first=first)

        assert says in failure(4, "tls")


def test_certificate_that_expires_soon_is_a_warning(given: Given, tmp_path: Path) -> None:
    issued = Certificates(tmp_path / "issued", not_after=NOW + timedelta(days=5, hours=12))
    with NatsServer(config=issued.block()) as server:
        given(servers=server.url, tls_ca_file=issued.ca)

        assert "it expires in 5 days" in only(doctor(0), "tls", "warning")["advice"]


def test_certificate_of_an_unknown_authority_is_explained(
    given: Given, tmp_path: Path, certificates: Certificates
) -> None:
    other = Certificates(tmp_path / "other")
    with NatsServer(config=certificates.block()) as server:
        given(servers=server.url, tls_ca_file=other.ca)

        said = failure(4, "tls")

    assert "the certificate of the server is not trusted" in said
    assert "set tls_ca_file" in said


@pytest.mark.parametrize(
    ("block", "settings", "code", "step", "says"),
    [
        (None, {"tls": True}, 4, "tls", "the server does not offer TLS"),
        ("", {}, 2, "tls", "the server requires TLS, and the settings do not ask for it -> set"),
        ("handshake_first: true", {}, 2, "server", "speaks TLS -> if it is a NATS server with"),
        ("verify: true", {"ca": True}, 4, "authentication", "give the server tls_cert_file"),
        (
            "verify: true\nhandshake_first: true",
            {"ca": True, "tls_handshake_first": True},
            *(4, "tls", "give it tls_cert_file and tls_key_file"),
        ),
        ("", {"tls_ca_file": "absent.pem"}, 2, "tls", "correct tls_ca_file, tls_cert_file and"),
        (None, {"tls": True, "tls_handshake_first": True}, 4, "tls", "does not speak TLS"),
    ],
    ids=[
        "not offered",
        "required",
        "first",
        "ours missing",
        "first, ours missing",
        "no file",
        "first, not offered",
    ],
)
def test_tls_of_settings_and_server_that_do_not_fit_is_explained(
    given: Given,
    certificates: Certificates,
    block: str | None,
    settings: dict[str, Any],
    code: int,
    step: str,
    says: str,
) -> None:
    if settings.pop("ca", False):
        settings = {**settings, "tls_ca_file": certificates.ca}
    with NatsServer(config="" if block is None else certificates.block(block)) as server:
        given(servers=server.url, connect_timeout=3, **settings)

        assert says in failure(code, step)


# Who is let in, and to what


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "set user and password, token, nkey_seed or credentials_file"),
        ({"user": "all", "password": "wrong"}, "correct user and password in the settings"),
        ({"token": "wrong"}, "correct token in the settings"),
    ],
    ids=["none", "password", "token"],
)
def test_credentials_that_are_refused_are_named_and_not_shown(
    guarded: NatsServer, given: Given, settings: dict[str, str], says: str
) -> None:
    given(servers=guarded.url, **settings)

    said = failure(4, "authentication")

    assert "Authorization Violation" in said
    assert says in said
    assert "wrong" not in said


def test_credentials_file_lets_in_and_a_broken_one_is_named(given: Given, tmp_path: Path) -> None:
    config, creds = operator_mode(tmp_path)
    with NatsServer(config=config) as server:
        given(servers=server.url, credentials_file=creds)
        assert only(doctor(0), "authentication", "ok")["said"] == "connected with credentials_file"
        creds.write_text("broken")

        assert "correct credentials_file in the settings" in failure(4, "authentication")


@pytest.mark.parametrize(
    ("user", "settings", "step", "says"),
    [
        (
            "some",
            {"topics": "open,closed"},
            "publish",
            'Permissions Violation for Publish to "closed" -> allow this user to publish on closed',
        ),
        ("deaf", {"topics": "open"}, "inbox", "allow this user to subscribe to _INBOX.>, or set"),
        ("plain", {"topics": "open"}, "api", "allow this user to use the JetStream API"),
        (
            "reader",
            {"streams": [{"name": "NEW", "subjects": ["new"]}]},
            "streams",
            'Publish to "$JS.API.STREAM.CREATE.NEW" -> allow this user to publish there',
        ),
    ],
    ids=["publish", "inbox", "api", "create"],
)
def test_permission_that_is_missing_is_named(
    guarded: NatsServer, given: Given, user: str, settings: dict[str, Any], step: str, says: str
) -> None:
    given(servers=guarded.url, user=user, password=user, **settings)

    said = failure(4, step)

    assert says in said


def test_strategy_skip_needs_no_right_to_the_api(guarded: NatsServer, given: Given) -> None:
    given(servers=guarded.url, user="plain", password="plain", topics="open")
    given(stream_strategy="skip")

    steps = doctor(0)

    assert only(steps, "api", "warning")
    assert only(steps, "publish", "ok")["said"] == "this user may publish on open"


def test_jetstream_that_is_off_is_named(given: Given) -> None:
    with NatsServer(jetstream=False) as server:
        given(servers=server.url)

        assert "enable JetStream on this server and for this account" in failure(4, "api")


def test_account_without_jetstream_is_named(given: Given) -> None:
    config = "accounts { A: { users: [{ user: a, password: a }] } }"
    with NatsServer(config=config) as server:
        given(servers=server.url, user="a", password="a")

        assert "JetStream" in failure(4, "api")


# Streams, limits, clock


@pytest.mark.parametrize(
    ("strategy", "code"), [("create", 4), ("create_or_update", 0), ("validate", 4), ("skip", 0)]
)
def test_stream_that_is_too_weak_counts_as_the_strategy_says(
    nats_server: NatsServer, given: Given, names: Names, strategy: str, code: int
) -> None:
    stream = names()
    make_stream(nats_server.url, stream, stream, max_msgs=5)
    wanted = [{"name": stream, "subjects": [stream], "max_messages": 9}]
    given(servers=nats_server.url, streams=wanted, stream_strategy=strategy)

    steps = doctor(code)

    if strategy in ("create", "validate"):
        step = only(steps, "streams", "failed")
        assert step["said"] == f"stream {stream}: max_msgs is 5, the settings require 9"
        assert "bytewax-jetstream streams apply does it" in step["advice"]


def test_user_who_only_checks_needs_no_right_to_make_streams(
    guarded: NatsServer, given: Given
) -> None:
    given(servers=guarded.url, user="reader", password="reader", stream_strategy="validate")
    # It could take batches, and so would be changed by who may.
    given(streams=[{"name": "OPEN", "subjects": ["open"]}])
    doctor(0)
    given(streams=[{"name": "NEW", "subjects": ["new"]}])

    assert failure(4, "streams").startswith("stream NEW is missing -> have it made")


def test_topic_that_no_stream_covers_is_named(nats_server: NatsServer, given: Given) -> None:
    given(servers=nats_server.url, topics="nobody.stores.this")

    assert "no stream covers topic nobody.stores.this -> add it" in failure(4, "topics")


def test_full_stream_and_account_are_warnings(given: Given) -> None:
    config = """
        accounts { A: {
            jetstream: { max_streams: 1, max_file: 1000000 }
            users: [{ user: a, password: a }]
        } }
    """
    with NatsServer(config=config) as server:
        body = {"name": "FULL", "subjects": ["full"], "max_msgs": 1, "discard": "new"}
        api(server.url, "STREAM.CREATE.FULL", {**body, "no_ack": False}, user="a", password="a")
        _publish(server.url, "full", user="a", password="a")
        given(servers=server.url, user="a", password="a", topics="full")

        said = [step["said"] for step in doctor(0) if step["status"] == "warning"]

    assert "1 of 1 streams are used" in said
    assert "stream FULL has 1 of at most 1 messages" in said


def test_clock_that_differs_is_a_warning(
    nats_server: NatsServer, given: Given, names: Names
) -> None:
    stream = names()
    make_stream(nats_server.url, stream, stream)
    with Proxy(nats_server.url) as proxy:
        # A year later, in as many bytes.
        proxy.answers.changes = lambda frame: re.sub(
            rb'"ts":"(\d{4})', lambda ts: b'"ts":"%d' % (int(ts[1]) + 1), frame
        )
        given(servers=proxy.url)

        said = only(doctor(0), "clock", "warning")["said"]

    seconds = int(re.findall(r"the server is (\d+) s ahead of this machine", said)[0])
    assert 364 * 86_400 < seconds < 367 * 86_400


def test_wrong_setting_is_one_sentence(given: Given) -> None:
    given(servers="http://127.0.0.1:4222")

    ended = call("doctor")

    assert ended.code == 2
    assert ended.err == (
        "bytewax-jetstream doctor: BYTEWAX_JETSTREAM_SERVERS: invalid server address: write "
        "nats://host:port or tls://host:port\n"
    )
    assert ended.out == ""


def _publish(url: str, subject: str, **credentials: str) -> None:
    import asyncio

    import nats

    async def publish() -> None:
        async with await nats.connect(url, **credentials) as client:
            await client.jetstream().publish(subject, b"one")

    asyncio.run(publish())

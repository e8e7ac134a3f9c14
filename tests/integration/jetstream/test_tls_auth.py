"""Encrypted and authenticated connections to a real nats-server; secrets go nowhere else."""

import json
import logging
import os
import socket
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import nkeys
import pytest

from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.errors import ConnectError
from bytewax_jetstream.settings import JetStreamSettings, StreamSettings
from bytewax_jetstream.testing import NatsServer
from tests.support.certificates import Certificates
from tests.support.jwt import operator_mode, public_key
from tests.support.lanes import broker_of, jetstream, opened, publish, settle
from tests.support.proxy import Proxy
from tests.support.streams import envelopes
from tests.support.waiting import PATIENCE, until

CANARY = "canary-3f9a77"
STREAM = StreamSettings(name="SAFE", subjects=("safe",))


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "ours")


class PlainPeer:
    """Something on a port that speaks no TLS, sends what it is told to, and keeps what it
    hears.
    """

    def __init__(self, info: dict[str, Any], port: int = 0) -> None:
        self.heard = b""
        self.connections = 0
        self._hello = (
            b"INFO "
            + json.dumps({"server_id": "x", "max_payload": 1_000_000, **info}).encode()
            + b"\r\n"
        )
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.settimeout(0.05)
        self._closing = False
        self._thread = threading.Thread(target=self._serve)

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            with connection:
                self.connections += 1
                connection.sendall(self._hello)
                connection.settimeout(0.5)
                try:
                    while data := connection.recv(65_536):
                        self.heard += data
                        if b"PING" in data:
                            connection.sendall(b"PONG\r\n")
                except OSError:
                    continue


def _publishes(settings: JetStreamSettings) -> bool:
    results = publish(settings, *envelopes(100, "safe"))
    return {result.outcome for result in results.values()} == {Outcome.STORED}


def _refused(settings: JetStreamSettings, caplog: pytest.LogCaptureFixture) -> str:
    """The one sentence of a refusal; neither it nor anything else shows a secret."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ConnectError) as refused:
        publish(settings, *envelopes(1, "safe"))
    words = str(refused.value)
    everything = [
        *traceback.format_exception(refused.value),
        caplog.text,
        repr(settings),
        str(settings),
    ]
    assert not any(CANARY in text for text in everything)
    assert words.startswith(f"no connection to {settings.servers[0]}")
    assert "\n" not in words
    return words


def test_an_encrypted_connection_publishes(certificates: Certificates) -> None:
    with NatsServer(config=certificates.block()) as server, Proxy(server.url, opaque=True) as proxy:
        settings = jetstream(proxy.url, tls_ca_file=certificates.ca, streams=(STREAM,))

        assert _publishes(settings)

        wire = b"".join(proxy.requests.frames)
        assert len(wire) > 10_000
        assert b"safe" not in wire


def test_handshake_first_server_is_published_to(
    certificates: Certificates,
) -> None:
    with NatsServer(config=certificates.block("handshake_first: true")) as server:
        settings = jetstream(
            server.url, tls_ca_file=certificates.ca, tls_handshake_first=True, streams=(STREAM,)
        )

        assert _publishes(settings)


@pytest.mark.parametrize("server_first", [False, True])
def test_wrong_handshake_order_is_one_clear_error(
    certificates: Certificates, caplog: pytest.LogCaptureFixture, *, server_first: bool
) -> None:
    with NatsServer(
        config=certificates.block(f"handshake_first: {str(server_first).lower()}")
    ) as server:
        settings = jetstream(
            server.url,
            tls_ca_file=certificates.ca,
            tls_handshake_first=not server_first,
            # An attempt that has read the INFO before its handshake began waits for its end.
            connect_timeout=1 if server_first else PATIENCE,
            user="amy",
            password=CANARY,
        )

        words = _refused(settings, caplog)

    assert ("within 1 s" if server_first else "check that the server speaks TLS") in words


def test_mutual_tls_lets_in_only_a_client_with_its_certificate(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    with NatsServer(config=certificates.block("verify: true")) as server:
        settings: dict[str, Any] = {
            "tls_ca_file": certificates.ca,
            "streams": (STREAM,),
            "connect_timeout": 1,
        }
        own: dict[str, Any] = {
            "tls_cert_file": certificates.client,
            "tls_key_file": certificates.client,
        }

        assert _publishes(jetstream(server.url, **settings, **own))
        words = _refused(jetstream(server.url, **settings, user="amy", password=CANARY), caplog)

    assert "certificate" in words


def test_server_certificate_of_another_authority_is_refused(
    certificates: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Certificates(tmp_path / "other")
    with NatsServer(config=certificates.block()) as server:
        words = _refused(
            jetstream(server.url, tls_ca_file=other.ca, user="amy", password=CANARY), caplog
        )

    assert "certificate verify failed" in words


def test_server_certificate_of_another_name_is_refused_unless_configured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    named = Certificates(tmp_path / "named", "nats.example")
    with NatsServer(config=named.block()) as server:
        words = _refused(
            jetstream(server.url, tls_ca_file=named.ca, user="amy", password=CANARY), caplog
        )

        assert "certificate verify failed" in words
        assert _publishes(
            jetstream(
                server.url, tls_ca_file=named.ca, tls_hostname="nats.example", streams=(STREAM,)
            )
        )


@pytest.mark.parametrize("which", ["tls_ca_file", "tls_cert_file"])
def test_missing_certificate_file_is_one_clear_error(
    certificates: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    files: dict[str, Any] = {
        "tls_ca_file": certificates.ca,
        "tls_cert_file": certificates.client,
        "tls_key_file": certificates.client,
        which: tmp_path / "absent.pem",
    }
    with NatsServer(config=certificates.block()) as server:
        words = _refused(jetstream(server.url, **files), caplog)

    assert "correct the path in the settings" in words


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"tls_required": False, "auth_required": True},
        {"tls_available": True},
        {"tls_required": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("first", [False, True], ids=["info first", "handshake first"])
def test_a_peer_without_tls_never_hears_the_password(
    caplog: pytest.LogCaptureFixture, info: dict[str, Any], *, first: bool
) -> None:
    with PlainPeer(info) as peer:
        settings = jetstream(
            peer.url,
            tls=True,
            tls_handshake_first=first,
            connect_timeout=0.5,
            user="amy",
            password=CANARY,
        )

        _refused(settings, caplog)

        assert peer.connections > 0
    assert CANARY.encode() not in peer.heard
    assert b"CONNECT" not in peer.heard


def test_a_nats_server_without_tls_is_refused_before_the_password_is_sent(
    nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    with Proxy(nats_server.url) as proxy:
        words = _refused(jetstream(proxy.url, tls=True, user="amy", password=CANARY), caplog)

        assert "does not offer TLS" in words
        assert proxy.answers.frames, "the server said nothing, so nothing could have been answered"
        assert proxy.requests.frames == []


def test_reconnect_never_sends_the_password_to_a_peer_without_tls(
    certificates: Certificates,
) -> None:
    config = certificates.block() + f"\nauthorization {{ user: amy, password: {CANARY} }}"
    with NatsServer(config=config) as server:
        settings = jetstream(
            server.url, tls_ca_file=certificates.ca, user="amy", password=CANARY, streams=(STREAM,)
        )
        with opened(settings) as (pool, lane):
            settle(lane, envelopes(1, "safe"))
            server.kill()
            with PlainPeer({"auth_required": True}, port=server.port) as peer:
                until(lambda: peer.connections > 2)
            server.start()

            settle(lane, envelopes(1, "safe", first=1))

            assert broker_of(pool)["reconnects"] == 1
    assert CANARY.encode() not in peer.heard
    assert b"CONNECT" not in peer.heard


@pytest.fixture
def user_seed() -> str:
    return bytes(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)).decode()


@pytest.fixture
def locked(user_seed: str) -> Iterator[NatsServer]:
    with NatsServer(
        config=f"authorization {{ users: [{{ nkey: {public_key(user_seed)} }}] }}"
    ) as server:
        yield server


def test_right_password_lets_in_and_a_wrong_one_does_not(caplog: pytest.LogCaptureFixture) -> None:
    with NatsServer(config="authorization { user: amy, password: right }") as server:
        assert _publishes(jetstream(server.url, user="amy", password="right", streams=(STREAM,)))

        words = _refused(
            jetstream(server.url, user="amy", password=CANARY, connect_timeout=60), caplog
        )

    assert "Authorization Violation" in words
    assert words.endswith("correct the credentials in the settings")


def test_right_token_lets_in_and_a_wrong_one_does_not(caplog: pytest.LogCaptureFixture) -> None:
    with NatsServer(config="authorization { token: right }") as server:
        assert _publishes(jetstream(server.url, token="right", streams=(STREAM,)))

        words = _refused(jetstream(server.url, token=CANARY, connect_timeout=60), caplog)

    assert "Authorization Violation" in words
    assert words.endswith("correct the credentials in the settings")


def test_right_nkey_lets_in_and_a_wrong_one_does_not(
    locked: NatsServer, user_seed: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = bytes(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)).decode()

    assert _publishes(jetstream(locked.url, nkey_seed=user_seed, streams=(STREAM,)))
    words = _refused(jetstream(locked.url, nkey_seed=other, connect_timeout=60), caplog)

    assert "Authorization Violation" in words
    assert other not in words + caplog.text


@pytest.mark.parametrize(
    "seed", [CANARY, "SU" + CANARY, "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3V1"]
)
def test_malformed_nkey_is_one_clear_error_that_does_not_show_it(
    locked: NatsServer, caplog: pytest.LogCaptureFixture, seed: str
) -> None:
    words = _refused(jetstream(locked.url, nkey_seed=seed, connect_timeout=60), caplog)

    assert seed not in words + caplog.text
    assert "correct the credentials" in words


def test_valid_credentials_file_lets_in_and_a_broken_or_missing_one_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, creds = operator_mode(tmp_path)
    with NatsServer(config=config) as server:
        assert _publishes(jetstream(server.url, credentials_file=creds, streams=(STREAM,)))

        absent = _refused(
            jetstream(server.url, credentials_file=tmp_path / "absent", connect_timeout=60), caplog
        )
        (tmp_path / "broken").write_text(f"-----BEGIN NATS USER JWT-----\n{CANARY}\n")
        broken = _refused(
            jetstream(server.url, credentials_file=tmp_path / "broken", connect_timeout=60), caplog
        )

    assert "correct the path in the settings" in absent
    assert "correct the credentials" in broken

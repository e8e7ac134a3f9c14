"""What the settings of JetStream accept, and that no secret is shown."""

import pickle
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from bytewax_jetstream.settings import JetStreamSettings, PoolSettings, StreamSettings
from tests.support.settings import CANARY, refusal

# Secrets


def _with_secrets() -> list[JetStreamSettings]:
    return [
        JetStreamSettings(user="bob", password=SecretStr(CANARY)),
        JetStreamSettings(token=SecretStr(CANARY)),
        JetStreamSettings(nkey_seed=SecretStr(CANARY)),
    ]


def test_secrets_are_never_shown() -> None:
    for settings in _with_secrets():
        for shown in (
            repr(settings),
            str(settings),
            f"{settings}",
            settings.model_dump_json(),
            str(settings.model_dump()),
            str(vars(settings)),
        ):
            assert CANARY not in shown
            assert "**********" in shown


def test_settings_are_equal_hashed_and_pickled_with_their_secrets() -> None:
    for settings, again in zip(_with_secrets(), _with_secrets(), strict=True):
        assert settings == again
        assert hash(settings) == hash(again)
        assert pickle.loads(pickle.dumps(settings)) == settings
    assert len(set(_with_secrets())) == 3


def test_settings_cannot_be_changed() -> None:
    settings = JetStreamSettings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.name = "other"  # type: ignore[misc]  # what is tested
    with pytest.raises(ValidationError, match="frozen"):
        settings.pool.ack_workers = 1  # type: ignore[misc]  # what is tested


@pytest.mark.parametrize(
    "fields",
    [
        {"password": CANARY},
        {"user": "bob", "password": [CANARY]},
        {"user": "bob", "password": CANARY.encode(), "token": 5},
        {"token": {"a": CANARY}},
        {"token": CANARY, "nkey_seed": CANARY},
        {"credentials_file": 5, "token": CANARY},
        {"servers": f"nats://bob:{CANARY}@host"},
        {"servers": f"nats://{CANARY}@host"},
        {"servers": f"bob:{CANARY}@host:4222"},
        {"servers": f"nats://:{CANARY}@host"},
        {"servers": f"nats://host:{CANARY}"},
        {"servers": f"nats://bob:{CANARY}\u2100@host"},
        {"servers": f"{CANARY}://host"},
        {"servers": ("nats://ok", f"http://{CANARY}")},
        {"pool": {"ack_workers": CANARY}},
        {"streams": [{"name": CANARY + " ", "subjects": [CANARY], CANARY[:3]: CANARY}]},
    ],
)
def test_error_never_shows_the_value_that_is_wrong(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the sentence is not the point here
        JetStreamSettings(**fields)
    error: BaseException | None = caught.value
    while error is not None:
        assert CANARY not in str(error)
        assert CANARY not in repr(error)
        error = error.__cause__ or error.__context__


# Servers, authentication, TLS


@pytest.mark.parametrize(
    "server",
    [
        "nats://bob:pw@host:4222",
        "bob:pw@host",
        "tls://token@host",
        "nats://:pw@host",
        "nats://@host",
        "wss://a:b@host",
    ],
)
def test_credentials_in_a_url_are_refused(server: str) -> None:
    assert (
        "credentials in a server's URL end up in logs: use user and password, or token"
        in refusal(JetStreamSettings, servers=server)
    )


@pytest.mark.parametrize("server", ["ws://host", "wss://host:443", "WSS://host"])
def test_websocket_servers_are_refused(server: str) -> None:
    assert (
        "WebSocket servers are not supported: use the server's nats:// or tls:// address"
        in refusal(JetStreamSettings, servers=server)
    )


@pytest.mark.parametrize(
    "server",
    [
        "http://host",
        "nats://",
        "://host",
        "nats://host:port",
        "nats://host:70000",
        "nats://host:0",
        "nats://[::1",
    ],
)
def test_invalid_server_address_is_refused(server: str) -> None:
    assert "invalid server address: write nats://host:port or tls://host:port" in refusal(
        JetStreamSettings, servers=("nats://good", server)
    )


@pytest.mark.parametrize(
    "server",
    ["host", "host:4222", "nats://host", "tls://host:4443", "nats://[::1]:4222", "10.0.0.1"],
)
def test_server_may_be_written_in_short(server: str) -> None:
    assert JetStreamSettings(servers=(server,)).servers == (server,)


@pytest.mark.parametrize("servers", ["", " , ", ()])
def test_at_least_one_server_is_needed(servers: Any) -> None:
    assert "name at least one server" in refusal(JetStreamSettings, servers=servers)


WAYS: dict[str, dict[str, Any]] = {
    "user": {"user": "bob", "password": "x"},
    "token": {"token": "x"},
    "nkey": {"nkey_seed": "x"},
    "creds": {"credentials_file": "x.creds"},
}


@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("second", WAYS)
def test_there_is_one_way_to_authenticate(first: str, second: str) -> None:
    fields = WAYS[first] | WAYS[second]
    if first == second:
        JetStreamSettings(**fields)
    else:
        assert "give only one way to authenticate" in refusal(JetStreamSettings, **fields)


@pytest.mark.parametrize("fields", [{"user": "bob"}, {"password": "x"}])
def test_user_and_password_go_together(fields: dict[str, Any]) -> None:
    assert "user and password go together" in refusal(JetStreamSettings, **fields)


@pytest.mark.parametrize("fields", [{"tls_cert_file": "a"}, {"tls_key_file": "a"}])
def test_certificate_and_key_go_together(fields: dict[str, Any]) -> None:
    assert "tls_cert_file and tls_key_file go together" in refusal(JetStreamSettings, **fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, False),
        ({"tls": True}, True),
        ({"tls_ca_file": "ca.pem"}, True),
        ({"tls_cert_file": "a.pem", "tls_key_file": "a.key"}, True),
        ({"tls_hostname": "host"}, True),
        ({"tls_handshake_first": True}, True),
        ({"servers": "nats://a,tls://b"}, True),
        ({"servers": "TLS://b"}, True),
        ({"servers": "tls.example.com"}, False),
    ],
)
def test_tls_is_implied_by_anything_that_needs_it(fields: dict[str, Any], expected: bool) -> None:
    assert JetStreamSettings(**fields).wants_tls is expected


@pytest.mark.parametrize("prefix", ["_INBOX", "_INBOX_own", "inboxes.orders-1"])
def test_inbox_prefix_is_a_subject(prefix: str) -> None:
    assert JetStreamSettings(inbox_prefix=prefix).inbox_prefix == prefix


@pytest.mark.parametrize(
    "prefix",
    ["", "_INBOX.", "_INBOX.>", "_INBOX.*", ".x", "a..b", "a b", "$SYS", "a\nb", "x" * 256],
)
def test_inbox_prefix_that_is_no_subject_is_refused(prefix: str) -> None:
    assert "write a subject of at most 255 characters, without wildcards" in refusal(
        JetStreamSettings, inbox_prefix=prefix
    )


def test_domain_and_api_prefix_say_where_the_api_is() -> None:
    assert JetStreamSettings(domain="hub").js_prefix == "$JS.hub.API"
    assert JetStreamSettings(api_prefix="imported.js").js_prefix == "imported.js"
    assert "give domain or api_prefix, not both" in refusal(
        JetStreamSettings, domain="hub", api_prefix="x"
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "a.b"}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": ""}, "name"),
        ({"subjects": ()}, "subjects"),
        ({"replicas": 6}, "replicas"),
        ({"storage": "tape"}, "storage"),
        ({"max_mesages": 5}, "max_mesages"),
    ],
)
def test_invalid_stream_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        StreamSettings(**{"name": "ORDERS", "subjects": "orders.>", **fields})


def _orders(**fields: Any) -> StreamSettings:
    return StreamSettings(**{"name": "ORDERS", "subjects": "orders.>", **fields})


def test_a_duplicate_window_too_short_for_a_retry_is_refused() -> None:
    stream = _orders(duplicate_window=timedelta(seconds=9))

    assert (
        "duplicate_window of stream ORDERS (0:00:09) is below twice the ack timeout (0:00:10)"
        in refusal(JetStreamSettings, streams=[stream])
    )
    JetStreamSettings(streams=(stream,), pool=PoolSettings(ack_timeout=4.5))
    JetStreamSettings(streams=(stream,), dedupe=False)


def test_a_duplicate_window_is_no_longer_than_the_maximum_age() -> None:
    assert _orders().duplicate_window == timedelta(minutes=2)
    assert _orders(max_age=3_600).duplicate_window == timedelta(minutes=2)
    assert _orders(max_age=30).duplicate_window == timedelta(seconds=30)
    assert _orders(max_age=30, duplicate_window=20).duplicate_window == timedelta(seconds=20)
    with pytest.raises(ValidationError, match=r"\(0:01:00\) is above its max_age \(0:00:30\)"):
        _orders(max_age=30, duplicate_window=60)

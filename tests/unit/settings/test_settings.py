import json
import pickle
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from bytewax_jetstream.settings import JetStreamSettings, PoolSettings, StreamSettings

CANARY = "canary-4f1d"
PREFIX = "BYTEWAX_JETSTREAM_"


@pytest.fixture(autouse=True)
def _nothing_else_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory without `.env`, and an environment without our variables."""
    import os

    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)


def dotenv(*lines: str) -> None:
    Path(".env").write_text("\n".join(lines) + "\n")


def secrets(monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    directory = Path("secrets").absolute()
    directory.mkdir(exist_ok=True)
    for name, value in files.items():
        (directory / name).write_text(value + "\n")
    monkeypatch.setenv(PREFIX + "SECRETS_DIR", str(directory))


def refusal(**fields: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # pydantic's is one, and so is ours
        JetStreamSettings(**fields)
    return str(caught.value)


# Where they come from


def test_without_any_setting_a_local_server_is_meant() -> None:
    settings = JetStreamSettings()

    assert settings.servers == ("nats://127.0.0.1:4222",)
    assert settings.js_prefix == "$JS.API"
    assert not settings.wants_tls
    assert (
        settings.pool.budget_messages,
        settings.pool.ack_timeout,
        settings.pool.delivery_timeout,
    ) == (
        16_000,
        5,
        60,
    )


def test_variables_of_the_environment_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "SERVERS", "nats://a:4222, nats://b:4222 ,")
    monkeypatch.setenv(PREFIX + "USER", "bob")
    monkeypatch.setenv(PREFIX + "PASSWORD", CANARY)
    monkeypatch.setenv(PREFIX.lower() + "topics", "orders.new,bills")
    monkeypatch.setenv(PREFIX + "CONNECT_TIMEOUT", "2.5")
    settings = JetStreamSettings()

    assert settings.servers == ("nats://a:4222", "nats://b:4222")
    assert settings.topics == ("orders.new", "bills")
    assert settings.password == SecretStr(CANARY)
    assert settings.connect_timeout == 2.5


def test_a_dotenv_file_is_read() -> None:
    dotenv(
        "# ours",
        f"export {PREFIX}TOKEN='{CANARY}'",
        f"{PREFIX}TLS=true",
        f"{PREFIX}POOL_ACK_WORKERS=3",
    )
    settings = JetStreamSettings()

    assert settings.token == SecretStr(CANARY)
    assert settings.tls
    assert settings.pool.ack_workers == 3


@pytest.mark.parametrize("written_in", ["environment", ".env"])
def test_files_of_a_secrets_directory_are_read(
    monkeypatch: pytest.MonkeyPatch, written_in: str
) -> None:
    secrets(monkeypatch, bytewax_jetstream_user="bob", bytewax_jetstream_password=CANARY, other="x")
    if written_in == ".env":
        dotenv(f"{PREFIX}SECRETS_DIR=secrets")
        monkeypatch.delenv(PREFIX + "SECRETS_DIR")
    settings = JetStreamSettings()

    assert settings.password == SecretStr(CANARY)


def test_arguments_come_before_the_environment_before_dotenv_before_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secrets(
        monkeypatch,
        **{f"bytewax_jetstream_{name}": "secrets" for name in ("name", "domain", "token", "user")},
    )
    dotenv(*(f"{PREFIX}{name}=dotenv" for name in ("NAME", "DOMAIN", "TOKEN")))
    monkeypatch.setenv(PREFIX + "NAME", "environment")
    monkeypatch.setenv(PREFIX + "DOMAIN", "environment")
    settings = JetStreamSettings(name="argument", user=None)

    assert (settings.name, settings.domain) == ("argument", "environment")
    assert settings.token == SecretStr("dotenv")
    assert settings.user is None, "even an argument that is None"


def test_streams_are_written_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = {
        "name": "ORDERS",
        "subjects": "orders.>,bills",
        "max_age": "P1D",
        "duplicate_window": 300,
        "replicas": 3,
    }
    monkeypatch.setenv(PREFIX + "STREAMS", json.dumps([stream]))

    assert JetStreamSettings().streams == (
        StreamSettings(
            name="ORDERS",
            subjects=("orders.>", "bills"),
            max_age=timedelta(days=1),
            duplicate_window=timedelta(minutes=5),
            replicas=3,
        ),
    )


def test_the_pool_has_a_prefix_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "POOL_BUDGET_MESSAGES", "10")
    dotenv(f"{PREFIX}POOL_DELIVERY_TIMEOUT=30")

    assert PoolSettings().budget_messages == 10
    assert JetStreamSettings().pool == PoolSettings()
    assert JetStreamSettings(pool=PoolSettings(budget_messages=7)).pool.budget_messages == 7
    assert JetStreamSettings().pool.delivery_timeout == 30


# Misspelt ones


@pytest.mark.parametrize("kind", [JetStreamSettings, PoolSettings])
@pytest.mark.parametrize(
    "name",
    [
        "PASWORD",
        "POOL_ACK_TIMEUOT",
        "ACK_TIMEOUT",
        "POOL_",
        "",
        "KAFKA_BROKER",
        "SERVERS__0",
        "pasword",
    ],
)
@pytest.mark.parametrize("written_in", ["environment", ".env", "secrets"])
def test_a_misspelt_variable_is_an_error_that_names_it_and_not_its_value(
    monkeypatch: pytest.MonkeyPatch, kind: type[Any], name: str, written_in: str
) -> None:
    if written_in == "environment":
        monkeypatch.setenv(PREFIX + name, CANARY)
    elif written_in == ".env":
        dotenv(f"{PREFIX}{name}={CANARY}")
    else:
        secrets(monkeypatch, **{PREFIX + name: CANARY})
    with pytest.raises(
        ValueError, match=f"^unknown setting {PREFIX}{name}: correct the name or remove it; "
    ) as caught:
        kind()

    assert f"{PREFIX}PASSWORD" in str(caught.value), "what would be right is named, too"
    assert CANARY not in str(caught.value)


def test_all_misspelt_variables_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "B", "1")
    dotenv(f"{PREFIX}A=1")

    assert refusal().startswith(f"unknown setting {PREFIX}A, {PREFIX}B: ")


def test_other_peoples_variables_are_not_our_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYTEWAX_ADDRESSES", "x")
    monkeypatch.setenv("JETSTREAM_PASWORD", "x")
    secrets(monkeypatch, database_password="x")
    dotenv(
        "DATABASE_URL=postgres://x",
        "password=x",
        "SERVERS=x",
        "name=x",
        "",
        "# nothing",
        "POOL_ACK_WORKERS=x",
    )

    assert JetStreamSettings(pool=PoolSettings()) == JetStreamSettings()
    assert JetStreamSettings().name == "bytewax_jetstream"


def test_a_misspelt_argument_is_an_error() -> None:
    reason = refusal(pasword=CANARY)

    assert "pasword" in reason
    assert CANARY not in reason


@pytest.mark.parametrize("value", ["no/such/directory", "a-file"])
def test_a_secrets_directory_that_is_none_is_an_error(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    Path("a-file").touch()
    monkeypatch.setenv(PREFIX + "SECRETS_DIR", value)

    assert (
        refusal()
        == f"{PREFIX}SECRETS_DIR is {value}, which is no directory: make it, or correct the path"
    )


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
def test_what_is_wrong_is_said_without_what_was_written(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the sentence is not the point here
        JetStreamSettings(**fields)
    error: BaseException | None = caught.value
    while error is not None:
        assert CANARY not in str(error)
        assert CANARY not in repr(error)
        error = error.__cause__ or error.__context__


def test_a_variable_that_is_not_the_json_it_should_be_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(PREFIX + "STREAMS", f'[{{"name": "{CANARY}"')

    assert CANARY not in refusal()
    assert "streams" in refusal()


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
        in refusal(servers=server)
    )


@pytest.mark.parametrize("server", ["ws://host", "wss://host:443", "WSS://host"])
def test_websocket_servers_are_refused(server: str) -> None:
    assert (
        "WebSocket servers are not supported: use the server's nats:// or tls:// address"
        in refusal(servers=server)
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
def test_what_is_no_servers_address_is_refused(server: str) -> None:
    assert "a server is written nats://host:port or tls://host:port" in refusal(
        servers=("nats://good", server)
    )


@pytest.mark.parametrize(
    "server",
    ["host", "host:4222", "nats://host", "tls://host:4443", "nats://[::1]:4222", "10.0.0.1"],
)
def test_a_server_may_be_written_short(server: str) -> None:
    assert JetStreamSettings(servers=(server,)).servers == (server,)


@pytest.mark.parametrize("servers", ["", " , ", ()])
def test_at_least_one_server_is_needed(servers: Any) -> None:
    assert "name at least one server" in refusal(servers=servers)


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
        assert "give one way to authenticate" in refusal(**fields)


@pytest.mark.parametrize("fields", [{"user": "bob"}, {"password": "x"}])
def test_user_and_password_go_together(fields: dict[str, Any]) -> None:
    assert "user and password go together" in refusal(**fields)


@pytest.mark.parametrize("fields", [{"tls_cert_file": "a"}, {"tls_key_file": "a"}])
def test_certificate_and_key_go_together(fields: dict[str, Any]) -> None:
    assert "tls_cert_file and tls_key_file go together" in refusal(**fields)


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


def test_domain_and_api_prefix_say_where_the_api_is() -> None:
    assert JetStreamSettings(domain="hub").js_prefix == "$JS.hub.API"
    assert JetStreamSettings(api_prefix="imported.js").js_prefix == "imported.js"
    assert "give domain or api_prefix, not both" in refusal(domain="hub", api_prefix="x")


# Numbers and streams


@pytest.mark.parametrize(
    "fields",
    [
        {"ack_workers": 0},
        {"budget_messages": -1},
        {"budget_bytes": "many"},
        {"ack_timeout": 0},
        {"delivery_timeout": float("inf")},
        {"drain_timeout": float("nan")},
    ],
)
def test_a_size_or_deadline_that_cannot_work_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        PoolSettings(**fields)


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
def test_a_stream_that_cannot_be_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        StreamSettings(**{"name": "ORDERS", "subjects": "orders.>", **fields})


def test_a_duplicate_window_shorter_than_a_delivery_is_refused() -> None:
    stream = StreamSettings(
        name="ORDERS", subjects=("orders.>",), duplicate_window=timedelta(seconds=59)
    )

    assert (
        "duplicate_window of stream ORDERS (0:00:59) is below the delivery timeout (0:01:00)"
        in refusal(streams=[stream])
    )
    JetStreamSettings(streams=(stream,), pool=PoolSettings(delivery_timeout=59))


def test_ack_workers_are_twice_the_cpus_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert PoolSettings().ack_workers == 12
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert PoolSettings().ack_workers == 2

"""Where settings come from, in which order, and what a misspelt one says."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from bytewax_jetstream.settings import JetStreamSettings, PoolSettings, StreamSettings
from tests.support.settings import CANARY, PREFIX, dotenv, refusal, secrets

# Where they come from


def test_default_server_is_a_local_one() -> None:
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

    assert refusal(JetStreamSettings).startswith(f"unknown setting {PREFIX}A, {PREFIX}B: ")


def test_variables_without_our_prefix_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
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
    reason = refusal(JetStreamSettings, pasword=CANARY)

    assert "pasword" in reason
    assert CANARY not in reason


@pytest.mark.parametrize("value", ["no/such/directory", "a-file"])
def test_invalid_secrets_directory_is_an_error(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    Path("a-file").touch()
    monkeypatch.setenv(PREFIX + "SECRETS_DIR", value)

    assert (
        refusal(JetStreamSettings) == f"{PREFIX}SECRETS_DIR is {value}, which is not a directory: "
        "create it, or correct the path"
    )


def test_variable_with_invalid_json_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(PREFIX + "STREAMS", f'[{{"name": "{CANARY}"')

    assert CANARY not in refusal(JetStreamSettings)
    assert "streams" in refusal(JetStreamSettings)

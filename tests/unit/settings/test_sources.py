"""Where settings come from, in which order, and what a misspelt one says."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from bytewax_jetstream.settings import (
    JetStreamSettings,
    KafkaSettings,
    PoolSettings,
    StreamSettings,
)
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


# Line ends, and values that are empty

SECRETS: list[tuple[type[Any], str, dict[str, str]]] = [
    (JetStreamSettings, "password", {"user": "bob"}),
    (JetStreamSettings, "token", {}),
    (JetStreamSettings, "nkey_seed", {}),
    (KafkaSettings, "password", {"user": "bob", "sasl": "PLAIN"}),
    (KafkaSettings, "tls_key_password", {}),
]


def _write(monkeypatch: pytest.MonkeyPatch, written_in: str, name: str, value: str) -> None:
    if written_in == "environment":
        monkeypatch.setenv(name, value)
    elif written_in == ".env":
        dotenv(f'{name}="{value}"')
    else:
        secrets(monkeypatch, **{name: value})


@pytest.mark.parametrize(("kind", "field", "others"), SECRETS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("written_in", ["environment", ".env", "secrets", "argument", "secret"])
def test_secret_ends_before_its_line_end_and_keeps_its_blanks(
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Any],
    field: str,
    others: dict[str, str],
    end: str,
    written_in: str,
) -> None:
    value: Any = f" {CANARY} {end}"
    arguments: dict[str, Any] = dict(others)
    if written_in == "argument":
        arguments[field] = value
    elif written_in == "secret":
        arguments[field] = SecretStr(value)
    else:
        name = str(kind.model_config["env_prefix"]) + field.upper()
        _write(monkeypatch, written_in, name, value)

    secret = getattr(kind(**arguments), field)

    assert secret.get_secret_value() == f" {CANARY} "


def test_a_line_end_belongs_to_no_other_value_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "USER", "bob\n")
    monkeypatch.setenv(PREFIX + "PASSWORD", "x")
    monkeypatch.setenv(PREFIX + "TLS_CA_FILE", "ca.pem\r\n")
    monkeypatch.setenv(PREFIX + "TLS", "true\n")
    settings = JetStreamSettings(servers=("nats://a:4222\n",))

    assert settings.user == "bob"
    assert settings.tls_ca_file == Path("ca.pem")
    assert settings.tls
    assert settings.servers == ("nats://a:4222",)


@pytest.mark.parametrize("kind", [JetStreamSettings, KafkaSettings, PoolSettings])
@pytest.mark.parametrize("value", ["", " ", "\n"])
@pytest.mark.parametrize("written_in", ["environment", ".env", "secrets"])
def test_empty_variables_are_as_if_unset(
    monkeypatch: pytest.MonkeyPatch, kind: type[Any], value: str, written_in: str
) -> None:
    defaults = kind()
    for field in kind.model_fields:
        if field != "pool":
            name = str(kind.model_config["env_prefix"]) + field.upper()
            _write(monkeypatch, written_in, name, value)

    settings = kind()

    assert settings == defaults
    assert not getattr(settings, "wants_tls", False)


def test_an_empty_variable_does_not_hide_the_next_source(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets(monkeypatch, bytewax_jetstream_name="from a file")
    dotenv(f"{PREFIX}NAME=", f"{PREFIX}TOKEN={CANARY}")
    monkeypatch.setenv(PREFIX + "TOKEN", "")

    assert JetStreamSettings().token == SecretStr(CANARY)
    assert JetStreamSettings().name == "from a file"


def test_a_token_may_be_empty_beside_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "TOKEN", "")
    monkeypatch.setenv(PREFIX + "USER", "bob")
    monkeypatch.setenv(PREFIX + "PASSWORD", CANARY)

    assert JetStreamSettings().token is None


@pytest.mark.parametrize(
    "fields",
    [
        {"tls_ca_file": ""},
        {"nkey_seed": SecretStr("")},
        {"user": "", "password": ""},
        {"token": "", "domain": "", "tls_hostname": ""},
    ],
)
def test_optional_arguments_may_be_empty(fields: dict[str, Any]) -> None:
    assert JetStreamSettings(**fields) == JetStreamSettings()


# Services of Kubernetes


def _service(name: str, host: str = "10.0.0.1") -> dict[str, str]:
    """What Kubernetes sets in every container for a Service."""
    at = f"[{host}]" if ":" in host else host
    return {
        f"{name}_SERVICE_HOST": host,
        f"{name}_SERVICE_PORT": "4222",
        f"{name}_SERVICE_PORT_CLIENT_TLS": "4222",
        f"{name}_PORT": f"tcp://{at}:4222",
        f"{name}_PORT_4222_TCP": f"tcp://{at}:4222",
        f"{name}_PORT_4222_TCP_PROTO": "tcp",
        f"{name}_PORT_4222_TCP_PORT": "4222",
        f"{name}_PORT_4222_TCP_ADDR": host,
    }


@pytest.mark.parametrize("kind", [JetStreamSettings, KafkaSettings, PoolSettings])
@pytest.mark.parametrize("host", ["10.0.0.1", "fd00::1"])
@pytest.mark.parametrize(
    "name",
    [
        "BYTEWAX_JETSTREAM",
        "BYTEWAX_JETSTREAM_NATS",
        "BYTEWAX_JETSTREAM_KAFKA",
        "BYTEWAX_JETSTREAM_POOL",
        "BYTEWAX_JETSTREAM_KAFKA_BROKERS",
    ],
)
def test_variables_of_a_kubernetes_service_are_ignored(
    monkeypatch: pytest.MonkeyPatch, kind: type[Any], host: str, name: str
) -> None:
    defaults = kind()
    for variable, value in _service(name, host).items():
        monkeypatch.setenv(variable, value)

    assert kind() == defaults


@pytest.mark.parametrize("name", _service("BYTEWAX_JETSTREAM"))
def test_a_variable_of_a_service_alone_is_a_misspelt_setting(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, _service("BYTEWAX_JETSTREAM")[name])

    assert f"unknown setting {name}" in refusal(JetStreamSettings)


def test_a_port_that_is_no_service_is_a_misspelt_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv(PREFIX + "PORT", "4222")

    assert f"unknown setting {PREFIX}PORT, {PREFIX}SERVICE_HOST" in refusal(JetStreamSettings)


def test_misspelt_variable_beside_a_service_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in _service("BYTEWAX_JETSTREAM").items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv(PREFIX + "SERVER", "nats://a")

    assert refusal(JetStreamSettings).startswith(
        f"unknown setting {PREFIX}SERVER (the nearest is {PREFIX}SERVERS): "
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
        ValueError,
        match=rf"^unknown setting {PREFIX}{name}( \(the nearest is \w+\))?: correct the name or ",
    ) as caught:
        kind()

    assert CANARY not in str(caught.value)


def test_all_misspelt_variables_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "B", "1")
    dotenv(f"{PREFIX}A=1")

    assert refusal(JetStreamSettings).startswith(f"unknown setting {PREFIX}A, {PREFIX}B")


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


# Replaced while a process runs


def test_secrets_of_the_directory_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = secrets(monkeypatch, **{PREFIX + "USER": "amy\n", PREFIX + "PASSWORD": "first\n"})
    settings = JetStreamSettings()
    assert settings.renewed() is settings
    (folder / f"{PREFIX}PASSWORD").write_text("second\n")

    renewed = settings.renewed()

    assert renewed.user == "amy"
    assert renewed.password == SecretStr("second")
    assert settings.password == SecretStr("first")
    assert renewed.renewed() is renewed
    assert (renewed.pool, renewed.servers) == (settings.pool, settings.servers)


def test_a_secret_that_cannot_be_read_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = secrets(monkeypatch, **{PREFIX + "TOKEN": "first"})
    settings = JetStreamSettings()
    (folder / f"{PREFIX}TOKEN").unlink()

    assert settings.renewed() is settings
    (folder / f"{PREFIX}TOKEN").write_text("\n")
    assert settings.renewed() is settings


def test_a_secret_that_came_from_elsewhere_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = secrets(monkeypatch, **{PREFIX + "TOKEN": "of the file"})
    settings = JetStreamSettings(token=SecretStr("of the program"))
    (folder / f"{PREFIX}TOKEN").write_text("another")

    assert settings.renewed() is settings

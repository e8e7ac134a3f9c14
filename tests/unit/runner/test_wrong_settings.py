"""Wrong settings are one sentence that names the variable, for every settings class."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from bytewax_jetstream.runner.wrong_settings import settings_error
from bytewax_jetstream.settings import (
    JetStreamSettings,
    KafkaSettings,
    PoolSettings,
    RunSettings,
    TracingSettings,
)


class OrderSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="ORDERS_")

    topic: str
    limits: dict[str, int] = {}


class Elsewhere:
    class OrderSettings(BaseSettings):
        model_config = SettingsConfigDict(env_prefix="ELSEWHERE_")

        place: int = 1


class Plain(BaseModel):
    number: int


def _said(cls: Any, **values: Any) -> str:
    with pytest.raises((ValidationError, SettingsError)) as raised:
        cls(**values)
    assert isinstance(raised.value, ValidationError | SettingsError)
    said = settings_error(raised.value)
    assert "\n" not in said
    return said


FIELDS = [
    (cls, name)
    for cls in (PoolSettings, RunSettings, JetStreamSettings, KafkaSettings, TracingSettings)
    for name, field in cls.model_fields.items()
    if field.annotation not in (str, str | None)
]


@pytest.mark.parametrize(
    ("cls", "name"), FIELDS, ids=[f"{cls.__name__}.{name}" for cls, name in FIELDS]
)
def test_a_wrong_value_of_any_setting_names_its_variable(cls: Any, name: str) -> None:
    prefix = str(cls.model_config["env_prefix"])

    assert f"{prefix}{name}".upper() in _said(cls, **{name: object()})


@pytest.mark.parametrize(
    ("cls", "values", "said"),
    [
        (
            PoolSettings,
            {"ack_workers": "many"},
            "unable to parse string as an integer): correct it",
        ),
        (
            JetStreamSettings,
            {"pool": {"ack_workers": 0}},
            "BYTEWAX_JETSTREAM_POOL_ACK_WORKERS cannot be used (input should be greater than 0)",
        ),
        (
            JetStreamSettings,
            {"streams": [{"name": "A", "subjects": ["a"]}, {"subjects": ["b"]}]},
            "BYTEWAX_JETSTREAM_STREAMS, 1, name is missing: set it",
        ),
        (JetStreamSettings, {"serves": "a"}, "BYTEWAX_JETSTREAM_SERVES is not a setting"),
        (JetStreamSettings, {"user": "amy"}, "user and password go together: give both or neither"),
        (
            KafkaSettings,
            {"brokers": "a"},
            "BYTEWAX_JETSTREAM_KAFKA_BROKERS: invalid broker address: write host:port",
        ),
        (OrderSettings, {}, "ORDERS_TOPIC is missing: set it"),
        (Elsewhere.OrderSettings, {"place": "x"}, "ELSEWHERE_PLACE cannot be used"),
        (Plain, {"number": "x"}, "NUMBER cannot be used"),
    ],
)
def test_the_sentence_says_what_to_do(cls: Any, values: dict[str, Any], said: str) -> None:
    assert said in _said(cls, **values)


def test_a_secret_is_not_shown() -> None:
    said = _said(KafkaSettings, password=["canary"], user="amy")

    assert "BYTEWAX_JETSTREAM_KAFKA_PASSWORD" in said
    assert "canary" not in said


def test_a_variable_that_should_be_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERS_LIMITS", "{canary")

    said = _said(OrderSettings, topic="a")

    assert said.startswith("ORDERS_LIMITS is not valid JSON: correct it")
    assert "canary" not in said

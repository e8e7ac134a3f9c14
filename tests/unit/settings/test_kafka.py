"""What the settings of Kafka accept, and that no secret is shown."""

import pickle
from typing import Any

import pytest
from pydantic import SecretStr

from bytewax_jetstream.kafka.publisher import KafkaPublisher
from bytewax_jetstream.settings import KafkaSettings, KafkaTopicSettings
from tests.support.settings import CANARY, refusal

PREFIX = "BYTEWAX_JETSTREAM_KAFKA_"


def test_variables_with_the_prefix_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "BROKERS", "k1:9092, k2:9092")
    monkeypatch.setenv(PREFIX + "TOPICS", "orders,returns")
    monkeypatch.setenv(PREFIX + "TOPIC_SETTINGS", '[{"name": "orders", "partitions": 3}]')

    settings = KafkaSettings()

    assert settings.brokers == ("k1:9092", "k2:9092")
    assert settings.topics == ("orders", "returns")
    assert settings.topic_settings == (KafkaTopicSettings(name="orders", partitions=3),)


def test_a_misspelt_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "BROKER", "k1:9092")

    assert f"unknown setting {PREFIX}BROKER" in refusal(KafkaSettings)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"brokers": ()}, "name at least one broker"),
        ({"brokers": ("kafka",)}, "invalid broker address: write host:port"),
        ({"brokers": ("kafka://k:9092",)}, "invalid broker address: write host:port"),
        ({"brokers": (f"me:{CANARY}@k:9092",)}, "credentials in a broker's address end up in logs"),
        ({"sasl": "PLAIN"}, "sasl, user and password go together"),
        ({"user": "me", "password": CANARY}, "sasl, user and password go together"),
        (
            {"sasl": "OAUTHBEARER", "user": "me", "password": CANARY},
            "OAUTHBEARER needs oauth_token_url",
        ),
        ({"oauth_client_id": "me"}, "need sasl=OAUTHBEARER"),
        ({"tls_cert_file": "cert.pem"}, "tls_cert_file and tls_key_file go together"),
        ({"linger": 40}, "linger (40 s) must be below half of the pool's delivery_timeout (60 s)"),
        (
            {"add_config": {"enable.idempotence": False}},
            "enable.idempotence in add_config would break a guarantee",
        ),
        (
            {"add_config": {"acks": "1", "retries": 0}},
            "acks, retries in add_config would break a guarantee",
        ),
        ({"add_config": {"error_cb": "x"}}, "error_cb in add_config would break a guarantee"),
        ({"topic_settings": ({"name": "a b"},)}, "String should match pattern"),
        (
            {"topic_settings": ({"name": "a", "replicas": 1, "min_insync_replicas": 2},)},
            "could not store a message",
        ),
    ],
)
def test_invalid_settings_are_one_clear_error_without_a_secret(
    fields: dict[str, Any], says: str
) -> None:
    said = refusal(KafkaSettings, **fields)

    assert says in said
    assert CANARY not in said


def test_secrets_are_never_shown() -> None:
    settings = KafkaSettings(
        sasl="SCRAM-SHA-512",
        user="me",
        password=SecretStr(CANARY),
        tls_key_password=SecretStr(CANARY),
        add_config={"ssl.keystore.password": CANARY},
    )

    assert CANARY not in repr(settings) + str(settings) + repr(KafkaPublisher(settings))


def test_settings_survive_pickling_and_equal_ones_share_a_producer() -> None:
    settings = KafkaSettings(add_config={"b": 1, "a": "x"})
    other = KafkaSettings(add_config={"a": "x", "b": 1})

    assert pickle.loads(pickle.dumps(settings)) == settings
    assert KafkaPublisher(settings).identity == KafkaPublisher(other).identity
    assert hash(KafkaPublisher(settings).identity) == hash(KafkaPublisher(other).identity)
    assert KafkaPublisher(settings).identity != KafkaPublisher(KafkaSettings()).identity

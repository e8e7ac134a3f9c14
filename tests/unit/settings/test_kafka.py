"""What the settings of Kafka accept, and that no secret is shown."""

import pickle
from typing import Any

import pytest
from pydantic import SecretStr

from bytewax_jetstream.kafka.config import connection
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
        (
            {"add_config": {"partitioner": "random"}},
            "partitioner 'random' in add_config would break the order of an aggregate",
        ),
        ({"add_config": {"partitioner": "murmur3"}}, "use one of consistent, consistent_random,"),
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


TLS: list[dict[str, Any]] = [
    {"tls": True},
    {"tls_ca_file": "ca.pem"},
    {"tls_cert_file": "cert.pem", "tls_key_file": "key.pem"},
]
SASL = {"sasl": "PLAIN", "user": "me", "password": CANARY}


@pytest.mark.parametrize("tls", TLS)
@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"security.protocol": "PLAINTEXT"}, "would turn off TLS, which the settings require"),
        ({"security.protocol": "sasl_plaintext"}, "would turn off TLS"),
        ({"enable.ssl.certificate.verification": False}, "would turn off the verification"),
        ({"enable.ssl.certificate.verification": "False"}, "would turn off the verification"),
        ({"enable.ssl.certificate.verification": 0}, "would turn off the verification"),
        ({"ssl.endpoint.identification.algorithm": "None"}, "would turn off the verification"),
    ],
)
def test_add_config_cannot_undo_tls(tls: dict[str, Any], config: dict[str, Any], says: str) -> None:
    said = refusal(KafkaSettings, **tls, add_config=config)

    assert f"{next(iter(config))} in add_config {says}" in said


@pytest.mark.parametrize("protocol", ["SSL", "plaintext"])
def test_add_config_cannot_undo_authentication(protocol: str) -> None:
    said = refusal(KafkaSettings, **SASL, add_config={"security.protocol": protocol})

    assert "security.protocol in add_config would turn off authentication" in said


@pytest.mark.parametrize(
    ("fields", "name", "field"),
    [
        ({"tls_ca_file": "ca.pem"}, "ssl.ca.location", "tls_ca_file"),
        ({"tls_ca_file": "ca.pem"}, "ssl.ca.pem", "tls_ca_file"),
        (TLS[2], "ssl.key.location", "tls_key_file"),
        (SASL, "sasl.mechanism", "sasl"),
        (SASL, "sasl.password", "password"),
    ],
)
def test_add_config_cannot_replace_a_field_of_security(
    fields: dict[str, Any], name: str, field: str
) -> None:
    said = refusal(KafkaSettings, **fields, add_config={name: "other-secret"})

    assert f"{name} in add_config would replace {field}: leave one of them out" in said
    assert "other-secret" not in said


@pytest.mark.parametrize(
    ("fields", "config"),
    [
        ({"tls": True}, {"security.protocol": "SSL"}),
        ({"tls": True}, {"security.protocol": "SASL_SSL", "sasl.mechanism": "GSSAPI"}),
        ({"tls": True}, {"enable.ssl.certificate.verification": "true"}),
        ({"tls": True}, {"ssl.endpoint.identification.algorithm": "https"}),
        ({"tls": True}, {"ssl.ca.pem": "x"}),
        (SASL, {"security.protocol": "SASL_SSL"}),
        ({}, {"security.protocol": "SSL", "enable.ssl.certificate.verification": False}),
    ],
)
def test_add_config_may_add_to_security(fields: dict[str, Any], config: dict[str, Any]) -> None:
    assert connection(KafkaSettings(**fields, add_config=config)).items() >= config.items()


def test_secrets_are_never_shown() -> None:
    settings = KafkaSettings(
        sasl="SCRAM-SHA-512",
        user="me",
        password=SecretStr(CANARY),
        tls_key_password=SecretStr(CANARY),
        add_config={"ssl.keystore.password": CANARY},
    )

    publisher = KafkaPublisher(settings)
    shown = (repr(settings), str(settings), repr(publisher.identity), str(publisher.statistics()))
    assert not any(CANARY in text for text in shown)


def test_settings_survive_pickling_and_equal_ones_share_a_producer() -> None:
    settings = KafkaSettings(add_config={"b": 1, "a": "x"})
    other = KafkaSettings(add_config={"a": "x", "b": 1})

    assert pickle.loads(pickle.dumps(settings)) == settings
    assert KafkaPublisher(settings).identity == KafkaPublisher(other).identity
    assert hash(KafkaPublisher(settings).identity) == hash(KafkaPublisher(other).identity)
    assert KafkaPublisher(settings).identity != KafkaPublisher(KafkaSettings()).identity

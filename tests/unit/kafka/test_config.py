import pickle
from typing import Any

import pytest
from pydantic import SecretStr

from bytewax_jetstream.kafka.config import connection, producer
from bytewax_jetstream.kafka.publisher import KafkaPublisher
from bytewax_jetstream.settings import KafkaSettings, KafkaTopicSettings, PoolSettings

CANARY = "canary-90ab"
PREFIX = "BYTEWAX_JETSTREAM_KAFKA_"


def refusal(**fields: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # pydantic's is one
        KafkaSettings(**fields)
    return str(caught.value)


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

    assert f"unknown setting {PREFIX}BROKER" in refusal()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"brokers": ()}, "name at least one broker"),
        ({"brokers": ("kafka",)}, "a broker is written host:port"),
        ({"brokers": ("kafka://k:9092",)}, "a broker is written host:port"),
        ({"brokers": (f"me:{CANARY}@k:9092",)}, "credentials in a broker's address end up in logs"),
        ({"sasl": "PLAIN"}, "sasl, user and password go together"),
        ({"user": "me", "password": CANARY}, "sasl, user and password go together"),
        (
            {"sasl": "OAUTHBEARER", "user": "me", "password": CANARY},
            "OAUTHBEARER takes oauth_token_url",
        ),
        ({"oauth_client_id": "me"}, "need sasl=OAUTHBEARER"),
        ({"tls_cert_file": "cert.pem"}, "tls_cert_file and tls_key_file go together"),
        ({"linger": 40}, "linger is not below half the pool's delivery_timeout"),
        (
            {"add_config": {"enable.idempotence": False}},
            "enable.idempotence in add_config would break a promise",
        ),
        (
            {"add_config": {"acks": "1", "retries": 0}},
            "acks, retries in add_config would break a promise",
        ),
        ({"add_config": {"error_cb": "x"}}, "error_cb in add_config would break a promise"),
        ({"topic_settings": ({"name": "a b"},)}, "String should match pattern"),
        (
            {"topic_settings": ({"name": "a", "replicas": 1, "min_insync_replicas": 2},)},
            "could not take a message",
        ),
    ],
)
def test_what_cannot_work_is_one_sentence_without_a_secret(
    fields: dict[str, Any], says: str
) -> None:
    said = refusal(**fields)

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


@pytest.mark.parametrize(
    ("fields", "protocol"),
    [
        ({}, "PLAINTEXT"),
        ({"tls": True}, "SSL"),
        ({"tls_ca_file": "ca.pem"}, "SSL"),
        ({"tls_cert_file": "cert.pem", "tls_key_file": "key.pem"}, "SSL"),
        ({"sasl": "PLAIN", "user": "me", "password": "x"}, "SASL_PLAINTEXT"),
        ({"sasl": "SCRAM-SHA-256", "user": "me", "password": "x", "tls": True}, "SASL_SSL"),
    ],
)
def test_security_is_what_the_fields_say(fields: dict[str, Any], protocol: str) -> None:
    config = connection(KafkaSettings(**fields))

    assert config["security.protocol"] == protocol
    assert config.get("sasl.mechanisms") == fields.get("sasl")


def test_oauth_is_librdkafkas_own() -> None:
    config = connection(
        KafkaSettings(
            tls=True,
            sasl="OAUTHBEARER",
            oauth_token_url="https://id.example/token",
            oauth_client_id="me",
            oauth_client_secret=SecretStr("x"),
            oauth_scope="kafka",
        )
    )

    assert config["security.protocol"] == "SASL_SSL"
    assert config["sasl.oauthbearer.method"] == "oidc"
    assert config["sasl.oauthbearer.client.secret"] == "x"
    assert config["sasl.oauthbearer.scope"] == "kafka"


def test_a_producer_keeps_the_promises_and_gives_up_before_the_delivery_timeout() -> None:
    config = producer(KafkaSettings(add_config={"linger.ms": 7, "partitioner": "murmur2_random"}))

    assert config["enable.idempotence"] is True
    assert config["acks"] == "all"
    assert config["allow.auto.create.topics"] is False
    assert config["message.timeout.ms"] == 59_000
    assert config["linger.ms"] == 7
    assert config["partitioner"] == "murmur2_random"
    quick = producer(KafkaSettings(pool=PoolSettings(delivery_timeout=1)))
    assert quick["message.timeout.ms"] == 500

"""What a Kafka client is configured with."""

from typing import Any

import pytest
from pydantic import SecretStr

from bytewax_jetstream.kafka.config import connection, producer
from bytewax_jetstream.settings import KafkaSettings


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
def test_security_protocol_follows_from_the_fields(fields: dict[str, Any], protocol: str) -> None:
    config = connection(KafkaSettings(**fields))

    assert config["security.protocol"] == protocol
    assert config.get("sasl.mechanisms") == fields.get("sasl")


def test_oauth_is_left_to_librdkafka() -> None:
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


def test_a_producer_keeps_the_promises_and_gives_no_message_up() -> None:
    config = producer(KafkaSettings(add_config={"linger.ms": 7, "partitioner": "murmur2_random"}))

    assert config["enable.idempotence"] is True
    assert config["acks"] == "all"
    assert config["allow.auto.create.topics"] is False
    assert config["message.timeout.ms"] == 0
    assert config["linger.ms"] == 7
    assert config["partitioner"] == "murmur2_random"


def test_producer_stops_at_a_refused_request_unless_messages_go_alone() -> None:
    settings = KafkaSettings(add_config={"batch.num.messages": 50})
    together, alone = producer(settings), producer(settings, alone=True)

    assert together["enable.gapless.guarantee"] is True
    assert together["batch.num.messages"] == 50
    assert alone["enable.gapless.guarantee"] is False
    assert alone["batch.num.messages"] == 1
    assert together.keys() == alone.keys()


def test_lines_about_closed_connections_cannot_be_turned_off() -> None:
    quiet = KafkaSettings(add_config={"log.connection.close": False, "log_level": 3})

    assert producer(quiet)["log.connection.close"] is True
    assert producer(quiet)["log_level"] == 6
    assert producer(KafkaSettings(add_config={"log_level": 7}))["log_level"] == 7


def test_keys_go_to_partitions_as_the_java_client_sends_them_unless_set_otherwise() -> None:
    assert producer(KafkaSettings())["partitioner"] == "murmur2_random"
    other = KafkaSettings(add_config={"partitioner": "consistent_random"})
    assert producer(other)["partitioner"] == "consistent_random"

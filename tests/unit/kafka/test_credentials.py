"""A password that was replaced is used, without a call from a callback of librdkafka."""

import time
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, Producer

from bytewax_jetstream.kafka.credentials import Credentials
from bytewax_jetstream.settings import KafkaSettings

PASSWORD = "BYTEWAX_JETSTREAM_KAFKA_PASSWORD"


class Client:
    """Stands for one of librdkafka's."""

    def __init__(self) -> None:
        self.given: list[tuple[str, str]] = []

    def set_sasl_credentials(self, user: str, password: str) -> None:
        self.given.append((user, password))


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Credentials:
    monkeypatch.setenv("BYTEWAX_JETSTREAM_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("BYTEWAX_JETSTREAM_KAFKA_USER", "amy")
    monkeypatch.setenv("BYTEWAX_JETSTREAM_KAFKA_SASL", "SCRAM-SHA-512")
    (tmp_path / PASSWORD).write_text("first")
    return Credentials(KafkaSettings())


def test_password_that_was_replaced_is_given_once_when_the_old_one_is_refused(
    credentials: Credentials, tmp_path: Path
) -> None:
    client, refusal = Client(), KafkaError(KafkaError.SASL_AUTHENTICATION_FAILED)
    credentials.renew(client)
    credentials.note(refusal)
    credentials.renew(client)
    assert client.given == [], "there is no other"

    (tmp_path / PASSWORD).write_text("second")
    credentials.renew(client)
    credentials.note(KafkaError(KafkaError._TRANSPORT))
    credentials.renew(client)
    assert client.given == [], "nobody has refused the first"

    credentials.note(refusal)
    credentials.note(refusal)
    for _ in range(2):
        credentials.renew(client)
    assert client.given == [("amy", "second")]


def test_refusals_that_come_together_do_not_end_the_process(
    credentials: Credentials, tmp_path: Path
) -> None:
    heard = []

    def on_error(error: KafkaError) -> None:
        heard.append(error.code())
        credentials.note(KafkaError(KafkaError.SASL_AUTHENTICATION_FAILED))

    (tmp_path / PASSWORD).write_text("second")
    producer = Producer(
        {
            "bootstrap.servers": "127.0.0.1:1,127.0.0.1:2,127.0.0.1:3",  # nobody is there
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": "amy",
            "sasl.password": "first",
            "error_cb": on_error,
            "log_level": 0,
        }
    )
    deadline = time.monotonic() + 60
    while len(heard) < 4 and time.monotonic() < deadline:
        producer.poll(0.1)
        credentials.renew(producer)

    assert len(heard) >= 4

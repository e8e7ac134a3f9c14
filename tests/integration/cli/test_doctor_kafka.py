"""`doctor` beside real Kafka brokers, healthy and not; each failing step says what to do."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bytewax_jetstream.testing import KafkaServer, NatsServer
from tests.support.certificates import Certificates
from tests.support.commands import Given, call
from tests.support.doctor import doctor, failure, only
from tests.support.kafka import make_topic, new_topic, records
from tests.support.kafka_rights import DESCRIBE, WRITE, allow, asking_for_passwords
from tests.support.processes import free_port


@pytest.fixture(scope="module")
def guarded() -> Iterator[KafkaServer]:
    with asking_for_passwords() as server:
        yield server


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates") / "ours")


@pytest.fixture(scope="module")
def encrypted(ours: Certificates) -> Iterator[KafkaServer]:
    config = "\n".join(ours.listener()) + "\n"
    with KafkaServer(protocol="SSL", config=config) as server:
        yield server


def test_every_step_passes_where_a_flow_could_publish(kafka_address: str, given: Given) -> None:
    topic = new_topic(kafka_address)
    given(kafka_brokers=kafka_address, kafka_topics=topic)
    given(kafka_topic_settings=[{"name": f"{topic}-new", "partitions": 2}])

    steps = doctor(0)

    assert {step["broker"] for step in steps} == {"kafka"}
    passed = [step["step"] for step in steps if step["status"] == "ok"]
    assert list(dict.fromkeys(passed)) == [
        *("settings", "name", "tcp", "server", "authentication", "brokers", "publish"),
        *("topics", "limits"),
    ]
    assert f"topic {topic}-new is missing, and the run will create it" in str(steps)
    assert "missing" in call("streams", "check").err, "doctor has made the topic"
    assert records(kafka_address, topic) == []


def test_both_brokers_are_looked_at_and_the_gravest_code_is_returned(
    nats_server: NatsServer, given: Given
) -> None:
    given(servers=nats_server.url, kafka_brokers="127.0.0.1:9")

    steps = doctor(3)
    alone = doctor(0, "--broker", "jetstream")

    assert {step["broker"] for step in steps} == {"jetstream", "kafka"}
    assert {step["broker"] for step in alone} == {"jetstream"}
    assert "check that the server is running" in failure(3, "tcp", "--broker", "kafka")


def test_port_that_is_not_kafka_is_named(nats_server: NatsServer, given: Given) -> None:
    given(kafka_brokers=nats_server.url.removeprefix("nats://"))

    said = failure(3, "server")

    assert "it is not a Kafka broker: it says 'INFO {" in said
    assert "correct the port" in said


def test_kafka_port_is_not_a_nats_server(kafka_address: str, given: Given) -> None:
    given(servers=f"nats://{kafka_address}", connect_timeout=1)

    assert "correct the port" in failure(3, "server")


def test_broker_that_sends_clients_elsewhere_is_named(given: Given) -> None:
    nobody = free_port()
    with KafkaServer(proxied_as=nobody) as server:
        given(kafka_brokers=server.proxied)

        said = failure(3, "brokers")

    assert f"broker 1 sends its clients to 127.0.0.1:{nobody}" in said
    assert "correct its advertised.listeners" in said


# TLS


def test_certificate_that_is_fine_says_until_when(
    encrypted: KafkaServer, ours: Certificates, given: Given
) -> None:
    given(kafka_brokers=encrypted.bootstrap, kafka_tls_ca_file=ours.ca)

    assert "the certificate is valid for 127.0.0.1 until" in only(doctor(0), "tls", "ok")["said"]


@pytest.mark.parametrize(
    ("settings", "code", "step", "says"),
    [
        ({}, 2, "server", "it speaks TLS, and the settings do not ask for it -> set tls"),
        ({"kafka_tls": True}, 4, "tls", "is not trusted"),
        ({"kafka_tls_ca_file": "absent.pem"}, 2, "tls", "correct tls_ca_file"),
    ],
    ids=["not asked for", "unknown authority", "no file"],
)
def test_tls_that_does_not_fit_is_explained(
    encrypted: KafkaServer,
    given: Given,
    settings: dict[str, Any],
    code: int,
    step: str,
    says: str,
) -> None:
    given(kafka_brokers=encrypted.bootstrap, **settings)

    assert says in failure(code, step)


def test_broker_without_tls_is_explained(kafka_address: str, given: Given) -> None:
    given(kafka_brokers=kafka_address, kafka_tls=True)

    assert "check that the server speaks TLS on this port" in failure(4, "tls")


# Who is let in, and to what


@pytest.mark.parametrize(
    ("password", "says"),
    [
        ("wrong-canary", "correct sasl, user and password in the settings"),
        (None, "if the brokers ask for a password, set sasl, user and password"),
    ],
)
def test_credentials_that_are_refused_are_named_and_not_shown(
    guarded: KafkaServer, given: Given, password: str | None, says: str
) -> None:
    given(kafka_brokers=guarded.bootstrap, kafka_connect_timeout=8)
    if password is not None:
        given(kafka_sasl="PLAIN", kafka_user="amy", kafka_password=password)

    said = failure(4, "authentication")

    assert says in said
    assert "canary" not in said


def test_permission_that_is_missing_is_named(guarded: KafkaServer, given: Given) -> None:
    for topic in ("allowed", "hidden", "seen"):
        make_topic(guarded.internal, topic, partitions=1)
    allow(guarded, "allowed", WRITE, DESCRIBE)
    allow(guarded, "seen", DESCRIBE)
    given(kafka_brokers=guarded.bootstrap, kafka_sasl="PLAIN")
    given(kafka_user="bob", kafka_password="bob", kafka_topics="allowed")
    assert only(doctor(0), "publish", "ok")["said"] == "this user may write to allowed"

    for topic in ("seen", "hidden"):
        given(kafka_topics=topic)
        steps = doctor(4)
        said = only(steps, "publish", "failed")
        assert said["said"] == f"this user may not write to {topic}"
        assert said["advice"] == "grant it DESCRIBE and WRITE"


def test_topic_that_is_missing_is_named(kafka_address: str, given: Given) -> None:
    given(kafka_brokers=kafka_address, kafka_topics="nowhere-at-all")

    assert "there is no topic nowhere-at-all -> create it" in failure(4, "topics")


def test_topic_that_takes_less_than_the_flow_sends_is_a_warning(
    kafka_address: str, given: Given
) -> None:
    topic = new_topic(kafka_address, max_message_bytes="10000")
    given(kafka_brokers=kafka_address, kafka_topics=topic, kafka_batch_bytes=10_000)

    said = only(doctor(0), "limits", "warning")["said"]

    assert said == f"topic {topic} takes messages of at most 10,000 bytes"


def test_empty_variable_is_a_warning(kafka_address: str, given: Given, tmp_path: Path) -> None:
    given(kafka_brokers=kafka_address, kafka_user="")

    assert only(doctor(0), "settings", "warning")["said"].endswith("KAFKA_USER is empty")

"""A Kafka that refuses the reader, or cannot be reached: each cause is named, in bounded time."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from bytewax_jetstream.errors import ConnectError, SourceError, TopicError
from bytewax_jetstream.settings import KafkaSettings
from bytewax_jetstream.testing import KafkaServer
from tests.support.kafka import make_topic
from tests.support.kafka_reading import Reading
from tests.support.lanes import kafka, publish
from tests.support.streams import envelopes

CANARY = "canary-77b3fe"
USERS = (
    "org.apache.kafka.common.security.plain.PlainLoginModule required "
    'user_amy="amy" user_bob="bob";'
)


@pytest.fixture(scope="module")
def guarded() -> Iterator[KafkaServer]:
    """A broker that asks for a password; bob may only do what a test allows him. Clients that come
    by its proxied address are sent to a port where nobody listens.
    """
    config = "\n".join(
        [
            "listener.name.client.sasl.enabled.mechanisms=PLAIN",
            f"listener.name.client.plain.sasl.jaas.config={USERS}",
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users=User:ANONYMOUS;User:amy",
        ]
    )
    with KafkaServer(protocol="SASL_PLAINTEXT", config=config + "\n", proxied_as=1) as server:
        for topic in ("open", "seen", "closed", "taken"):
            make_topic(server.internal, topic, partitions=2)
        _allow(server, "open", AclOperation.DESCRIBE, AclOperation.READ)
        _allow(server, "seen", AclOperation.DESCRIBE)
        _allow(server, "taken", AclOperation.DESCRIBE, AclOperation.READ)
        yield server


def _acl(topic: str, operation: AclOperation) -> AclBinding:
    return AclBinding(
        ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:bob", "*", operation,
        AclPermissionType.ALLOW,
    )  # fmt: skip


def _allow(server: KafkaServer, topic: str, *operations: AclOperation) -> None:
    admin = AdminClient({"bootstrap.servers": server.internal})
    for operation in operations:
        acl = _acl(topic, operation)
        admin.create_acls([acl])[acl].result(10)


def _deny(server: KafkaServer, topic: str, operation: AclOperation) -> None:
    admin = AdminClient({"bootstrap.servers": server.internal})
    acl = AclBindingFilter(
        ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:bob", "*", operation,
        AclPermissionType.ALLOW,
    )  # fmt: skip
    admin.delete_acls([acl])[acl].result(10)


def _as(user: str, password: str, server: KafkaServer, **settings: Any) -> KafkaSettings:
    return kafka(server.bootstrap, sasl="PLAIN", user=user, password=password, **settings)


def _write(server: KafkaServer, topic: str, first: int, count: int) -> None:
    publish(_as("amy", "amy", server), *envelopes(count, topic, first=first))


def _refused(settings: KafkaSettings, topic: str = "open") -> str:
    began = time.monotonic()
    with pytest.raises(ConnectError) as error:
        Reading(settings, topics=topic)
    assert time.monotonic() - began < settings.connect_timeout + 10
    return str(error.value)


def test_wrong_password_is_named_at_once_and_never_shown(
    guarded: KafkaServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    said = _refused(_as("amy", CANARY, guarded, connect_timeout=60))

    assert "Authentication failed" in said
    assert said.endswith("correct the credentials in the settings")
    assert CANARY not in said + caplog.text


def test_token_endpoint_that_does_not_answer_is_named(guarded: KafkaServer) -> None:
    said = _refused(
        kafka(
            guarded.bootstrap,
            sasl="OAUTHBEARER",
            oauth_token_url="http://127.0.0.1:1/token",
            oauth_client_id="me",
            oauth_client_secret=CANARY,
            connect_timeout=20,
        )
    )

    assert "token" in said.lower()
    assert CANARY not in said


def test_missing_password_is_one_clear_error(guarded: KafkaServer) -> None:
    said = _refused(kafka(guarded.bootstrap, connect_timeout=2))

    assert said.endswith("and whether they require TLS or a password")


def test_address_of_nobody_is_named(guarded: KafkaServer) -> None:
    assert "Connection refused" in _refused(kafka("127.0.0.1:1", connect_timeout=1))
    assert "resolve" in _refused(kafka("no-such-host.invalid:9092", connect_timeout=3))


def test_dead_advertised_address_is_named(guarded: KafkaServer) -> None:
    said = _refused(kafka(guarded.proxied, connect_timeout=3))

    assert "answers, but a broker that it names did not within 3 s" in said
    assert "127.0.0.1:1" in said
    assert "advertised.listeners" in said


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ca.pem`, `other-ca.pem`, and the certificate and key of a client."""
    folder = tmp_path_factory.mktemp("certificates")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(folder / "other-ca.pem"))
    for name, signed_by in (("client", authority), ("stranger", trustme.CA())):
        certificate = signed_by.issue_cert("client.test")
        certificate.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))
        certificate.private_key_pem.write_to_path(str(folder / f"{name}.key"))
    return folder


@pytest.fixture(scope="module")
def mutual(authority: trustme.CA, files: Path) -> Iterator[KafkaServer]:
    """A broker that asks for a client certificate; its own is for 127.0.0.1 only."""
    own = authority.issue_cert("127.0.0.1")
    store = files / "broker.pem"
    key = load_pem_private_key(own.private_key_pem.bytes(), None)
    store.write_bytes(  # Java reads no other form
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + own.cert_chain_pems[0].bytes()
    )
    prefix = "listener.name.client.ssl."
    config = "".join(
        f"{prefix}{name}={value}\n"
        for name, value in {
            "keystore.type": "PEM",
            "keystore.location": store,
            "truststore.type": "PEM",
            "truststore.location": files / "ca.pem",
            "client.auth": "required",
        }.items()
    )
    with KafkaServer(protocol="SSL", config=config) as server:
        make_topic(server.internal, "open", partitions=1)
        yield server


def _tls(server: KafkaServer, files: Path, ca: str = "ca", client: str | None = "client") -> Any:
    own: dict[str, Any] = {}
    if client is not None:
        own = {
            "tls_cert_file": files / f"{client}.pem",
            "tls_key_file": files / f"{client}.key",
        }
    return kafka(server.bootstrap, tls_ca_file=files / f"{ca}.pem", connect_timeout=10, **own)


def test_tls_with_a_client_certificate_is_read(mutual: KafkaServer, files: Path) -> None:
    publish(_tls(mutual, files), *envelopes(10, "open"))

    with Reading(_tls(mutual, files), topics="open", tail=False) as reading:
        reading.to_the_end()

    assert len(reading.values) == 10


def test_wrong_authority_is_named(mutual: KafkaServer, files: Path) -> None:
    said = _refused(_tls(mutual, files, ca="other-ca"))

    assert "certificate verify failed" in said
    assert said.endswith("correct the TLS settings")


def test_wrong_host_name_is_named(mutual: KafkaServer, files: Path) -> None:
    settings = _tls(mutual, files)
    port = mutual.bootstrap.rpartition(":")[2]

    said = _refused(settings.model_copy(update={"brokers": (f"localhost:{port}",)}))

    assert "certificate verify failed" in said
    assert said.endswith("correct the TLS settings")


@pytest.mark.parametrize("client", [None, "stranger"])
def test_missing_or_foreign_client_certificate_is_named(
    mutual: KafkaServer, files: Path, client: str | None
) -> None:
    said = _refused(_tls(mutual, files, client=client))

    assert "certificate" in said
    assert said.endswith("to a certificate that the brokers accept")


def test_topic_that_may_not_be_seen_is_one_clear_error(guarded: KafkaServer) -> None:
    with pytest.raises(
        TopicError, match=r"^this user may not see topic closed: grant DESCRIBE and READ on it$"
    ):
        Reading(_as("bob", "bob", guarded), topics=["open", "closed"])


def test_user_without_rights_on_groups_reads(guarded: KafkaServer) -> None:
    _write(guarded, "open", 0, 10)
    with Reading(_as("bob", "bob", guarded), topics="open") as reading:
        reading.until(lambda: len(reading.values) == 10)
        end = time.monotonic() + 3
        reading.until(lambda: time.monotonic() > end)


def test_topic_that_may_be_seen_but_not_read_stops_the_run(guarded: KafkaServer) -> None:
    with (
        Reading(_as("bob", "bob", guarded), topics="seen") as reading,
        pytest.raises(SourceError, match=r"^this user may not read topic seen: grant") as e,
    ):
        reading.until(lambda: False, 30)
    assert (e.value.topic, e.value.code) == ("seen", 29)


def test_right_that_is_taken_away_and_given_back_costs_no_message(guarded: KafkaServer) -> None:
    bob = _as("bob", "bob", guarded)
    _write(guarded, "taken", 0, 10)
    with Reading(bob, topics="taken", on_error="errs") as reading:
        reading.until(lambda: len(reading.values) == 10)
        _deny(guarded, "taken", AclOperation.READ)
        reading.until(lambda: reading.errs)
        _write(guarded, "taken", 10, 10)
        reading.turn()
        states = reading.states()
        before = reading.values
    _allow(guarded, "taken", AclOperation.READ)

    with Reading(bob, states, topics="taken", on_error="errs") as reading:
        reading.until(lambda: len(before + reading.values) >= 20)

    assert sorted(before + reading.values, key=int) == [b"%d" % n for n in range(20)]


def test_right_that_is_given_while_reading_is_used_with_on_error_errs(
    guarded: KafkaServer,
) -> None:
    make_topic(guarded.internal, "later", partitions=1)
    _allow(guarded, "later", AclOperation.DESCRIBE)
    _write(guarded, "later", 0, 10)
    with Reading(_as("bob", "bob", guarded), topics="later", on_error="errs") as reading:
        reading.until(lambda: reading.errs)
        _allow(guarded, "later", AclOperation.READ)
        reading.until(lambda: len(reading.values) == 10)

    (error,) = reading.errs
    assert (error.msg.topic, error.msg.partition) == ("later", 0)
    assert "grant DESCRIBE and READ on it" in error.err.str()

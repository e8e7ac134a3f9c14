"""Encrypted and authenticated connections to a real Kafka broker; secrets go nowhere else."""

import logging
import re
import traceback
from collections.abc import Iterator
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink
from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

import bytewax_jetstream.operators as jop
from bytewax_jetstream.errors import ConnectError
from bytewax_jetstream.settings import KafkaSettings
from bytewax_jetstream.testing import KafkaServer
from tests.support.certificates import Certificates
from tests.support.dataflows import run
from tests.support.kafka import audit, new_topic
from tests.support.lanes import kafka, publish
from tests.support.streams import FLAWLESS, envelopes
from tests.support.tokens import TokenServer
from tests.support.waiting import PATIENCE

CANARY = "canary-7be01c"
SCRAM = {
    "SCRAM-SHA-256": ScramMechanism.SCRAM_SHA_256,
    "SCRAM-SHA-512": ScramMechanism.SCRAM_SHA_512,
}
OAUTH = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required"
LOGIN = "org.apache.kafka.common.security.scram.ScramLoginModule required"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates") / "ours")


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Of an authority that the broker does not know."""
    return Certificates(tmp_path_factory.mktemp("certificates") / "strangers")


@pytest.fixture(scope="module")
def guarded(ours: Certificates) -> Iterator[KafkaServer]:
    """A broker that speaks TLS and asks for a password or a token."""
    sasl = "listener.name.client"
    config = [
        *ours.listener(),
        f"{sasl}.sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
        f"{sasl}.scram-sha-256.sasl.jaas.config={LOGIN};",
        f"{sasl}.scram-sha-512.sasl.jaas.config={LOGIN};",
        f'{sasl}.oauthbearer.sasl.jaas.config={OAUTH} unsecuredLoginStringClaim_sub="broker";',
    ]
    with KafkaServer(protocol="SASL_SSL", config="\n".join(config) + "\n") as server:
        admin = AdminClient({"bootstrap.servers": server.internal})
        for mechanism in SCRAM.values():
            user = UserScramCredentialUpsertion(
                "amy", ScramCredentialInfo(mechanism, 4096), CANARY.encode()
            )
            admin.alter_user_scram_credentials([user])["amy"].result(PATIENCE)
        yield server


@pytest.fixture(scope="module")
def mutual(ours: Certificates) -> Iterator[KafkaServer]:
    """A broker that lets in only clients with a certificate of the same authority."""
    config = "\n".join(ours.listener("required"))
    with KafkaServer(protocol="SSL", config=config + "\n") as server:
        yield server


def _published_and_read(settings: KafkaSettings, internal: str) -> None:
    topic = new_topic(internal, partitions=2)
    batch = envelopes(100, topic)

    publish(settings, *batch)

    assert audit(internal, topic, batch) == FLAWLESS
    found: list[Any] = []
    flow = Dataflow("reading")
    items = jop.input("in", flow, settings, topics=topic, tail=False)
    op.output("out", items.oks, TestingSink(found))
    run(flow)
    assert sorted(int(record.value) for record in found) == list(range(100))


def _refused(settings: KafkaSettings, caplog: pytest.LogCaptureFixture) -> str:
    """The one sentence of a refusal; neither it nor anything else shows a secret."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ConnectError) as refused:
        publish(settings, *envelopes(1, "safe"))
    everything = [*traceback.format_exception(refused.value), caplog.text, repr(settings)]
    assert not any(CANARY in text for text in everything)
    assert str(refused.value).startswith(f"no connection to Kafka at {settings.brokers[0]}")
    return str(refused.value)


@pytest.mark.parametrize("mechanism", SCRAM)
def test_scram_over_tls_publishes_and_reads(
    mechanism: Any, guarded: KafkaServer, ours: Certificates
) -> None:
    settings = kafka(
        guarded.bootstrap, tls_ca_file=ours.ca, sasl=mechanism, user="amy", password=CANARY
    )

    _published_and_read(settings, guarded.internal)


@pytest.mark.parametrize("mechanism", SCRAM)
def test_wrong_scram_password_is_reported_at_once_and_never_shown(
    mechanism: Any, guarded: KafkaServer, ours: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    settings = kafka(
        guarded.bootstrap,
        tls_ca_file=ours.ca,
        sasl=mechanism,
        user="amy",
        password=f"not-{CANARY}",
        connect_timeout=5 * PATIENCE,
    )

    assert _refused(settings, caplog).endswith("correct the credentials in the settings")


def test_mutual_tls_publishes_and_reads(mutual: KafkaServer, ours: Certificates) -> None:
    settings = kafka(
        mutual.bootstrap,
        tls_ca_file=ours.ca,
        tls_cert_file=ours.client,
        tls_key_file=ours.client,
    )

    _published_and_read(settings, mutual.internal)


def test_broker_of_an_unknown_authority_is_refused_at_once(
    mutual: KafkaServer,
    ours: Certificates,
    strangers: Certificates,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = kafka(
        mutual.bootstrap,
        tls_ca_file=strangers.ca,
        tls_cert_file=ours.client,
        tls_key_file=ours.client,
        connect_timeout=5 * PATIENCE,
    )

    assert _refused(settings, caplog).endswith("correct the TLS settings")


@pytest.mark.parametrize("certificate", [False, True], ids=["none", "of a stranger"])
def test_client_without_a_known_certificate_is_refused(
    certificate: bool,
    mutual: KafkaServer,
    ours: Certificates,
    strangers: Certificates,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = strangers.client if certificate else None
    settings = kafka(
        mutual.bootstrap,
        tls_ca_file=ours.ca,
        tls_cert_file=given,
        tls_key_file=given,
        connect_timeout=5,
    )

    # TLS 1.3 ends the handshake before the broker looks at the certificate.
    assert re.search("certificate|TLS settings", _refused(settings, caplog))


def test_certificate_for_another_host_is_refused_at_once(
    ours: Certificates, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = Certificates(tmp_path_factory.mktemp("elsewhere") / "named", "kafka.example")
    config = "\n".join(elsewhere.listener())
    with KafkaServer(protocol="SSL", config=config + "\n") as server:
        settings = kafka(server.bootstrap, tls_ca_file=elsewhere.ca, connect_timeout=5 * PATIENCE)

        assert _refused(settings, caplog).endswith("correct the TLS settings")


def test_broker_without_tls_never_gets_the_password(
    kafka_address: str, ours: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    settings = kafka(
        kafka_address,
        tls_ca_file=ours.ca,
        sasl="PLAIN",
        user="amy",
        password=CANARY,
        connect_timeout=3,
    )

    assert "TLS" in _refused(settings, caplog)


def test_token_of_an_identity_provider_publishes_and_reads(
    guarded: KafkaServer, ours: Certificates
) -> None:
    with TokenServer("flow", CANARY) as provider:
        settings = _with_token(guarded, ours, provider.url, CANARY)

        _published_and_read(settings, guarded.internal)

    assert provider.asked
    assert provider.asked[0]["scope"] == ["kafka"]


def test_wrong_client_secret_is_named_and_never_shown(
    guarded: KafkaServer, ours: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    with TokenServer("flow", "another") as provider:
        settings = _with_token(guarded, ours, provider.url, CANARY, connect_timeout=5)

        said = _refused(settings, caplog)

    assert "Failed to acquire SASL OAUTHBEARER token" in said
    assert said.endswith("correct the credentials in the settings")


def _with_token(
    server: KafkaServer, certificates: Certificates, url: str, secret: str, **more: Any
) -> KafkaSettings:
    return kafka(
        server.bootstrap,
        tls_ca_file=certificates.ca,
        sasl="OAUTHBEARER",
        oauth_token_url=url,
        oauth_client_id="flow",
        oauth_client_secret=secret,
        oauth_scope="kafka",
        **more,
    )

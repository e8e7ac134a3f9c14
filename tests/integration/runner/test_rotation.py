"""Credentials and certificates that are replaced while a run goes on are used at the next
connection.
"""

import signal
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from bytewax_jetstream.exit_codes import ExitCode
from bytewax_jetstream.testing import KafkaServer, NatsServer
from tests.support.certificates import Certificates
from tests.support.kafka import make_topic, records
from tests.support.operated import FLOW, Operated
from tests.support.processes import Process, start_run
from tests.support.streams import api, message_ids
from tests.support.waiting import PATIENCE

SECRETS_DIR = "BYTEWAX_JETSTREAM_SECRETS_DIR"
STREAM = {"name": "OPERATED", "subjects": ["operated"]}


def _run(told: Operated, **environment: str) -> AbstractContextManager[Process]:
    return start_run(
        FLOW,
        *("-s", 1),
        log=Path(told.folder, "log"),
        environment={**told.environment, **environment},
    )


def _goes_on(told: Operated, run: Process) -> None:
    """Wait for the ends of epochs: these come only when everything before them is stored."""
    before = len(told.emitted)
    run.until(lambda: len(told.emitted) > before + 500)


def _drains(told: Operated, run: Process) -> None:
    run.signal(signal.SIGTERM)
    assert run.end() == ExitCode.STORED, run.log


def _all(told: Operated) -> set[str]:
    return {f"e-{number}" for number in told.emitted}


def _password_server(folder: Path, port: int | None, password: str) -> NatsServer:
    config = f"authorization {{ user: amy, password: {password} }}"
    return NatsServer(store_dir=folder / "nats", port=port, config=config)


def test_a_password_of_the_secrets_directory_is_read_for_each_connection(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "BYTEWAX_JETSTREAM_USER").write_text("amy\n")
    password = secrets / "BYTEWAX_JETSTREAM_PASSWORD"
    password.write_text("first\n")
    with _password_server(tmp_path, None, "first") as server:
        api(server.url, "STREAM.CREATE.OPERATED", STREAM, user="amy", password="first")
        told = Operated(str(tmp_path), server.url)
        with _run(told, **{SECRETS_DIR: str(secrets)}) as run:
            _goes_on(told, run)
            server.terminate()
            with _password_server(tmp_path, server.port, "second") as server:
                run.says("NATS: still no connection")
                password.write_text("second\n")
                run.says("NATS: connected again")
                _goes_on(told, run)
                _drains(told, run)
                ids = message_ids(server.url, "OPERATED", user="amy", password="second")
    assert set(ids) == _all(told)
    assert "first" not in run.log
    assert "second" not in run.log


def test_certificates_are_read_for_each_connection(tmp_path: Path) -> None:
    first = Certificates(tmp_path / "first")
    second = Certificates(tmp_path / "second")
    current = tmp_path / "current"
    current.symlink_to(first.ca.parent)  # as Kubernetes replaces a mounted secret
    settings = {
        "tls_ca_file": str(current / "ca.pem"),
        "tls_cert_file": str(current / "client.pem"),
        "tls_key_file": str(current / "client.pem"),
    }
    store = tmp_path / "nats"
    with NatsServer(store_dir=store, config=first.block("verify: true")) as server:
        port = server.port
        told = Operated(
            str(tmp_path),
            server.url,
            settings={
                **settings,
                "streams": [{"name": "OPERATED", "subjects": ["operated"]}],
            },
        )
        with _run(told) as run:
            _goes_on(told, run)
            server.terminate()
            with NatsServer(store_dir=store, port=port, config=second.block("verify: true")):
                run.says("NATS: still no connection")
                current.unlink()
                current.symlink_to(second.ca.parent)
                run.says("NATS: connected again")
                _goes_on(told, run)
                _drains(told, run)


def _set_password(server: KafkaServer, password: str) -> None:
    admin = AdminClient({"bootstrap.servers": server.internal})
    info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
    user = UserScramCredentialUpsertion("amy", info, password.encode())
    admin.alter_user_scram_credentials([user])["amy"].result(PATIENCE)


@pytest.mark.timeout(600)
def test_a_kafka_password_of_the_secrets_directory_is_used_when_the_old_one_is_refused(
    tmp_path: Path,
) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "BYTEWAX_JETSTREAM_KAFKA_USER").write_text("amy\n")
    password = secrets / "BYTEWAX_JETSTREAM_KAFKA_PASSWORD"
    password.write_text("first\n")
    login = "org.apache.kafka.common.security.scram.ScramLoginModule required"
    config = (
        "listener.name.client.sasl.enabled.mechanisms=SCRAM-SHA-512\n"
        f"listener.name.client.scram-sha-512.sasl.jaas.config={login};\n"
    )
    with KafkaServer(protocol="SASL_PLAINTEXT", config=config) as server:
        _set_password(server, "first")
        make_topic(server.internal, "operated")
        told = Operated(
            str(tmp_path),
            server.bootstrap,
            "kafka",
            settings={"sasl": "SCRAM-SHA-512", "delivery_timeout": 120},
        )
        with _run(told, **{SECRETS_DIR: str(secrets)}) as run:
            _goes_on(told, run)
            _set_password(server, "second")
            # Not with SIGTERM: librdkafka may stay away from a broker that says goodbye, see
            # docs/guarantees.md.
            server.kill()
            server.start()
            run.says("SASL authentication error")
            password.write_text("second\n")
            run.says("Kafka: the password was refused; trying the one in the secrets directory")
            _goes_on(told, run)
            _drains(told, run)
        found = {
            record.headers["Event-Id"].decode() for record in records(server.internal, "operated")
        }
    assert found == _all(told)
    assert "first" not in run.log
    assert "second" not in run.log

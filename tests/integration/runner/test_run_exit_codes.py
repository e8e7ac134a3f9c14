"""Every exit code, by a real cause, and one sentence that says what to do."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from bytewax_jetstream.exit_codes import ExitCode
from bytewax_jetstream.testing import KafkaServer, NatsServer
from tests.support.certificates import Certificates
from tests.support.kafka import make_topic, new_topic, records
from tests.support.kafka_rights import DESCRIBE, WRITE, allow, asking_for_passwords
from tests.support.operated import FLOW, Operated
from tests.support.processes import Process, free_port, start_run
from tests.support.streams import api, make_stream, message_ids, remake_stream
from tests.support.ways import workers_1_2

SOON = {"ack_timeout": 0.5, "delivery_timeout": 2.0}
"""Deadlines of the pool, so that a broker that is away is noticed soon."""


def _run(told: Operated, *options: object, **environment: str) -> AbstractContextManager[Process]:
    return start_run(
        FLOW,
        *options,
        log=Path(told.folder, "log"),
        environment={**told.environment, **environment},
    )


def _ends(run: Process, code: ExitCode, said: str) -> None:
    """It ends with this code, and says why in one sentence."""
    assert run.end() == code, run.log
    lines = [line for line in run.log.splitlines() if " CRITICAL " in line]
    assert len(lines) == 1, run.log
    assert said in lines[0]
    assert "Traceback" not in run.log


@pytest.fixture
def stream(nats_server: NatsServer) -> NatsServer:
    """A server with an empty stream for the topic `operated`."""
    remake_stream(nats_server.url, "OPERATED", "operated")
    return nats_server


# 0: stored


@workers_1_2
def test_0_when_all_is_stored(stream: NatsServer, tmp_path: Path, workers: int) -> None:
    told = Operated(str(tmp_path), stream.url, items=20)
    with _run(told, "-w", workers) as run:
        assert run.end() == ExitCode.STORED, run.log
    assert len(message_ids(stream.url, "OPERATED")) == 20


def test_0_when_all_is_stored_in_kafka(kafka_address: str, tmp_path: Path) -> None:
    topic = new_topic(kafka_address)
    with _run(Operated(str(tmp_path), kafka_address, "kafka", topic, items=20)) as run:
        assert run.end() == ExitCode.STORED, run.log
    assert len(records(kafka_address, topic)) == 20


# 1: a step failed


@workers_1_2
@pytest.mark.parametrize("step", ["nothing", "output", "publish"])
def test_1_when_a_step_raises(stream: NatsServer, tmp_path: Path, workers: int, step: str) -> None:
    address = "" if step == "nothing" else stream.url
    told = Operated(str(tmp_path), address, step=step, trouble="raises")
    with _run(told, "-w", workers) as run:
        said = "step operated.note.flat_map_batch raised ValueError: item 10 is wrong (operated.py,"
        _ends(run, ExitCode.FAILED, said)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with _run(Operated(str(tmp_path), trouble="raises"), "--debug") as run:
        assert run.end() == ExitCode.FAILED
    assert "Traceback (most recent call last)" in run.log
    assert "item 10\nis wrong" in run.log


# 3: unknown, run again


def _away(tmp_path: Path, broker: str, **more: Any) -> Operated:
    address = f"127.0.0.1:{free_port()}"
    address = f"nats://{address}" if broker == "jetstream" else address
    return Operated(str(tmp_path), address, broker, settings={"connect_timeout": 1.0}, **more)


@workers_1_2
@pytest.mark.parametrize("broker", ["jetstream", "kafka"])
@pytest.mark.parametrize("source", ["testing", "dynamic"])
def test_3_when_the_broker_is_away_at_the_start(
    tmp_path: Path, broker: str, source: str, workers: int
) -> None:
    told = _away(tmp_path, broker, source=source)
    with _run(told, "-w", workers) as run:
        _ends(run, ExitCode.UNKNOWN, f"{told.address} within 1 s")


@workers_1_2
@pytest.mark.parametrize("step", ["output", "publish"])
def test_3_when_the_server_does_not_answer_any_more(
    own_nats_server: NatsServer, tmp_path: Path, workers: int, step: str
) -> None:
    make_stream(own_nats_server.url, "OPERATED", "operated")
    told = Operated(str(tmp_path), own_nats_server.url, step=step, settings=SOON)
    with _run(told, "-w", workers) as run:
        run.until(lambda: len(told.emitted) > 20)
        own_nats_server.pause()
        _ends(run, ExitCode.UNKNOWN, "is unknown")


def test_3_when_the_kafka_broker_does_not_answer_any_more(
    own_kafka_server: KafkaServer, tmp_path: Path
) -> None:
    make_topic(own_kafka_server.bootstrap, "operated")
    told = Operated(str(tmp_path), own_kafka_server.bootstrap, "kafka", settings=SOON)
    with _run(told) as run:
        run.until(lambda: len(told.emitted) > 20)
        own_kafka_server.pause()
        _ends(run, ExitCode.UNKNOWN, "is unknown")


# 4: refused


@workers_1_2
def test_4_when_a_stream_is_missing(stream: NatsServer, tmp_path: Path, workers: int) -> None:
    settings = {
        "streams": [{"name": "ABSENT", "subjects": ["absent"]}],
        "stream_strategy": "validate",
    }
    with _run(Operated(str(tmp_path), stream.url, settings=settings), "-w", workers) as run:
        _ends(run, ExitCode.REFUSED, "stream ABSENT is missing: create it, or")


def test_4_when_a_kafka_topic_is_missing(kafka_address: str, tmp_path: Path) -> None:
    settings = {"topics": ["absent"], "topic_strategy": "validate"}
    with _run(Operated(str(tmp_path), kafka_address, "kafka", settings=settings)) as run:
        _ends(run, ExitCode.REFUSED, "there is no topic absent: create it, or")


@workers_1_2
def test_4_when_an_envelope_is_rejected(stream: NatsServer, tmp_path: Path, workers: int) -> None:
    with _run(Operated(str(tmp_path), stream.url, topic="uncovered"), "-w", workers) as run:
        _ends(run, ExitCode.REFUSED, "e-0 on uncovered is rejected: no stream covers topic")


def test_4_when_a_kafka_envelope_is_rejected(kafka_address: str, tmp_path: Path) -> None:
    topic = new_topic(kafka_address)
    told = Operated(str(tmp_path), kafka_address, "kafka", topic)
    told = told._replace(settings={"max_message_bytes": 1000}, size=5000)
    with _run(told) as run:
        _ends(run, ExitCode.REFUSED, f"e-0 on {topic} is rejected: ")


@pytest.fixture(scope="module")
def locked() -> Iterator[NatsServer]:
    """A server at which amy may do everything, and bob may not publish to `operated`."""
    users = (
        "accounts { A { jetstream: enabled, users ["
        "{ user: amy, password: amy }, { user: bob, password: bob, permissions: { publish: "
        '{ deny: "operated" } } } ] } }'
    )
    with NatsServer(config=users) as server:
        config = {"name": "OPERATED", "subjects": ["operated"]}
        api(server.url, "STREAM.CREATE.OPERATED", config, user="amy", password="amy")
        yield server


@pytest.mark.parametrize(
    ("user", "password", "said"),
    [
        ("amy", "wrong", "correct the credentials in the settings"),
        ("bob", "bob", "operated"),
    ],
    ids=["wrong password", "no permission"],
)
@workers_1_2
def test_4_when_the_server_refuses_the_user(
    locked: NatsServer, tmp_path: Path, user: str, password: str, said: str, workers: int
) -> None:
    settings = {"user": user, "password": password}
    with _run(Operated(str(tmp_path), locked.url, settings=settings), "-w", workers) as run:
        _ends(run, ExitCode.REFUSED, said)


@pytest.fixture(scope="module")
def guarded() -> Iterator[KafkaServer]:
    """A broker at which amy may do everything, and bob may not publish to `operated`."""
    with asking_for_passwords() as server:
        for topic in ("operated", "another"):
            make_topic(server.internal, topic)
        allow(server, "operated", DESCRIBE)
        allow(server, "another", WRITE, DESCRIBE)
        yield server


@pytest.mark.parametrize(
    ("user", "password", "said"),
    [
        ("amy", "wrong", "correct the credentials in the settings"),
        ("bob", "bob", "operated"),
    ],
    ids=["wrong password", "no permission"],
)
def test_4_when_the_kafka_broker_refuses_the_user(
    guarded: KafkaServer, tmp_path: Path, user: str, password: str, said: str
) -> None:
    settings = {"sasl": "PLAIN", "user": user, "password": password}
    told = Operated(str(tmp_path), guarded.bootstrap, "kafka", settings=settings)
    with _run(told) as run:
        _ends(run, ExitCode.REFUSED, said)


def test_a_kafka_user_who_may_not_write_at_all_is_told_which_right_is_missing(
    tmp_path: Path,
) -> None:
    with asking_for_passwords() as server:
        make_topic(server.internal, "operated")
        allow(server, "operated", DESCRIBE)
        settings = {"sasl": "PLAIN", "user": "bob", "password": "bob"}
        with _run(Operated(str(tmp_path), server.bootstrap, "kafka", settings=settings)) as run:
            # The library gives up as a whole, and says of no envelope that it was refused.
            assert run.end() == ExitCode.UNKNOWN, run.log
    assert "grant this user IDEMPOTENT_WRITE on the cluster" in run.log
    assert "Traceback" not in run.log


def _expired(tmp_path: Path) -> Certificates:
    certificates = Certificates(tmp_path / "expired")
    certificates.another("127.0.0.1", file="server.pem", expired=True)
    return certificates


def test_4_when_the_servers_certificate_has_expired(tmp_path: Path) -> None:
    certificates = _expired(tmp_path)
    with NatsServer(config=certificates.block()) as server:
        settings = {"tls_ca_file": str(certificates.ca)}
        with _run(Operated(str(tmp_path), server.url, settings=settings)) as run:
            _ends(run, ExitCode.REFUSED, "certificate has expired")


def test_4_when_the_kafka_brokers_certificate_has_expired(tmp_path: Path) -> None:
    certificates = _expired(tmp_path)
    config = "\n".join(certificates.listener())
    with KafkaServer(protocol="SSL", config=config + "\n") as server:
        settings = {"tls_ca_file": str(certificates.ca)}
        with _run(Operated(str(tmp_path), server.bootstrap, "kafka", settings=settings)) as run:
            _ends(run, ExitCode.REFUSED, "correct the TLS settings")


# 5: a second writer


def test_5_when_another_run_uses_the_recovery_directory(tmp_path: Path) -> None:
    told = Operated(str(tmp_path), source="fixed")
    with _run(told, "-r", tmp_path / "store") as first:
        first.until(lambda: told.emitted)
        (tmp_path / "second").mkdir()
        second_told = told._replace(folder=str(tmp_path / "second"))
        with _run(second_told, "-r", tmp_path / "store") as second:
            _ends(second, ExitCode.LOCKED, "another process uses the recovery directory")
        assert first.running.poll() is None
    assert not second_told.emitted


def test_every_exit_code_has_a_test_here() -> None:
    elsewhere = {ExitCode.USAGE, ExitCode.INTERRUPTED, ExitCode.SIGNALLED}
    tested = {name[len("test_") :].partition("_")[0] for name in globals()}

    assert {str(int(code)) for code in ExitCode if code not in elsewhere} <= tested

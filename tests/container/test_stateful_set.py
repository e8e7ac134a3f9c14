"""The StatefulSet's layout on this machine: the same variables, host names and volumes."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.exit_codes import ExitCode
from bytewax_jetstream.testing import KafkaServer, NatsServer
from k8s.rescale.move_parts import move
from tests.support.k8s.environment import secret_files
from tests.support.k8s.layout import Layout, Ports
from tests.support.k8s.manifests import by_name, rendered
from tests.support.k8s.network import Peer, allows
from tests.support.kafka import make_topic, ordered_producer
from tests.support.processes import Process
from tests.support.streams import FLAWLESS, api, audit, envelopes
from tests.support.waiting import until

OVERLAY = "overlays/dev"
NAME = "kafka-to-jetstream"
TOPIC = "orders"
CHUNK = 2_000
USER: dict[str, Any] = {
    name.removeprefix("BYTEWAX_JETSTREAM_").lower(): value
    for name, value in secret_files(rendered(OVERLAY)).items()
}


@pytest.fixture
def nats() -> Iterator[NatsServer]:
    """With the user of the overlay's own server."""
    user = f"user: {USER['user']}, password: {USER['password']}"
    with NatsServer(config=f"authorization {{ {user} }}") as server:
        yield server


@pytest.fixture
def kafka(own_kafka_server: KafkaServer) -> KafkaServer:
    """With the topic that the dataflow reads."""
    make_topic(own_kafka_server.bootstrap, TOPIC, partitions=6)
    return own_kafka_server


@pytest.fixture
def layout(tmp_path: Path, nats: NatsServer, kafka: KafkaServer) -> Layout:
    kafka_port = int(kafka.bootstrap.rpartition(":")[2])
    brokers = {"nats": (4222, nats.port), "kafka": (9092, kafka_port)}
    return Layout(rendered(OVERLAY), NAME, tmp_path, brokers)


def _produce(kafka: KafkaServer, records: list[Envelope]) -> None:
    producer = ordered_producer(kafka.bootstrap)
    for each in records:
        headers: list[tuple[str, str | bytes | None]] = [("event-id", each.event_id)]
        producer.produce(TOPIC, each.payload, each.aggregate_id, headers=headers)
    assert producer.flush(60) == 0


def _wait_for(nats: NatsServer, count: int, running: list[Process]) -> None:
    """Wait until so many messages are stored, or a process has ended."""

    def stored() -> int:
        streams = api(nats.url, "STREAM.LIST", **USER)["streams"] or []
        return sum(each["state"]["messages"] for each in streams)

    until(
        lambda: any(each.running.poll() is not None for each in running) or stored() >= count, 120
    )
    assert all(each.running.poll() is None for each in running), running[0].log


def _codes(running: list[Process]) -> list[int]:
    return [each.end() for each in running]


@pytest.mark.timeout(600)
def test_kills_and_other_numbers_of_pods_lose_nothing_and_keep_the_order(
    layout: Layout, nats: NatsServer, kafka: KafkaServer
) -> None:
    wanted: list[Envelope] = []
    for count, ends in [(3, "kill"), (3, "signal"), (2, "kill"), (2, "signal"), (3, "signal")]:
        # What the Job of the runbook does; nothing is moved where the number is as before.
        if wanted:
            move(count, [layout.recovery(process) for process in range(3)])
        chunk = envelopes(CHUNK, TOPIC, first=len(wanted), aggregates=24)
        with layout.started(count, BYTEWAX_SNAPSHOT_INTERVAL="1") as running:
            _produce(kafka, chunk)
            _wait_for(nats, len(wanted) + CHUNK // 4, running)
            wanted += chunk
            if ends == "kill":
                running[-1].running.kill()
                assert _codes(running)[:-1] == [ExitCode.UNKNOWN] * (count - 1), running[0].log
            else:
                _wait_for(nats, len(wanted), running)
                running[0].running.send_signal(signal.SIGTERM)
                assert _codes(running) == [ExitCode.STORED] * count, running[0].log

    assert audit(nats.url, "ORDERS", wanted, **USER) == FLAWLESS


@pytest.mark.timeout(300)
def test_every_port_that_is_opened_or_dialed_is_one_of_the_network_policy(
    layout: Layout, kafka: KafkaServer
) -> None:
    objects = rendered(OVERLAY)
    labels = by_name(objects, "StatefulSet", NAME)["spec"]["template"]["metadata"]["labels"]
    pods: dict[str, Peer] = {"peer": labels}
    for broker in ("nats", "kafka"):
        template = by_name(objects, "StatefulSet", broker)["spec"]["template"]
        pods[broker] = template["metadata"]["labels"]
    seen = Ports(set(), set())
    spec = by_name(objects, "NetworkPolicy", NAME)["spec"]
    named = {port["port"] for rule in spec["ingress"] for port in rule["ports"]}
    reached = {port["port"] for rule in spec["egress"] for port in rule["ports"]} - {53}

    _produce(kafka, envelopes(600, TOPIC, aggregates=24))
    with layout.started(layout.replicas, BYTEWAX_SNAPSHOT_INTERVAL="1") as running:

        def all_seen() -> bool:
            now = layout.ports(running)
            seen.opened.update(now.opened)
            seen.dialed.update(now.dialed)
            return seen.opened >= named and {port for _, port in seen.dialed} >= reached

        until(lambda: all_seen() or any(each.running.poll() is not None for each in running), 120)
        assert all(each.running.poll() is None for each in running), running[0].log

    assert seen.opened == named
    for other, port in seen.dialed:
        peer = pods.get(other)
        assert allows(objects, "egress", labels, peer, port), (other, port)
        assert peer is not None
        assert allows(objects, "ingress", peer, labels, port), (other, port)
    assert {port for _, port in seen.dialed} == reached
    assert {peer for peer, _ in seen.dialed} == set(pods)

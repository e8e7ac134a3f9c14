"""Runs the pods of the overlay for development under podman, without a cluster: `make k8s-play`.

NATS is an image with the nats-server of its wheel; Kafka is a broker of this machine. Every pod is
on the machine's network, so ports are free ones, and the processes of the StatefulSet listen on
loopback addresses of their own, under their names.
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from bytewax_jetstream.exit_codes import ExitCode
from bytewax_jetstream.settings import JetStreamSettings
from bytewax_jetstream.testing import KafkaServer
from flows.flights.audit import count_flights
from flows.flights.brokers import StreamNames
from flows.flights.data import rows
from flows.flights.errors import AuditError
from flows.flights.jetstream import StreamReader
from tests.support.containers import Containers, ContainersUnavailableError
from tests.support.k8s.environment import secret_files
from tests.support.k8s.manifests import by_name, rendered
from tests.support.k8s.pods import Pod
from tests.support.kafka import make_topic, ordered_producer
from tests.support.processes import free_port
from tests.support.streams import FLAWLESS, audit, envelopes
from tests.support.waiting import until

__all__ = ["main"]

OVERLAY = "overlays/dev"
NAME = "kafka-to-jetstream"
TOPIC = "orders"
RECORDS = 5_000
HALF = 60_000
SECONDS = 180


class Play:
    """The pods of the overlay, and what they say."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="k8s-play-")))
        self._objects = rendered(OVERLAY)
        secret = secret_files(self._objects)
        self.user: dict[str, Any] = {
            name.removeprefix("BYTEWAX_JETSTREAM_").lower(): value for name, value in secret.items()
        }
        self._containers = Containers()
        self._images = {
            self._image_of("StatefulSet", NAME): self._containers.build(self._containers.debian()),
            self._image_of("StatefulSet", "nats"): self._containers.nats(),
        }
        self._nats_port, self._monitor_port = free_port(), free_port()
        self.nats_url = f"nats://127.0.0.1:{self._nats_port}"
        self._replaced = {
            "http_port: 8222": f"http: 127.0.0.1:{self._monitor_port}",
            "port: 4222": f"host: 127.0.0.1\nport: {self._nats_port}",
            "nats://nats:4222": self.nats_url,
        }
        self._kafka = KafkaServer()

    def start_kafka(self) -> None:
        """Start the broker, with the topic that is read."""
        self._stack.enter_context(self._kafka)
        make_topic(self._kafka.bootstrap, TOPIC, partitions=6)
        self._replaced["kafka:9092"] = self._kafka.bootstrap

    def nats(self) -> Pod:
        """The pod of NATS."""
        return self._pod("StatefulSet", "nats", "nats-0", {})

    def nats_is_ready(self) -> bool:
        """What its readiness probe would find."""
        return _get(f"http://127.0.0.1:{self._monitor_port}/healthz?js-server-only=true")[0] == 200

    def job(self) -> tuple[Pod, str, str]:
        """The pod of the Job, its health and its metrics."""
        health, metrics = free_port(), free_port()
        pod = self._pod("Job", "flights", "flights", _own(health, metrics))
        return pod, f"http://127.0.0.1:{health}", f"http://127.0.0.1:{metrics}"

    def stateful_set(self) -> tuple[list[Pod], list[str]]:
        """The pods of the StatefulSet, and the metrics of each."""
        spec = by_name(self._objects, "StatefulSet", NAME)["spec"]
        hosts = [f"127.0.0.{2 + number}" for number in range(spec["replicas"])]
        cluster, health = free_port(), free_port()
        names = [f"{NAME}-{number}.{spec['serviceName']}" for number in range(len(hosts))]
        named = dict(zip(names, hosts, strict=True))
        pods, metrics = [], []
        for number, host in enumerate(hosts):
            port = free_port()
            own = _own(health, port, host) | {
                "BYTEWAX_ADDRESSES": ";".join(f"{name}:{cluster}" for name in names)
            }
            pods.append(self._pod("StatefulSet", NAME, f"{NAME}-{number}", own, named))
            metrics.append(f"http://127.0.0.1:{port}")
        return pods, metrics

    def produce(self, first: int, count: int) -> None:
        """Put records into the topic."""
        producer = ordered_producer(self._kafka.bootstrap)
        for each in envelopes(count, TOPIC, first=first, aggregates=24):
            headers: list[tuple[str, str | bytes | None]] = [("event-id", each.event_id)]
            producer.produce(TOPIC, each.payload, each.aggregate_id, headers=headers)
        assert producer.flush(SECONDS) == 0

    def stored(self, stream: str) -> int:
        """How many messages a stream has; 0 while NATS is away."""
        try:
            with self.reader() as reader:
                return reader.count(stream)
        except (AuditError, OSError):
            return 0

    def reader(self) -> StreamReader:
        """Reads streams."""
        return StreamReader(JetStreamSettings(servers=(self.nats_url,), **self.user))

    def _pod(
        self,
        kind: str,
        owner: str,
        name: str,
        variables: dict[str, str],
        hosts: dict[str, str] | None = None,
    ) -> Pod:
        return self._stack.enter_context(
            Pod(
                self._containers,
                self._objects,
                by_name(self._objects, kind, owner),
                name,
                images=self._images,
                variables=variables,
                replaced=self._replaced,
                folder=self._folder,
                hosts=hosts,
            )
        )

    def _image_of(self, kind: str, name: str) -> str:
        pod = by_name(self._objects, kind, name)["spec"]["template"]["spec"]
        return str(pod["containers"][0]["image"])


def _own(health: int, metrics: int, host: str = "127.0.0.1") -> dict[str, str]:
    return {
        "BYTEWAX_JETSTREAM_RUN_HEALTH_HOST": host,
        "BYTEWAX_JETSTREAM_RUN_HEALTH_PORT": str(health),
        "BYTEWAX_DATAFLOW_API_PORT": str(metrics),
        "BYTEWAX_SNAPSHOT_INTERVAL": "1",
    }


def _get(url: str) -> tuple[int, str]:
    try:
        with urlopen(url, timeout=5) as said:
            return said.status, said.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def _is(value: object, expected: object, what: str) -> None:
    if value != expected:
        raise AssertionError(f"{what}: {value!r}, not {expected!r}")


def _wait_for(play: Play, stream: str, count: int, pods: list[Pod]) -> None:
    """Wait until a stream has so many messages, while all pods run."""
    until(lambda: play.stored(stream) >= count or not all(each.running() for each in pods), SECONDS)
    ended = [f"{each.name} ended:\n{each.log[-4_000:]}" for each in pods if not each.running()]
    _is(ended, [], "pods that must run")


def _say(began: float, text: str) -> None:
    print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)


def _play_job(play: Play, nats: Pod, began: float) -> None:
    job, health, metrics = play.job()
    job.play()
    _wait_for(play, "FLIGHTS", HALF, [job])
    _say(began, f"flights: {play.stored('FLIGHTS'):,} messages are stored")
    code, text = _get(f"{metrics}/metrics")
    _is(code, 200, "metrics")
    _say(began, f"flights: scraped {len(text.splitlines())} lines of metrics")

    nats.signal("KILL")
    until(lambda: _get(f"{health}/readyz")[0] == 503, SECONDS)
    _say(began, f"NATS is killed; flights is not ready: {json.loads(_get(f'{health}/readyz')[1])}")
    _is(_get(f"{health}/healthz")[0], 200, "healthz while NATS is away")
    nats.play()
    until(play.nats_is_ready, SECONDS)
    until(lambda: _get(f"{health}/readyz")[0] == 200 or not job.running(), SECONDS)
    _say(began, f"NATS is back with {play.stored('FLIGHTS'):,} messages; flights is ready")

    job.signal("KILL")
    _is(job.wait(), 137, "flights, killed")
    before = play.stored("FLIGHTS")
    job.play()
    _is(job.wait(SECONDS), ExitCode.STORED, f"flights, resumed\n{job.log}")
    with play.reader() as reader:
        counted = count_flights(reader, StreamNames("FLIGHTS", "FLIGHTS_DEAD"), rows())
    _say(began, f"flights was killed at {before:,}, resumed, and ended with 0: {counted}")
    wrong = (counted.missing, counted.duplicates, counted.order_violations)
    _is(wrong, (0, 0, 0), "missing, duplicates, order")


def _play_stateful_set(play: Play, began: float) -> None:
    play.start_kafka()
    pods, metrics = play.stateful_set()
    play.produce(0, RECORDS)
    for pod in pods:
        pod.play()
    _wait_for(play, "ORDERS", RECORDS, pods)
    _is(play.stored("ORDERS"), RECORDS, f"records of the first half\n{pods[0].log}")
    _say(began, f"{NAME}: three processes have stored {RECORDS:,} records")
    scraped = [_get(f"{each}/metrics") for each in metrics]
    _is([code for code, _ in scraped], [200] * len(pods), "metrics of each process")
    _say(began, f"{NAME}: scraped {[len(text.splitlines()) for _, text in scraped]} lines")

    os.kill(int(pods[2].inspect("{{.State.Pid}}")), signal.SIGKILL)
    play.produce(RECORDS, RECORDS)
    # Podman restarts containers as a kubelet does, so a pod may be between two runs.
    until(lambda: play.stored("ORDERS") >= 2 * RECORDS, SECONDS)
    lost = "the connection to another process of the dataflow is lost"
    _is([lost in pod.log for pod in pods[:2]], [True] * 2, "the others ended, too")
    _say(began, f"{NAME}: process 2 was killed, the others ended, too, and all have resumed")
    pods[1].signal("TERM")
    end = "a signal ended the run in order; the last epoch is committed"
    until(lambda: all(end in pod.log for pod in pods), SECONDS)
    _say(began, f"{NAME}: SIGTERM to process 1 ended all in order")
    wanted = envelopes(2 * RECORDS, TOPIC, aggregates=24)
    _is(audit(play.nats_url, "ORDERS", wanted, **play.user), FLAWLESS, "the stream ORDERS")
    _say(began, f"{NAME}: {2 * RECORDS:,} records are stored once, each key in its order")


@contextmanager
def _nats(play: Play, began: float) -> Iterator[Pod]:
    nats = play.nats()
    nats.play()
    until(play.nats_is_ready, SECONDS)
    _say(began, "NATS is ready")
    yield nats


def main() -> int:
    """Play both dataflows; returns the exit code."""
    try:
        with ExitStack() as stack:
            play = Play(stack)
            began = time.monotonic()
            with _nats(play, began) as nats:
                _play_job(play, nats, began)
                _play_stateful_set(play, began)
    except (ContainersUnavailableError, AssertionError, RuntimeError) as error:
        print(f"k8s-play: {error}", file=sys.stderr)
        return 1
    print("k8s-play: passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())

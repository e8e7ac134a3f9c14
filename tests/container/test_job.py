"""The Job's pod, as it is rendered, played by podman against a real NATS."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from bytewax_jetstream.exit_codes import ExitCode
from bytewax_jetstream.settings import JetStreamSettings
from bytewax_jetstream.testing import NatsServer
from flows.flights.audit import Counted, count_flights
from flows.flights.brokers import StreamNames
from flows.flights.data import rows
from flows.flights.jetstream import StreamReader
from tests.support.containers import Containers
from tests.support.k8s.environment import secret_files
from tests.support.k8s.manifests import by_name, rendered
from tests.support.k8s.pods import Pod
from tests.support.processes import free_port
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(900)

OVERLAY = "overlays/dev"
LIMIT = 100_000
DEAD = sum(line.split(",")[3] == "" for line in rows()[:LIMIT])
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
def ports() -> dict[str, int]:
    return {"health": free_port(), "metrics": free_port()}


@pytest.fixture
def job(
    containers: Containers, image: str, nats: NatsServer, ports: dict[str, int], tmp_path: Path
) -> Iterator[Pod]:
    objects = rendered(OVERLAY)
    owner = by_name(objects, "Job", "flights")
    (flow,) = owner["spec"]["template"]["spec"]["containers"]
    variables = {
        "BYTEWAX_JETSTREAM_RUN_HEALTH_PORT": str(ports["health"]),
        "BYTEWAX_DATAFLOW_API_PORT": str(ports["metrics"]),
        "BYTEWAX_SNAPSHOT_INTERVAL": "1",
        # A source that is never far ahead of the stream.
        "BYTEWAX_JETSTREAM_POOL_BUDGET_MESSAGES": "4000",
        "FLIGHTS_LIMIT": str(LIMIT),
    }
    with Pod(
        containers,
        objects,
        owner,
        "flights",
        images={flow["image"]: image},
        variables=variables,
        replaced={"nats://nats:4222": nats.url},
        folder=tmp_path,
    ) as pod:
        yield pod


def _reader(nats: NatsServer) -> StreamReader:
    return StreamReader(JetStreamSettings(servers=(nats.url,), **USER))


def _stored(nats: NatsServer) -> int:
    with _reader(nats) as reader:
        return reader.count("FLIGHTS")


def _probe(pod: Pod, name: str, ports: dict[str, int]) -> int:
    """What a kubelet would get; 0 while nothing listens."""
    asked = pod.probes[name]["httpGet"]
    try:
        with urlopen(f"http://127.0.0.1:{ports[asked['port']]}{asked['path']}", timeout=5) as said:
            return int(said.status)
    except HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_pod_of_the_job_is_killed_and_its_successor_completes(
    job: Pod, nats: NatsServer, ports: dict[str, int]
) -> None:
    job.play()
    until(lambda: _stored(nats) >= 10_000 or not job.running(), 120)
    assert job.running(), job.log
    assert [_probe(job, probe, ports) for probe in job.probes] == [200] * 3
    with urlopen(f"http://127.0.0.1:{ports['metrics']}/metrics", timeout=5) as said:
        assert b"bytewax_item_inp_count" in said.read()
    job.signal("KILL")
    assert job.wait() == 137
    assert _stored(nats) < LIMIT - DEAD, "it had ended before: raise the limit"

    job.play()
    until(lambda: _stored(nats) >= 30_000 or not job.running(), 120)
    job.signal("TERM")  # an eviction
    assert job.wait() == ExitCode.SIGNALLED

    job.play()
    assert job.wait() == ExitCode.STORED, job.log
    with _reader(nats) as reader:
        counted = count_flights(reader, StreamNames("FLIGHTS", "FLIGHTS_DEAD"), rows()[:LIMIT])
    assert counted == Counted(LIMIT - DEAD, DEAD, duplicates=0, missing=0, order_violations=0)
    assert all("message" in json.loads(line) for line in job.log.splitlines())
    limit = job.spec["containers"][0]["resources"]["limits"]["memory"]
    assert job.inspect("{{.HostConfig.Memory}}") == str(int(limit[:-2]) * 2**20)
    assert job.inspect("{{.HostConfig.ReadonlyRootfs}} {{.Config.User}}") == "true 65532:65532"

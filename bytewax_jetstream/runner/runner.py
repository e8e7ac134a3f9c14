"""`run`: everything that happens between the command line and the exit code, in order.

1. Signals end the process from here on, whatever it waits for.
2. The recovery directory is locked and looked at, before anything else could touch it.
3. The ports: metrics is probed, health is served.
4. The flow is imported, and each of its sources can drain.
5. The processes of the dataflow wait for each other, and compare their recovery stores.
6. Missing parts of the recovery store are made.
7. The engine runs.
"""

import atexit
import logging
import os
import shutil
import socket
import tempfile
import threading
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bytewax.run import cli_main

from .. import drain
from ..errors import RunError
from ..exit_codes import ExitCode, exit_now
from ..settings import RunSettings
from . import flow as flows
from .cluster import Cluster
from .ends import code_of, is_panic, sentence
from .health import HealthServer
from .life import Life
from .liveness import Liveness
from .peers import Peers
from .recovery_directory import Recovery, RecoveryDirectory, Store
from .signals import end_when_nothing_else_does

__all__ = ["Run", "run"]

log = logging.getLogger(__name__)

CACHE_PATH = "BYTEWAX_DATAFLOW_API_CACHE_PATH"
HEALTH_PORT = 8081
"""Where health is served when there are several processes and nothing else is said."""


class Run(NamedTuple):
    """What is run, and how."""

    flow: str
    """As in `flows.quickstart:flow`."""
    settings: RunSettings
    cluster: Cluster = Cluster()
    workers: int = 1
    """Worker threads of each process."""
    recovery: Recovery | None = None
    """None: the run begins at the start of its input."""
    epoch: timedelta = timedelta(seconds=10)
    """The length of an epoch."""
    drain_timeout: float = 20.0
    """Seconds for what was read, at a signal."""
    metrics_port: int | None = None
    """Where Bytewax serves `/metrics`; None: nowhere."""
    debug: bool = False
    """Whether an error is shown with its traceback."""

    @property
    def health_port(self) -> int | None:
        """Where health is served; None: nowhere."""
        default = HEALTH_PORT if self.cluster.addresses else None
        return self.settings.health_port or default


def run(asked: Run) -> ExitCode:
    """Run a dataflow to its end, or to a signal; says on the log why it ended otherwise."""
    if not asked.debug:
        os.environ["RUST_BACKTRACE"] = "0"  # the engine's own, when a step raises
    try:
        code = _run(asked)
    except BaseException as error:
        ended_by = error
        if is_panic(error):
            # Interrupted, the engine waits for its workers, and panics if one has failed meanwhile.
            ended_by = drain.interruption() or error
        log.critical("%s", sentence(ended_by, asked.cluster), exc_info=asked.debug)
        code = code_of(ended_by, asked.cluster)
        if is_panic(error):
            exit_now(code)  # the engine's other threads are still there, and would end in an abort
    if code is not ExitCode.STORED or drain.requested():
        _end_in_time(code, drain.timeout() + drain.GRACE)
    return code


def _end_in_time(code: ExitCode, seconds: float) -> None:
    """End the process when something keeps it alive, such as a thread that the flow has started."""

    def end() -> None:
        exit_now(
            code,
            partial(
                log.warning,
                "the run ended %g s ago, and a thread does not: %s",
                seconds,
                ", ".join(each.name for each in threading.enumerate() if not each.daemon),
            ),
        )

    ending = threading.Timer(seconds, end)
    ending.daemon = True
    ending.start()


def _run(asked: Run) -> ExitCode:
    drain.install(asked.drain_timeout)
    end_when_nothing_else_does()
    cluster, life = asked.cluster, Life(asked.cluster.process)
    _check_ports(asked)
    directory = None
    if asked.recovery is not None:
        directory = RecoveryDirectory(asked.recovery, cluster)
        life.store, life.parts = directory.claim(), directory.parts
    _serve_metrics(asked.metrics_port)
    liveness = Liveness()
    health_port = asked.health_port
    if health_port is not None:
        HealthServer(asked.settings.health_host, health_port, life, liveness).start()
        threading.Thread(
            target=liveness.watch, name="bytewax_jetstream-liveness", daemon=True
        ).start()
    life.step = f"importing {asked.flow}"
    flow = flows.load(asked.flow)
    flows.drain_all(flow, drain.timeout())  # its own settings may have another
    flows.call_when_built(flow, asked.workers, drain.begin)

    peers = None
    if cluster.addresses and health_port is not None:
        life.is_ready_to_run = True
        peers = Peers(cluster, health_port, life)
        peers.wait(asked.settings.start_timeout)
    if directory is not None and life.store is not Store.USED:
        directory.make()
    if peers is not None:
        _check_own_address(cluster)
        peers.watch()

    life.step = "connecting to the brokers"
    liveness.engine_starts()
    try:
        with drain.held():
            cli_main(
                flow,
                workers_per_process=asked.workers,
                process_id=cluster.process if cluster.addresses else None,
                addresses=list(cluster.addresses) or None,
                epoch_interval=asked.epoch,
                recovery_config=directory.config() if directory is not None else None,
            )
    finally:
        if peers is not None:
            peers.end()
    if drain.requested():
        log.info("a signal ended the run in order; the last epoch is committed")
        return ExitCode.SIGNALLED if asked.settings.must_finish else ExitCode.STORED
    return ExitCode.STORED


def _check_ports(asked: Run) -> None:
    """Each port has one use, and each process a host of its own.

    :raises RunError: when not.
    """
    hosts = asked.cluster.hosts
    twice = next((host for host in hosts if hosts.count(host) > 1), None)
    if twice is not None:
        raise RunError(
            f"two processes have the host {twice}, and all serve health on the same port: on one "
            "machine give them addresses such as 127.0.0.1 and 127.0.0.2, and set "
            "BYTEWAX_JETSTREAM_RUN_HEALTH_HOST to that of each"
        )
    uses = {"metrics": asked.metrics_port, "health": asked.health_port}
    if asked.cluster.addresses:
        own = asked.cluster.addresses[asked.cluster.process]
        uses["the other processes"] = int(own.rpartition(":")[2])
    ports = [port for port in uses.values() if port is not None]
    shared = next((port for port in ports if ports.count(port) > 1), None)
    if shared is not None:
        both = " and ".join(use for use, port in uses.items() if port == shared)
        raise RunError(
            f"port {shared} is to serve {both}: choose others with --metrics-port, --health-port "
            "or --addresses",
            port=shared,
        )


def _check_own_address(cluster: Cluster) -> None:
    """The engine says why it cannot listen there, but not what to do.

    :raises RunError: when it cannot.
    """
    address = cluster.addresses[cluster.process]
    host, _, port = address.rpartition(":")
    try:
        family, _, _, _, place = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)  # a process that waits for this one must not get a connection yet
    except (OSError, UnicodeError) as error:  # a label of the name is too long, or empty
        unresolved = isinstance(error, socket.gaierror)  # a name service may have a bad moment
        raise RunError(
            f"process {cluster.process} cannot listen on its address {address} ({error}): check "
            "that it is the address of this host, and that nothing else uses the port",
            exit_code=ExitCode.UNKNOWN if unresolved else ExitCode.USAGE,
            port=int(port),
        ) from None


def _serve_metrics(port: int | None) -> None:
    """Let the engine serve `/metrics`: it does where these variables are there, whatever is in
    them, and it only logs that a port is taken.

    :raises RunError: when the port cannot be used.
    """
    os.environ.pop("BYTEWAX_DATAFLOW_API_ENABLED", None)
    if port is None:
        return
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
            probe.listen()
    except (OSError, OverflowError) as error:
        raise RunError(
            f"the metrics port {port} cannot be used ({error}): end what uses it, or choose "
            "another with --metrics-port",
            port=port,
        ) from None
    os.environ["BYTEWAX_DATAFLOW_API_ENABLED"] = "1"
    os.environ["BYTEWAX_DATAFLOW_API_PORT"] = str(port)
    # The engine writes the dataflow's structure there; by default into the working directory, which
    # may be read-only.
    try:
        place = os.environ.get(CACHE_PATH, "").strip()
        if place:
            with tempfile.TemporaryFile(dir=place):
                pass
        else:
            # Of this run alone: a file of another user's would be in the way.
            place = tempfile.mkdtemp(prefix="bytewax-")
            atexit.register(shutil.rmtree, place, ignore_errors=True)
    except OSError as error:
        raise RunError(
            f"the metrics need a directory for a small file, and none can be written ({error}): "
            f"mount one on /tmp, or name one in {CACHE_PATH}"
        ) from None
    os.environ[CACHE_PATH] = str(Path(place).absolute())

"""A real Apache Kafka broker for local runs and tests, gone when its owner is gone.

Nothing is simulated: it is the broker itself (KRaft, one JVM with a small heap), from the jars on Maven
Central. They are fetched once by Maven and kept in the user's cache directory; after that Java alone will do.
"""

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Literal, Self

from .kafka_jars import (
    KafkaServerError,
    KafkaUnavailableError,
    Ports,
    await_ready,
    format_log,
    java,
    prepared,
    properties,
)
from .process import STOP_TIMEOUT, Run, dead, log_tail, spawn

__all__ = ["KafkaServer", "KafkaServerError", "KafkaUnavailableError"]


class KafkaServer:
    """A Kafka broker on loopback; what it stores lives as long as it does, or stays in `data_dir`.

    Killing and restarting the broker keeps its ports and its data. `close()`, the end of the `with` block and the
    death of this process, SIGKILL included, end the broker and remove temporary data. Topics are never made by
    accident. Not for several threads at once.

    Args:
        data_dir: where the broker keeps its data, made if missing and never removed; by default a temporary one.
        config: more broker properties, such as SASL users or an authorizer.
        protocol: what clients of `bootstrap` have to speak; the other addresses take PLAINTEXT, without credentials.
        proxied_as: the port of a proxy before `proxied`, which clients that came through it are sent back to.
        joins: a running server, whose cluster gets this one as a second broker.
    """

    def __init__(
        self,
        *,
        data_dir: Path | None = None,
        config: str = "",
        protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT",
        proxied_as: int | None = None,
        joins: "KafkaServer | None" = None,
    ) -> None:
        # Absolute: the server may be started again after this process has changed its directory.
        self._kept_data = data_dir and Path(data_dir).absolute()
        self._config = config
        self._protocol = protocol
        self._proxied_as = proxied_as
        self._joins = joins
        self._ports: Ports | None = None
        self._scratch: Path | None = None  # configuration, log, temporary data
        self._owner = 0
        self._run: Run | None = None
        self._paused = False
        self._last_log = ""

    def start(self) -> Self:
        """Start the broker, or start it again on its ports and data; returns once it serves clients.

        Raises:
            KafkaServerError: there is no Java, or the broker was not ready within 60 s, with the end of its log.
        """
        if self.alive:
            return self
        self.kill()  # one that ended by itself has not been reaped yet
        cache = prepared()
        first = self._scratch is None
        self._owner = os.getpid()
        self._scratch = self._scratch or Path(tempfile.mkdtemp(prefix="kafka-server-"))
        try:
            self._start_on_ports(cache, self._scratch)
        except BaseException:
            self.kill()
            if first:  # there is no `with` block yet that would
                self.close()
            raise
        return self

    def kill(self) -> None:
        """End the broker with SIGKILL; the data stays for the next `start()`."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """End the broker with SIGTERM, after 10 s with SIGKILL; the data stays for the next `start()`."""
        if self._paused:
            self.resume()  # a paused process acts on no SIGTERM
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """End the broker in good order if it runs, and start it on the same ports and data."""
        self.terminate()
        self.start()

    def close(self) -> None:
        """End the broker; temporary data is removed, given data is flushed and kept."""
        if self._scratch is None or self._owner != os.getpid():  # in a forked child: the broker is its parent's
            return
        self._end(signal.SIGTERM if self._kept_data and not self._paused else signal.SIGKILL)
        self._last_log = self.log
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch = None

    def pause(self) -> None:
        """Stop the broker with SIGSTOP: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """Let a paused broker go on with SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)
        self._paused = False

    @property
    def alive(self) -> bool:
        """Whether the broker's process lives; a paused one does."""
        return self._run is not None and not dead(self._run)

    @property
    def pid(self) -> int:
        """The broker's own process id."""
        if self._run is None:
            raise KafkaServerError("the Kafka broker is not running: call start() first")
        return self._run.pid

    @property
    def bootstrap(self) -> str:
        """What a client connects to, `127.0.0.1:PORT`; the same after a restart."""
        return f"127.0.0.1:{self.ports.client}"

    @property
    def proxied(self) -> str:
        """What a proxy connects to; whoever comes in here is told to come back to the proxy."""
        return f"127.0.0.1:{self.ports.proxied}"

    @property
    def internal(self) -> str:
        """What takes clients without credentials, as the cluster's own brokers."""
        return f"127.0.0.1:{self.ports.internal}"

    @property
    def log(self) -> str:
        """The end of the broker's log, over restarts; still there after `close()`."""
        return (self._scratch and log_tail(self._scratch)) or self._last_log

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"{'paused' if self._paused else 'running'}, pid {self.pid}" if self.alive else "not running"
        return f"<KafkaServer {self.bootstrap if self._ports else 'without a port yet'}, {state}>"

    @property
    def ports(self) -> Ports:
        """Where it listens, the same after a restart."""
        if self._ports is None:
            raise KafkaServerError("the Kafka broker gets its ports when it starts: call start() first")
        return self._ports

    def _start_on_ports(self, cache: Path, scratch: Path) -> None:
        for attempts_left in (4, 3, 2, 1, 0):
            chosen = self._ports is None
            self._ports = self._ports or Ports.chosen()
            data, configuration = self._kept_data or scratch / "data", scratch / "server.properties"
            controller = self._joins.ports.controller if self._joins else None
            text = properties(
                self._ports, data, protocol=self._protocol, proxied_as=self._proxied_as, controller=controller
            )
            configuration.write_text(text + self._config)
            format_log(cache, data, 2 if self._joins else 1)
            log = scratch / "log"
            start = log.stat().st_size if log.exists() else 0
            self._run = spawn(java(cache, "kafka.Kafka", str(configuration)), scratch)
            try:
                await_ready(self._run, scratch, start)
                return
            except KafkaServerError as error:
                self.kill()
                # Another process may take a port between our choice, or the broker's death, and its start.
                if not attempts_left or "Address already in use" not in str(error):
                    raise
                self._ports = None if chosen else self._ports

    def _end(self, how: signal.Signals) -> None:
        if self._run is None:
            return
        if not dead(self._run):
            os.kill(self._run.pid, how)
            if not dead(self._run, within=STOP_TIMEOUT):
                os.kill(self._run.pid, signal.SIGKILL)
        # The line says that the owner lives; leaving the block closes the pipes and waits for the supervisor.
        with self._run.supervisor, contextlib.suppress(BrokenPipeError):
            self._run.lifeline.write(b"\n")
        self._run = None
        self._paused = False

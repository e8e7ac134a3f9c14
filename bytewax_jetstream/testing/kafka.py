"""A real Apache Kafka broker for local runs and tests, gone when its owner is gone.

Nothing is simulated: it is the broker itself (KRaft, one JVM with a small heap), from the jars on
Maven Central. They are fetched once by Maven and kept in the user's cache directory; after that
Java alone will do.
"""

from pathlib import Path
from typing import Literal

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
from .process import OwnedServer, spawn

__all__ = ["KafkaServer", "KafkaServerError", "KafkaUnavailableError"]


class KafkaServer(OwnedServer):
    """A Kafka broker on loopback; what it stores lives as long as it does, or stays in `data_dir`.

    Killing and restarting the broker keeps its ports and its data. `close()`, the end of the `with`
    block and the death of this process, SIGKILL included, end the broker and remove temporary data.
    Topics are never made by accident. Not for several threads at once.

    Args:
        data_dir: where the broker keeps its data, made if missing and never removed; by default a
        temporary one. config: more broker properties, such as SASL users or an authorizer.
        protocol: what clients of `bootstrap` have to speak; the other addresses take PLAINTEXT,
        without credentials. proxied_as: the port of a proxy before `proxied`, which clients that
        came through it are sent back to. joins: a running server, whose cluster gets this one as a
        second broker.
    """

    error = KafkaServerError
    title = "Kafka broker"

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
        super().__init__(keeps_data=self._kept_data is not None)

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

    def __repr__(self) -> str:
        return f"<KafkaServer {self.bootstrap if self._ports else 'without a port yet'}, {self._state}>"

    @property
    def ports(self) -> Ports:
        """Where it listens, the same after a restart."""
        if self._ports is None:
            raise KafkaServerError(
                "the Kafka broker gets its ports when it starts: call start() first"
            )
        return self._ports

    def _launch(self, scratch: Path) -> None:
        cache = prepared()
        for attempts_left in (4, 3, 2, 1, 0):
            chosen = self._ports is None
            self._ports = self._ports or Ports.chosen()
            data, configuration = self._kept_data or scratch / "data", scratch / "server.properties"
            controller = self._joins.ports.controller if self._joins else None
            text = properties(
                self._ports,
                data,
                protocol=self._protocol,
                proxied_as=self._proxied_as,
                controller=controller,
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
                # Another process may take a port between our choice, or the broker's death, and its
                # start.
                if not attempts_left or "Address already in use" not in str(error):
                    raise
                self._ports = None if chosen else self._ports

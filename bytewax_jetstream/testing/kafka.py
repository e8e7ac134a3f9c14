"""`KafkaServer`: a real Apache Kafka broker for local runs and tests; it ends with its owner.

The broker is not simulated: it is Apache Kafka (KRaft, one JVM with a small heap) from the jars on
Maven Central. Maven fetches them once into the user's cache directory; after that only Java is
needed.
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
    """A Kafka broker on loopback; its data lasts as long as this object, or stays in `data_dir`.

    Killing and restarting the broker keeps its ports and its data. `close()`, the end of the `with`
    block and the death of this process, even by SIGKILL, end the broker and remove temporary data.
    The broker does not make topics by itself. Use it on one thread at a time.

    :arg data_dir: Where the broker keeps its data; made if missing, never removed. By default a
        temporary directory.
    :arg config: More broker properties, such as SASL users or an authorizer.
    :arg protocol: What clients of `bootstrap` must speak; the other addresses take PLAINTEXT
        without credentials.
    :arg proxied_as: The port of a proxy in front of `proxied`; its clients are sent back to it.
    :arg joins: A running server; this one becomes the second broker of its cluster.
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
        """What a proxy connects to; clients that come this way are sent back to the proxy."""
        return f"127.0.0.1:{self.ports.proxied}"

    @property
    def internal(self) -> str:
        """Where clients connect without credentials, as the cluster's brokers do."""
        return f"127.0.0.1:{self.ports.internal}"

    def __repr__(self) -> str:
        address = self.bootstrap if self._ports else "without a port yet"
        return f"<KafkaServer {address}, {self._state}>"

    @property
    def ports(self) -> Ports:
        """Where the broker listens; the same after a restart."""
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
                # Another process may have taken a port since we chose it or the broker ended.
                if not attempts_left or "Address already in use" not in str(error):
                    raise
                self._ports = None if chosen else self._ports

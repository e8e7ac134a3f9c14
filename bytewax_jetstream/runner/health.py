"""`HealthServer`: `/healthz`, `/readyz` and `/peer`, on a port of their own.

`/healthz` is 200 while the process can make progress by itself, otherwise 503: restart it.
`/readyz` is 200 while the dataflow runs and every broker it uses is connected; it is 503 while the
run starts or drains, or has no connection. `/peer` is for the other processes of the dataflow.
Every answer is JSON and says why.
"""

import json
import logging
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ..errors import RunError
from ..pool import AckPool
from .life import Life, Phase
from .liveness import Liveness

__all__ = ["HealthServer"]

log = logging.getLogger(__name__)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    """Connections that the system keeps while no Python code can run: peers take them for a sign of
    life.
    """

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away early is no error of ours."""
        log.debug("a client of the health port went away: %r", sys.exception())


class _Server6(_Server):
    address_family = socket.AF_INET6


class HealthServer:
    """Serves what the process says about itself.

    :arg host: The address to listen on.
    :arg port: The port; 0 takes a free one.
    :raises RunError: when the port cannot be used.
    """

    def __init__(self, host: str, port: int, life: Life, liveness: Liveness) -> None:
        self._life = life
        self._liveness = liveness
        answer = self._answer

        class Handler(BaseHTTPRequestHandler):
            timeout = 5  # a client that says nothing does not keep a thread

            def do_GET(self) -> None:  # the library's name
                status, said = answer(self.path.partition("?")[0])
                body = json.dumps(said).encode() + b"\n"
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Probes come every few seconds: they are not logged."""

        try:
            self._server = (_Server6 if ":" in host else _Server)((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise RunError(
                f"the health port {port} on {host} cannot be used ({error}): end what uses it, or "
                "choose another with --health-port",
                port=port,
            ) from None
        self.port: int = self._server.server_address[1]

    def start(self) -> None:
        """Answer from now on, on a thread of its own."""
        threading.Thread(
            target=self._server.serve_forever, name="bytewax_jetstream-health", daemon=True
        ).start()

    def _answer(self, path: str) -> tuple[int, dict[str, Any]]:
        life = self._life
        said: dict[str, Any] = {"state": str(life.phase)}
        if life.phase is Phase.STARTING:
            said["step"] = life.step
        if path == "/peer":
            return 200, said | {
                "process": life.process,
                "instance": life.instance,
                "ready_to_run": life.is_ready_to_run,
                "store": life.store,
                "parts": life.parts,
                "peers": life.peers,
                "refusal": life.refusal,
            }
        if path == "/healthz":
            reasons = self._liveness.complaints(time.monotonic())
        elif path == "/readyz":
            reasons = self._not_ready()
        else:
            return 404, {"error": f"there is no {path}: ask for /healthz or /readyz"}
        return (503 if reasons else 200), said | {"reasons": reasons}

    def _not_ready(self) -> list[str]:
        phase = self._life.phase
        if phase is Phase.STARTING:
            return [f"starting: {self._life.step}"]
        if phase is Phase.DRAINING:
            return ["draining: a signal came, and what was read is being stored"]
        return [
            f"{broker['broker']}: not connected"
            for pool in list(AckPool.live)
            for broker in pool.statistics()["brokers"]
            if not broker["connected"]
        ]

"""What the health port of a real run says while it starts, runs, waits and drains."""

import signal
import socket
from contextlib import AbstractContextManager
from pathlib import Path

from bytewax_jetstream.exit_codes import ExitCode
from bytewax_jetstream.testing import NatsServer
from tests.support.operated import FLOW, Operated
from tests.support.processes import Process, free_port, start_run
from tests.support.streams import make_stream


def _run(told: Operated, *options: object, **environment: str) -> AbstractContextManager[Process]:
    port = free_port()
    return start_run(
        FLOW,
        *("--health-port", port, *options),
        log=Path(told.folder, "log"),
        environment={**told.environment, **environment},
        health=f"127.0.0.1:{port}",
    )


def _says(run: Process, path: str, status: int, words: str) -> None:
    """Wait until it answers so."""
    run.until(lambda: (answer := run.ask(path))[0] == status and words in str(answer[1]))


def test_a_broker_that_is_away_makes_a_run_unready_and_not_dead(
    own_nats_server: NatsServer, tmp_path: Path
) -> None:
    make_stream(own_nats_server.url, "OPERATED", "operated")
    with _run(Operated(str(tmp_path), own_nats_server.url), "-s", 1) as run:
        _says(run, "readyz", 200, "running")
        own_nats_server.kill()

        _says(run, "readyz", 503, "jetstream: not connected")
        assert run.ask("healthz")[0] == 200
        own_nats_server.start()
        _says(run, "readyz", 200, "running")


def test_a_barrier_that_waits_is_alive_and_a_drain_says_so(
    own_nats_server: NatsServer, tmp_path: Path
) -> None:
    make_stream(own_nats_server.url, "OPERATED", "operated")
    told = Operated(str(tmp_path), own_nats_server.url)
    with _run(told, "-s", 1, BYTEWAX_JETSTREAM_POOL_DRAIN_TIMEOUT="60") as run:
        run.until(lambda: len(told.emitted) > 20)
        own_nats_server.pause()
        run.signal(signal.SIGTERM)

        _says(run, "readyz", 503, "draining: a signal came")
        assert run.ask("healthz") == (200, {"state": "draining", "reasons": []})
        own_nats_server.resume()
        assert run.end() == ExitCode.STORED, run.log


def test_a_run_that_connects_is_not_ready(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
        told = Operated(str(tmp_path), url, settings={"connect_timeout": 60.0})
        with _run(told) as run:
            run.says("ACK pool started")

            _says(run, "readyz", 503, "starting: connecting to the brokers")
            assert run.ask("healthz")[0] == 200
            assert run.ask("elsewhere")[0] == 404


def test_a_client_that_says_nothing_keeps_nobody_from_the_health_port(tmp_path: Path) -> None:
    with _run(Operated(str(tmp_path))) as run:
        _says(run, "readyz", 200, "running")
        host, _, port = run._health.partition(":")
        with socket.create_connection((host, int(port))) as silent:
            silent.sendall(b"GET ")
            assert run.ask("healthz")[0] == 200
        assert "Traceback" not in run.log

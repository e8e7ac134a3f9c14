"""What the health port answers, over HTTP, when a restart would help."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from bytewax_jetstream.errors import RunError
from bytewax_jetstream.pool import AckPool
from bytewax_jetstream.runner.health import HealthServer
from bytewax_jetstream.runner.life import Life
from bytewax_jetstream.runner.liveness import Liveness
from tests.support.fake_publisher import FakePublisher
from tests.support.waiting import until

STUCK_SECONDS = 0.2


@pytest.fixture
def liveness() -> Liveness:
    return Liveness(STUCK_SECONDS)


@pytest.fixture
def ask(liveness: Liveness) -> Iterator[Callable[[str], tuple[int, dict[str, Any]]]]:
    """Asks a health port: status and answer."""
    server = HealthServer("127.0.0.1", 0, Life(0), liveness)
    server.start()

    def answer(path: str) -> tuple[int, dict[str, Any]]:
        try:
            with urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=30) as got:
                return got.status, json.load(got)
        except HTTPError as error:
            return error.code, json.load(error)

    yield answer
    server._server.shutdown()
    server._server.server_close()


Ask = Callable[[str], tuple[int, dict[str, Any]]]


def test_a_worker_that_is_stuck_in_the_flows_own_code_fails_liveness(
    liveness: Liveness, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bytewax_jetstream.runner.liveness._is_worker", lambda thread: True)
    release = threading.Event()

    def a_step_of_the_flow() -> None:
        release.wait(60)

    def engine() -> None:
        liveness.engine_starts()
        a_step_of_the_flow()

    worker = threading.Thread(target=engine)
    worker.start()
    try:
        until(lambda: liveness._engine is not None)
        liveness.look(time.monotonic())
        until(lambda: ask("/healthz")[0] == 503)
        _, said = ask("/healthz")
        assert any("a worker has been in one call for" in each for each in said["reasons"])
    finally:
        release.set()
        worker.join()
    liveness.look(time.monotonic())
    assert not any("a_step_of_the_flow" in each for each in ask("/healthz")[1]["reasons"])


def test_a_pool_whose_thread_has_ended_fails_liveness(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AckPool() as pool:
        pool.lane(FakePublisher(), name="lane")
        assert ask("/healthz")[0] == 200

        pool._thread._loop_thread.stop()

        status, said = ask("/healthz")
        assert status == 503
        assert said["reasons"] == ["the ACK pool's thread has ended: it has ended"]


def test_a_start_says_what_it_does(ask: Ask) -> None:
    status, said = ask("/readyz")

    assert status == 503
    assert said == {
        "state": "starting",
        "step": "the command line is read",
        "reasons": ["starting: the command line is read"],
    }
    assert ask("/peer")[1]["process"] == 0
    assert ask("/")[0] == 404


def test_ipv6_is_served_too(liveness: Liveness) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    server = HealthServer("::1", 0, Life(0), liveness)
    server.start()

    with urlopen(f"http://[::1]:{server.port}/healthz", timeout=30) as got:
        assert got.status == 200
    server._server.shutdown()
    server._server.server_close()


def test_a_port_that_is_taken_is_one_sentence(liveness: Liveness) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"the health port {port} on 127.0.0.1 cannot be used"):
            HealthServer("127.0.0.1", port, Life(0), liveness)


def test_a_client_that_goes_away_early_is_not_printed(
    liveness: Liveness, capfd: pytest.CaptureFixture[str]
) -> None:
    server = HealthServer("127.0.0.1", 0, Life(0), liveness)
    with socket.socket() as client:
        server._server.handle_error(client, ("127.0.0.1", 1))
    server._server.server_close()

    assert capfd.readouterr().err == ""

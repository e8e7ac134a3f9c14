"""Processes of one dataflow wait for each other, and for nobody of an earlier run."""

from collections.abc import Iterator

import pytest

from bytewax_jetstream import drain
from bytewax_jetstream.errors import RunError
from bytewax_jetstream.exit_codes import ExitCode
from bytewax_jetstream.runner.cluster import Cluster
from bytewax_jetstream.runner.health import HealthServer
from bytewax_jetstream.runner.life import Life
from bytewax_jetstream.runner.liveness import Liveness
from bytewax_jetstream.runner.peers import Peers
from bytewax_jetstream.runner.recovery_directory import Store
from tests.support.processes import free_port


@pytest.fixture
def other() -> Iterator[tuple[Life, int]]:
    """Process 1, which has been waiting for the others, and the health port of all."""
    life, port = Life(1), free_port()
    life.is_ready_to_run, life.store, life.parts = True, Store.EMPTY, 2
    server = HealthServer("127.0.0.3", port, life, Liveness())
    server.start()
    yield life, port
    server._server.shutdown()
    server._server.server_close()


def _peers(port: int, store: Store) -> Peers:
    life = Life(0)
    life.is_ready_to_run, life.store, life.parts = True, store, 2
    return Peers(Cluster(0, ("127.0.0.2:1", "127.0.0.3:1")), port, life)


def test_a_process_that_starts_too_is_waited_for(other: tuple[Life, int]) -> None:
    _, port = other

    peers = _peers(port, Store.EMPTY)
    peers.wait(30)

    assert peers._life.peers == {"1": other[0].instance}


def test_a_process_that_runs_with_this_one_already_is_there(other: tuple[Life, int]) -> None:
    life, port = other
    peers = _peers(port, Store.EMPTY)
    life.peers = {"0": peers._life.instance}

    peers.wait(30)


def test_a_process_that_still_runs_with_the_one_before_is_not_there_and_not_refused(
    other: tuple[Life, int],
) -> None:
    life, port = other
    life.peers = {"0": "the one before"}

    with pytest.raises(RunError, match="cannot be reached") as missing:
        _peers(port, Store.USED).wait(1)

    assert missing.value.exit_code is ExitCode.UNKNOWN


def test_stores_that_do_not_belong_together_are_refused(other: tuple[Life, int]) -> None:
    _, port = other

    with pytest.raises(RunError, match="move the part files first") as refused:
        _peers(port, Store.USED).wait(30)

    assert refused.value.exit_code is ExitCode.USAGE


def test_a_refusal_of_another_process_is_not_said_again(other: tuple[Life, int]) -> None:
    life, port = other
    life.refusal = "the store has 2 parts"
    peers = _peers(port, Store.EMPTY)

    with pytest.raises(RunError, match=r"process 1 \(127\.0\.0\.3\) says: the store has 2 parts"):
        peers.wait(30)

    assert peers._life.refusal is None


@pytest.mark.parametrize("drains", [False, True])
def test_a_process_that_was_started_again_ends_this_one_only_if_it_does_not_drain(
    other: tuple[Life, int], monkeypatch: pytest.MonkeyPatch, drains: bool
) -> None:
    life, port = other
    ended: list[str] = []
    peers = _peers(port, Store.EMPTY)
    peers.wait(30)
    life.instance = "another"
    monkeypatch.setattr(drain, "requested", lambda: drains)
    monkeypatch.setattr(peers, "_end", ended.append)

    peers._watch(1)

    assert ended == ([] if drains else ["process 1 (127.0.0.3) was started again"])

"""What happens to a dataflow, its servers and its links while it runs."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import nats

from bytewax_jetstream.errors import JetStreamPipelineError
from tests.support.recovery.board import Slot
from tests.support.recovery.harness import Pipeline
from tests.support.recovery.rows import STREAM
from tests.support.recovery.setup import Broker, Setup
from tests.support.streams import api
from tests.support.waiting import PATIENCE, until

__all__ = ["Fault", "Scene", "possible"]


class Scene:
    """A running dataflow, and what a fault can touch; the numbers of a fault come from `random`."""

    def __init__(self, setup: Setup, pipeline: Pipeline, random: Random) -> None:
        self.setup, self.pipeline, self.random = setup, pipeline, random
        self.told: int | None = None
        """The signal that the present run was sent."""

    def start(self) -> None:
        """Start the next run."""
        self.told = None
        self.pipeline.start(workers=self.random.choice((1, 2)))

    def end(self, number: int) -> None:
        """Send the run a signal that ends it."""
        self.told = number
        self.pipeline.signal(number)

    def one(self) -> Any:
        """One of the servers."""
        return self.random.choice(self.setup.servers)

    def last(self, least: float, most: float) -> None:
        """Let the fault last for some seconds."""
        time.sleep(self.random.uniform(least, most))

    def await_unsettled(self) -> None:
        """Wait until something is on its way, or everything is settled."""
        board, pipeline = self.pipeline.board, self.pipeline
        settled = -1

        def still() -> bool:
            nonlocal settled
            before, settled = settled, board[Slot.SETTLED]
            return before == settled or board[Slot.UNSETTLED] > 0 or not pipeline.running

        until(still)


Fault = Callable[[Scene], None]


def run_killed(scene: Scene) -> None:
    scene.end(signal.SIGKILL)


def run_terminated(scene: Scene) -> None:
    scene.end(signal.SIGTERM)


def run_killed_with_silent_servers(scene: Scene) -> None:
    """What lies in the sockets is stored when the next run has begun, or shortly before."""
    with _paused(scene.setup.servers):
        scene.await_unsettled()
        scene.last(0, 1)
        scene.end(signal.SIGKILL)


def run_and_servers_killed(scene: Scene) -> None:
    with _paused(scene.setup.servers):
        scene.await_unsettled()
        scene.end(signal.SIGKILL)
        _kill(scene.setup.servers)
    _start(scene.setup.servers)


def server_killed(scene: Scene) -> None:
    server = scene.one()
    server.kill()
    scene.last(0, 4)
    _start([server])


def server_terminated(scene: Scene) -> None:
    server = scene.one()
    server.terminate()
    scene.last(0, 2)
    _start([server])


def server_paused(scene: Scene) -> None:
    with _paused([scene.one()]):
        scene.last(0.5, 6)


def connections_reset(scene: Scene) -> None:
    for _ in range(scene.random.randint(1, 6)):
        for proxy in scene.setup.proxies:
            proxy.cut_all()
        scene.last(0, 1)


def links_paused(scene: Scene) -> None:
    """Nobody is told; what was sent meanwhile arrives afterwards."""
    _pause_links(scene, True)
    scene.last(0.5, 6)
    _pause_links(scene, False)


def connections_dead(scene: Scene) -> None:
    """Nothing passes on the connections that stand, and neither side is told."""
    before = _connections(scene)
    for proxy in scene.setup.proxies:
        proxy.freeze_all()
    until(lambda: _connections(scene) > before or not scene.pipeline.running)


def answers_lost(scene: Scene) -> None:
    """Some of them, or all; on Kafka all, and then the connection."""
    random = Random(scene.random.random())  # the links draw on threads of their own
    share = scene.random.choice((0.05, 0.5, 1.0))
    kafka = scene.setup.broker == "kafka"
    for proxy in scene.setup.proxies:
        proxy.answers.loses = lambda frame: (
            kafka or (frame.startswith((b"MSG", b"HMSG")) and random.random() < share)
        )
    scene.last(0.3, 4)
    for proxy in scene.setup.proxies:
        if kafka:
            proxy.cut_all()
        proxy.answers.loses = lambda frame: False


def leader_steps_down(scene: Scene) -> None:
    for _ in range(scene.random.randint(1, 3)):
        api(scene.setup.server.url, f"STREAM.LEADER.STEPDOWN.{STREAM}")
        _await_leader(scene)


def leader_killed(scene: Scene) -> None:
    leader = _await_leader(scene)
    leader.kill()
    scene.last(0, 4)
    _start([leader])


def leader_paused(scene: Scene) -> None:
    with _paused([_await_leader(scene)]):
        scene.last(1, 6)


def servers_killed(scene: Scene) -> None:
    _kill(scene.setup.servers)
    scene.last(0, 2)
    _start(scene.setup.servers)


ANYWHERE: Sequence[Fault] = (
    run_killed,
    server_killed,
    run_terminated,
    server_paused,
    run_and_servers_killed,
    run_killed_with_silent_servers,
    server_terminated,
)
ON_A_LINK: Sequence[Fault] = (answers_lost, connections_reset, links_paused, connections_dead)
IN_A_CLUSTER: Sequence[Fault] = (leader_killed, leader_steps_down, servers_killed, leader_paused)


def possible(broker: Broker, *, linked: bool) -> Sequence[Fault]:
    """What can happen there."""
    links = ON_A_LINK if linked else ()
    return (*(IN_A_CLUSTER if broker == "cluster" else ()), *links, *ANYWHERE)


@contextmanager
def _paused(servers: Sequence[Any]) -> Iterator[None]:
    for server in servers:
        server.pause()
    try:
        yield
    finally:
        for server in servers:
            if server.alive:
                server.resume()


def _kill(servers: Sequence[Any]) -> None:
    for server in servers:
        server.kill()


def _start(servers: Sequence[Any]) -> None:
    """On a busy machine a connection of somebody else may have got the server's port meanwhile."""
    for server in servers:
        deadline = time.monotonic() + PATIENCE
        while not server.alive:
            try:
                server.start()
            except JetStreamPipelineError as error:
                taken = "address already in use" in str(error).lower()
                if not taken or time.monotonic() > deadline:
                    raise


def _connections(scene: Scene) -> int:
    return sum(proxy.connections for proxy in scene.setup.proxies)


def _pause_links(scene: Scene, paused: bool) -> None:
    for proxy in scene.setup.proxies:
        proxy.requests.paused = proxy.answers.paused = paused


def _await_leader(scene: Scene) -> Any:
    """The server that leads the stream."""
    leaders: list[Any] = []

    def found() -> bool:
        name = _leader_of(scene.setup.server.url)
        leaders[:] = [server for server in scene.setup.servers if server.name == name]
        return bool(leaders)

    until(found)
    return leaders[0]


def _leader_of(url: str) -> str:
    try:
        return str(api(url, f"STREAM.INFO.{STREAM}", seconds=0.5)["cluster"].get("leader", ""))
    except (nats.errors.Error, AssertionError):  # while there is none
        return ""

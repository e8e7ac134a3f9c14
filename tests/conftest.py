import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from bytewax_jetstream.testing import KafkaServer, KafkaUnavailableError, NatsServer
from tests.support.turns import Turns

pytest.register_assert_rewrite("tests.support.publisher_contract")

_FOLDER = pytest.StashKey[TemporaryDirectory[str]]()
_TURNS = pytest.StashKey[Turns]()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a test process of pytest-xdist where the processes of this run take turns."""
    stash = node.config.stash
    if _FOLDER not in stash:
        stash[_FOLDER] = TemporaryDirectory(prefix="turns-")
    node.workerinput["turns"] = stash[_FOLDER].name


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts its background jobs with SIGINT ignored, and their children inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if folder := getattr(config, "workerinput", {}).get("turns"):
        config.stash[_TURNS] = Turns(Path(folder))


def pytest_unconfigure(config: pytest.Config) -> None:
    if turns := config.stash.get(_TURNS, None):
        turns.close()
    if folder := config.stash.get(_FOLDER, None):
        folder.cleanup()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Wait for a turn before the test's own time begins."""
    turns = item.config.stash.get(_TURNS, None)
    if turns is None:  # nobody is beside this process
        return (yield)
    with turns.turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer]:
    """One server for all tests, never killed or paused; each test uses its own stream names."""
    with NatsServer() as server:
        yield server


@pytest.fixture
def own_nats_server() -> Iterator[NatsServer]:
    """A server of the test's own, to be killed, paused and restarted."""
    with NatsServer() as server:
        yield server


@pytest.fixture(scope="session")
def kafka_address() -> Iterator[str]:
    """One Kafka broker for all tests, never killed or paused; each test uses its own topics."""
    if given := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield given
        return
    with _kafka_server() as server:
        yield server.bootstrap


@pytest.fixture
def own_kafka_server() -> Iterator[KafkaServer]:
    """A broker of the test's own, to be killed, paused and restarted."""
    with _kafka_server() as server:
        yield server


@contextmanager
def _kafka_server() -> Iterator[KafkaServer]:
    server = KafkaServer()
    try:
        server.start()
    except KafkaUnavailableError as error:
        if os.environ.get("REQUIRE_BROKERS") == "1":
            raise
        pytest.skip(str(error))
    with server:
        yield server

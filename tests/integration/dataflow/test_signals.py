"""Signals to a process whose dataflow does not run yet, or no more, or does not end; and to a
forked child. What a running dataflow does at a signal is in `test_drain`.
"""

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bytewax_jetstream.exit_codes import ExitCode
from bytewax_jetstream.testing import NatsServer
from tests.support.child import Child, Told
from tests.support.programs import Program, as_process_1
from tests.support.streams import make_stream
from tests.support.waiting import until
from tests.support.ways import workers_1_2

FLOW = """
import logging, multiprocessing, os, signal, sys, threading, time
import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink
from bytewax_jetstream import drain, drain_on_signal
from tests.support.dataflows import Envelopes, run
from tests.support.streams import envelopes

logging.basicConfig(level=logging.INFO)

def flow_of(count, before, timeout=60):
    flow = Dataflow("flow")
    source = Envelopes(envelopes(count, "x"), before=before)
    up = op.input("in", flow, drain_on_signal(source, timeout=timeout))
    op.output("out", up, TestingSink([]))
    return flow
"""


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"nats://127.0.0.1:{listening.getsockname()[1]}"


# As process 1, which the kernel does not end by a signal that it does not handle


@workers_1_2
def test_process_1_ends_at_sigterm_while_it_connects(
    silent_server: str, tmp_path: Path, workers: int
) -> None:
    told = Told(silent_server, str(tmp_path))
    with Child.of(told, workers=workers, before=as_process_1()) as child:
        until(lambda: "ACK pool started" in child.log or not child.running, 60)
        child.signal(signal.SIGTERM)

        assert child.wait(5) == 128 + signal.SIGTERM, child.log


def test_process_1_ends_at_sigterm_after_its_flow(tmp_path: Path) -> None:
    text = f"""{FLOW}
run(flow_of(10, lambda index: None))
print("over", flush=True)
while True:
    time.sleep(60)
"""
    with Program.of(text, folder=tmp_path, before=as_process_1()) as program:
        program.says("over")
        program.signal(signal.SIGTERM)

        assert program.wait(10) == 128 + signal.SIGTERM, program.log


@workers_1_2
def test_process_1_drains_at_sigterm(
    own_nats_server: NatsServer, tmp_path: Path, workers: int
) -> None:
    make_stream(own_nats_server.url, "CHILD", "child")
    told = Told(own_nats_server.url, str(tmp_path))
    with Child.of(told, workers=workers, before=as_process_1()) as child:
        until(lambda: len(told.emitted) > 100 or not child.running, 60)
        child.signal(signal.SIGTERM)

        assert child.wait(20) == 0, child.log
    assert 100 < len(told.emitted) < told.messages


def test_process_ends_at_sigterm_even_if_the_default_does_nothing(tmp_path: Path) -> None:
    # What process 1 meets, where no namespace may be made.
    text = f"""{FLOW}
run(flow_of(10, lambda index: None))
os.kill = lambda pid, number: print("nothing happens", flush=True)
signal.raise_signal(signal.SIGTERM)
"""
    with Program.of(text, folder=tmp_path) as program:
        assert program.wait() == 128 + signal.SIGTERM, program.log
        assert "nothing happens" in program.log


# Between two runs


@workers_1_2
def test_ctrl_c_between_two_runs_leaves_the_next_one_its_drain(
    tmp_path: Path, workers: int
) -> None:
    text = f"""{FLOW}
workers = int(sys.argv[1])
runs = 0

def before(index):
    if runs == 2 and index == 100:
        os.kill(os.getpid(), signal.SIGINT)

flow = flow_of(100_000, before)
short = flow_of(10, before)
for runs in (1, 2):
    if runs == 1:
        run(short, workers=workers)
        for _ in range(2):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)
            except KeyboardInterrupt:
                print("interrupted", flush=True)
    else:
        run(flow, workers=workers)
print("drained", flush=True)
"""
    with Program.of(text, workers, folder=tmp_path) as program:
        assert program.wait() == 0, program.log
        assert program.log.count("interrupted") == 2
        assert "SIGINT: draining for at most" in program.log
        assert program.log.endswith("drained\n")


def test_the_end_of_one_drain_does_not_cut_off_the_next(tmp_path: Path) -> None:
    text = f"""{FLOW}
drain.GRACE = 0
signals = []
for timeout in (4, 60):
    def before(index):
        if index == 100:
            signals.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)
            while timeout == 60 and time.monotonic() < signals[0] + 5:
                time.sleep(0.1)  # until the first drain had to be over

    run(flow_of(100_000, before, timeout))
    print("drained", flush=True)
"""
    with Program.of(text, folder=tmp_path) as program:
        assert program.wait() == 0, program.log
        assert program.log.count("drained\n") == 2


# A drain that does not end


@workers_1_2
@pytest.mark.parametrize(
    ("signals", "sigint"),
    [(1, "SIG_IGN"), (2, "default_int_handler")],
    ids=["at the timeout, with SIGINT ignored", "at a second signal"],
)
def test_source_that_does_not_return_cannot_keep_the_process_alive(
    tmp_path: Path, workers: int, signals: int, sigint: str
) -> None:
    text = f"""{FLOW}
workers, signals = map(int, sys.argv[1:])
signal.signal(signal.SIGINT, signal.{sigint})  # ignored, as in a shell's background job
drain.GRACE = 0.3
stuck = threading.Event()

def before(index):
    if index == 10:
        print("stuck", flush=True)
        stuck.wait()

run(flow_of(100, before, timeout=0.3 if signals == 1 else 1000), workers=workers)
"""
    with Program.of(text, workers, signals, folder=tmp_path) as program:
        program.says("stuck")
        program.signal(signal.SIGTERM)
        if signals == 2:
            program.says("SIGTERM: draining for at most 1000 s")
            program.signal(signal.SIGTERM)

        # By the interrupt, or else, if that does not end it in time, by `exit_now`.
        assert program.wait(20) in (ExitCode.FAILED, ExitCode.UNKNOWN), program.log


@workers_1_2
def test_a_drain_ends_in_time_though_the_wall_clock_went_back(tmp_path: Path, workers: int) -> None:
    text = f"""{FLOW}
from datetime import timedelta
drain.GRACE = 0.3
drain.LONGEST_NAP = timedelta(hours=1)  # so long the engine waits after such a step

def before(index):
    print("running", flush=True)

flow = Dataflow("flow")
source = Envelopes(envelopes(20, "x"), before=before, pause=timedelta(hours=1))
op.output("out", op.input("in", flow, drain_on_signal(source, timeout=0.3)), TestingSink([]))
run(flow, workers=int(sys.argv[1]))
"""
    with Program.of(text, workers, folder=tmp_path) as program:
        program.says("running")
        program.signal(signal.SIGTERM)

        assert program.wait(20) != 0, program.log


# Forked children


@workers_1_2
def test_forked_child_of_a_running_flow_ends_at_terminate(tmp_path: Path, workers: int) -> None:
    text = f"""{FLOW}
workers = int(sys.argv[1])

def child():
    print("in the child", flush=True)
    while True:
        time.sleep(60)

def before(index):
    if index == 50:
        process = multiprocessing.get_context("fork").Process(target=child, daemon=True)
        process.start()
        print("child is", process.pid, flush=True)
        process.join(60)
        print("exit code", process.exitcode, flush=True)

run(flow_of(100, before), workers=workers)
print("the flow goes on", flush=True)
"""
    with Program.of(text, workers, folder=tmp_path) as program:
        program.says("in the child")
        program.says("child is")
        program.signal_child(signal.SIGTERM)
        program.says("exit code", seconds=10)

        assert program.wait() == 0, program.log
        assert f"exit code {-signal.SIGTERM}\n" in program.log
        assert "draining" not in program.log


@workers_1_2
@pytest.mark.parametrize("when", ["before the run", "in the run"])
def test_forked_child_drains_a_flow_of_its_own(tmp_path: Path, workers: int, when: str) -> None:
    text = f"""{FLOW}
workers, when = int(sys.argv[1]), sys.argv[2]

def before(index):
    if os.getpid() != parent and index == 100:
        os.kill(os.getpid(), signal.SIGTERM)

def child():
    run(flow if when == "before the run" else flow_of(100_000, before), workers=workers)
    print("drained", flush=True)

def fork(index):
    if index == 50:
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(60)
        print("exit code", process.exitcode, flush=True)

parent = os.getpid()
flow = flow_of(100_000, before)
if when == "before the run":
    fork(50)
else:
    run(flow_of(100, fork))
"""
    with Program.of(text, workers, when, folder=tmp_path) as program:
        assert program.wait() == 0, program.log
        assert program.log.count("drained\n") == 1
        assert program.log.count("exit code 0\n") == 1


def test_a_fork_while_a_source_opens_does_not_hang_the_child(
    silent_server: str, tmp_path: Path
) -> None:
    text = """
import os, sys, threading
from bytewax_jetstream import ConnectError, JetStreamSettings
from bytewax_jetstream.jetstream.source import JetStreamSource, shared_connection

def source(seconds):
    settings = JetStreamSettings(servers=(sys.argv[1],), connect_timeout=seconds)
    return JetStreamSource(settings, streams="S")

parents = source(60)
threading.Thread(target=parents.build_part, args=("in", "S", None), daemon=True).start()
while not shared_connection._lock.locked():
    pass
child = os.fork()
if not child:
    try:
        source(0.5).build_part("in", "S", None)
    except ConnectError:
        os._exit(0)
    os._exit(1)
print("exit code", os.waitpid(child, 0)[1], flush=True)
os._exit(0)
"""
    with Program.of(text, silent_server, folder=tmp_path) as program:
        assert program.wait(30) == 0, program.log
        assert "exit code 0\n" in program.log

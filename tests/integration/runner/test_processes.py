"""Several processes of one dataflow, as in a StatefulSet: they end, fail and change together."""

import shutil
import signal
from pathlib import Path

import pytest

from bytewax_jetstream.exit_codes import ExitCode
from bytewax_jetstream.testing import NatsServer
from k8s.rescale.move_parts import move
from tests.support import operated
from tests.support.child import Told
from tests.support.operated import Operated
from tests.support.processes import Process, Processes, free_port
from tests.support.streams import FLAWLESS, audit, make_stream, remake_stream
from tests.support.waiting import until

TOPIC = "child"


@pytest.fixture
def told(tmp_path: Path, own_nats_server: NatsServer) -> Told:
    """A flow that publishes for a quarter of a minute, if nobody stops it."""
    make_stream(own_nats_server.url, "CHILD", TOPIC)
    return Told(own_nats_server.url, str(tmp_path), messages=10_000)


def _codes(running: list[Process]) -> list[int]:
    return [each.end(250) for each in running]


def test_a_signal_to_one_process_ends_all_in_order(tmp_path: Path, told: Told) -> None:
    processes = Processes(told, tmp_path)
    with processes.started(3) as running:
        processes.wait_for(500, running)
        running[1].running.send_signal(signal.SIGTERM)

        assert _codes(running) == [ExitCode.STORED] * 3

    assert "SIGTERM: draining" in running[1].log
    assert "drains: draining" in running[0].log
    emitted = sorted(set(told.emitted))
    assert sorted({event_id for event_id, *_ in told.results}) == emitted


def test_kills_and_other_numbers_of_processes_lose_nothing_and_keep_the_order(
    tmp_path: Path, told: Told
) -> None:
    processes = Processes(told, tmp_path)
    seen = 0
    for count, ends in [(3, "kill"), (3, "signal"), (2, "kill"), (2, "signal"), (3, "end")]:
        with processes.started(count) as running:
            if ends == "end":
                codes = _codes(running)
                assert codes == [ExitCode.STORED] * count, running[0].log
                break
            processes.wait_for(seen + 800, running)
            if ends == "kill":
                running[count - 1].running.kill()
                codes = _codes(running)[: count - 1]
                assert codes == [ExitCode.UNKNOWN] * (count - 1), running[0].log
            else:
                running[0].running.send_signal(signal.SIGTERM)
                assert _codes(running) == [ExitCode.STORED] * count, running[0].log
            seen = len(told.emitted)
        if (count, ends) == (3, "signal"):
            move(2, [processes.store(number) for number in range(3)])
        if (count, ends) == (2, "signal"):
            move(3, [processes.store(number) for number in range(3)])

    assert audit(told.url, "CHILD", told.envelopes) == FLAWLESS


def test_a_volume_that_still_has_the_parts_of_three_is_refused_by_two(
    tmp_path: Path, told: Told
) -> None:
    processes = Processes(told, tmp_path)
    with processes.started(3) as running:
        processes.wait_for(300, running)
        running[0].running.send_signal(signal.SIGTERM)
        assert _codes(running) == [ExitCode.STORED] * 3
    emitted = len(told.emitted)

    with processes.started(2) as running:
        assert running[0].end() == ExitCode.USAGE
        assert "move the part files first" in running[0].log
    assert len(told.emitted) == emitted


def test_an_empty_volume_beside_a_used_one_is_refused_and_nothing_is_made(
    tmp_path: Path, told: Told
) -> None:
    processes = Processes(told, tmp_path)
    with processes.started(3) as running:
        processes.wait_for(300, running)
        running[0].running.send_signal(signal.SIGTERM)
        assert _codes(running) == [ExitCode.STORED] * 3
    emitted = len(told.emitted)
    shutil.rmtree(processes.store(2))

    with processes.started(3) as running:
        assert _codes(running) == [ExitCode.USAGE] * 3
    assert all("move the part files first" in each.log for each in running)
    assert not list(processes.store(2).glob("part-*"))
    assert len(told.emitted) == emitted


def test_a_second_writer_is_locked_out(tmp_path: Path, told: Told) -> None:
    processes = Processes(told, tmp_path)
    with processes.started(1) as first:
        processes.wait_for(10, first)
        with processes.started(1) as second:
            assert second[0].end() == ExitCode.LOCKED
        assert first[0].running.poll() is None


def test_a_process_that_waits_for_the_others_ends_at_a_signal(tmp_path: Path, told: Told) -> None:
    processes = Processes(told, tmp_path)
    with processes.started(3) as running:
        for late in running[1:]:
            late.running.kill()
        until(lambda: "waiting for process" in running[0].log, 60)
        status, said = running[0].ask("readyz")
        assert status == 503
        assert said["state"] == "starting"
        running[0].running.send_signal(signal.SIGTERM)
        assert running[0].end() == -signal.SIGTERM


# Whatever the dataflow does

DRAIN_1 = {"BYTEWAX_JETSTREAM_POOL_DRAIN_TIMEOUT": "1"}


def _both(told: Operated, tmp_path: Path) -> Processes:
    """Two processes without recovery; the only partition of the source is in one of them."""
    return Processes(told, tmp_path, flow=operated.FLOW, parts=None)


@pytest.mark.parametrize("signalled", [0, 1])
@pytest.mark.parametrize("publishes", [False, True])
def test_a_signal_to_a_process_with_or_without_sources_ends_both(
    tmp_path: Path, nats_server: NatsServer, signalled: int, publishes: bool
) -> None:
    remake_stream(nats_server.url, "OPERATED", "operated")
    told = Operated(str(tmp_path), nats_server.url if publishes else "", source="fixed")
    processes = _both(told, tmp_path)
    with processes.started(2) as running:
        processes.wait_for(20, running)
        running[signalled].running.send_signal(signal.SIGTERM)

        assert _codes(running) == [ExitCode.STORED] * 2, running[0].log + running[1].log


def test_a_step_that_hangs_in_one_process_ends_both_after_a_signal(tmp_path: Path) -> None:
    told = Operated(str(tmp_path), source="fixed", trouble="hangs")
    processes = _both(told, tmp_path)
    with processes.started(2, **DRAIN_1) as running:
        processes.wait_for(11, running)
        running[0].running.send_signal(signal.SIGTERM)

        assert _codes(running) == [ExitCode.UNKNOWN] * 2, running[0].log + running[1].log


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other_though_nothing_is_exchanged(
    tmp_path: Path, killed: int
) -> None:
    told = Operated(str(tmp_path), source="fixed", nap=3600)
    processes = _both(told, tmp_path)
    with processes.started(2) as running:
        processes.wait_for(1, running)
        until(lambda: [each.state() for each in running] == ["running"] * 2)
        running[killed].running.kill()

        other = running[1 - killed]
        # Ten seconds until it counts as gone, and twice five of grace.
        assert other.end(35) == ExitCode.UNKNOWN, other.log
    assert "another process" in other.log or "is gone for 10 s" in other.log


def test_a_process_whose_broker_is_away_ends_the_other_too(tmp_path: Path) -> None:
    address = f"nats://127.0.0.1:{free_port()}"
    told = Operated(str(tmp_path), address, source="fixed", settings={"connect_timeout": 1.0})
    with _both(told, tmp_path).started(2) as running:
        assert _codes(running) == [ExitCode.UNKNOWN] * 2, running[0].log + running[1].log


def test_a_job_of_several_processes_ends_in_all_of_them(tmp_path: Path) -> None:
    told = Operated(str(tmp_path), source="fixed", items=30)
    with _both(told, tmp_path).started(2) as running:
        assert _codes(running) == [ExitCode.STORED] * 2, running[0].log + running[1].log
    assert told.emitted == list(range(30))

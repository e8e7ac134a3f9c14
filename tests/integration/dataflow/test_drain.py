"""SIGTERM and SIGINT to a dataflow in a process of its own: it drains, or it ends in time and is
replayed.
"""

import signal
import time
from pathlib import Path

import pytest

from bytewax_jetstream.testing import NatsServer
from tests.support.child import Child, Told
from tests.support.dataflows import recovery_store
from tests.support.proxy import Proxy
from tests.support.streams import FLAWLESS, audit, make_stream, message_ids
from tests.support.waiting import PATIENCE, until
from tests.support.ways import workers_1_2

signals = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def _runs_to_its_end(told: Told, workers: int, store: Path | None) -> None:
    with Child.of(told, workers=workers, store=store) as child:
        assert child.wait(PATIENCE) == 0, child.log


@signals
@workers_1_2
def test_signal_settles_and_commits_all_emitted_envelopes(
    own_nats_server: NatsServer, tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    make_stream(own_nats_server.url, "CHILD", "child")
    told = Told(own_nats_server.url, str(tmp_path))
    store = recovery_store(tmp_path / "store")

    with Child.of(told, workers=workers, store=store) as child:
        until(lambda: len(told.emitted) > 500 or not child.running)
        child.signal(number)
        assert child.wait(PATIENCE) == 0, child.log
    emitted = told.emitted
    assert 500 < len(emitted) < told.messages, "the signal did not come in the middle"
    assert set(message_ids(own_nats_server.url, "CHILD")) == set(emitted)
    assert sorted(each for each, _, _ in told.results) == sorted(emitted)

    _runs_to_its_end(told, workers, store)

    assert len(told.emitted) == told.messages, "something was read twice"
    assert [result for result in told.results if result[1:] != ["stored", "False"]] == []
    assert len(told.results) == told.messages
    assert audit(own_nats_server.url, "CHILD", told.envelopes) == FLAWLESS


@workers_1_2
def test_a_source_without_partitions_drains_too(
    own_nats_server: NatsServer, tmp_path: Path, workers: int
) -> None:
    make_stream(own_nats_server.url, "CHILD", "child")
    told = Told(own_nats_server.url, str(tmp_path), source="dynamic")

    with Child.of(told, workers=workers) as child:
        until(lambda: len(told.emitted) > 200 or not child.running)
        child.signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 0, child.log

    assert 200 < len(told.emitted) < told.messages
    assert set(message_ids(own_nats_server.url, "CHILD")) == set(told.emitted)
    assert sorted(each for each, _, _ in told.results) == sorted(told.emitted)


@workers_1_2
def test_sleeping_source_is_woken_by_the_signal(
    own_nats_server: NatsServer, tmp_path: Path, workers: int
) -> None:
    make_stream(own_nats_server.url, "CHILD", "child")
    told = Told(own_nats_server.url, str(tmp_path), source="sleeping")

    with Child.of(told, workers=workers, store=recovery_store(tmp_path / "store")) as child:
        until(lambda: len(told.results) == 40 or not child.running)
        child.signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 0, child.log

    assert set(message_ids(own_nats_server.url, "CHILD")) == set(told.emitted)


@workers_1_2
def test_a_signal_before_the_source_starts_ends_the_process(tmp_path: Path, workers: int) -> None:
    # It still looks for its server then.
    told = Told("nats://127.0.0.1:1", str(tmp_path))
    with Child.of(told, workers=workers) as child:
        until(lambda: "ACK pool started" in child.log or not child.running)
        child.signal(signal.SIGTERM)

        assert child.wait(PATIENCE) != 0


@workers_1_2
def test_signal_after_the_end_of_the_sources_waits_for_unsettled_envelopes(
    own_nats_server: NatsServer, tmp_path: Path, workers: int
) -> None:
    make_stream(own_nats_server.url, "CHILD", "child")
    with Proxy(own_nats_server.url) as proxy:
        told = Told(proxy.url, str(tmp_path), messages=200, pool={"ack_timeout": 0.3})
        proxy.answers.loses = lambda frame: b'{"stream":"CHILD"' in frame
        store = recovery_store(tmp_path / "store")

        with Child.of(told, workers=workers, store=store) as child:
            until(lambda: len(told.emitted) == told.messages or not child.running)
            sent = proxy.requests.messages_to(b"child")
            until(
                lambda: proxy.requests.messages_to(b"child") > sent + 100 or not child.running
            )  # all, again
            child.signal(signal.SIGTERM)
            until(lambda: "draining for at most" in child.log or not child.running)
            proxy.answers.loses = lambda frame: False
            assert child.wait(PATIENCE) == 0, child.log

        assert proxy.answers.lost > 0
        _runs_to_its_end(told, workers, store)
    assert len(told.emitted) == told.messages, "the last epoch was not committed"
    assert audit(own_nats_server.url, "CHILD", told.envelopes) == FLAWLESS


@workers_1_2
@pytest.mark.parametrize(
    ("step", "pool"),
    [("publish", {}), ("publish", {"budget_messages": 100}), ("sink", {})],
    ids=["in the barrier", "behind a full budget", "in a sink"],
)
def test_envelopes_unsettled_at_the_drain_timeout_fail_the_run_and_are_replayed(
    own_nats_server: NatsServer, tmp_path: Path, workers: int, step: str, pool: dict[str, int]
) -> None:
    server = own_nats_server
    make_stream(server.url, "CHILD", "child")
    told = Told(server.url, str(tmp_path), step=step, drain_timeout=1, pool=pool)
    store = recovery_store(tmp_path / "store")

    with Child.of(told, workers=workers, store=store) as child:
        until(lambda: len(told.emitted) > 500 or not child.running)
        server.pause()
        emitted, paused = len(told.emitted), time.monotonic()
        # So something is in flight; a sink may have been in the midst of a write, and then emits no
        # more.
        until(lambda: len(told.emitted) > emitted or time.monotonic() > paused + 20)
        child.signal(signal.SIGTERM)
        assert child.wait(PATIENCE) > 0, child.log
        assert "are not settled in time: check that the broker answers" in child.log
    server.resume()
    unsettled = set(told.emitted) - set(message_ids(server.url, "CHILD"))
    first = len(told.emitted)

    _runs_to_its_end(told, workers, store)

    assert set(told.emitted[first:]) >= unsettled
    if step == "publish":
        assert {each for each, _, _ in told.results} == {
            envelope.event_id for envelope in told.envelopes
        }
    assert audit(server.url, "CHILD", told.envelopes) == FLAWLESS


@signals
@workers_1_2
def test_a_second_signal_aborts_at_once(
    own_nats_server: NatsServer, tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    server = own_nats_server
    make_stream(server.url, "CHILD", "child")
    told = Told(server.url, str(tmp_path), drain_timeout=300)
    store = recovery_store(tmp_path / "store")

    with Child.of(told, workers=workers, store=store) as child:
        until(lambda: len(told.emitted) > 500 or not child.running)
        server.pause()
        emitted = len(told.emitted)
        until(lambda: len(told.emitted) > emitted)  # so something is in flight
        child.signal(number)
        until(lambda: "draining for at most 300 s" in child.log)
        child.signal(number)
        assert child.wait(PATIENCE) != 0, child.log
    server.resume()

    _runs_to_its_end(told, workers, store)

    assert audit(server.url, "CHILD", told.envelopes) == FLAWLESS

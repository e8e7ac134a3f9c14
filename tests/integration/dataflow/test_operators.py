"""`publish`, `output` and `JetStreamSink` in dataflows, against a real nats-server."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path

import bytewax.operators as op
import psutil
import pytest
from bytewax.dataflow import Dataflow
from bytewax.errors import BytewaxRuntimeError
from bytewax.testing import TestingSink

import bytewax_jetstream.operators as jop
from bytewax_jetstream.envelope import Envelope, PublishResult
from bytewax_jetstream.errors import PoolClosedError, PublishError, StreamError
from bytewax_jetstream.pool import shared_pool
from bytewax_jetstream.settings import JetStreamSettings
from bytewax_jetstream.sinks import JetStreamSink
from bytewax_jetstream.testing import NatsServer
from tests.support.dataflows import (
    CrashError,
    Envelopes,
    Ledger,
    by_aggregate,
    publishing,
    recovery_store,
    root_cause,
    run,
)
from tests.support.lanes import jetstream
from tests.support.proxy import Proxy
from tests.support.streams import (
    FLAWLESS,
    Names,
    api,
    audit,
    envelopes,
    make_stream,
    message_ids,
    stored,
)
from tests.support.waiting import until
from tests.support.ways import workers_1_2

EVERY_BATCH = timedelta(0)
"""An epoch for each batch of the source."""


@pytest.fixture
def stream(nats_server: NatsServer, names: Names) -> str:
    """A stream for the test's own messages, on the subject of its name."""
    name = names()
    make_stream(nats_server.url, name, name, f"{name}.>")
    return name


@workers_1_2
def test_every_envelope_comes_back_once_in_the_right_stream(
    nats_server: NatsServer, stream: str, workers: int
) -> None:
    good = envelopes(2_000, stream)
    bad = [
        Envelope("", b"", event_id=f"bad-{number}", aggregate_id=f"a-{number}")
        for number in range(100)
    ]
    made = publishing(Envelopes(*by_aggregate([*good, *bad])), jetstream(nats_server.url))

    run(made.flow, workers=workers)

    assert Counter(result.event_id for result in made.oks) == Counter(
        each.event_id for each in good
    )
    assert Counter(result.envelope for result in made.errs) == Counter(bad)
    assert {result.stream for result in made.oks} == {stream}
    assert audit(nats_server.url, stream, good) == FLAWLESS


def test_every_worker_publishes(nats_server: NatsServer, stream: str) -> None:
    made = publishing(
        Envelopes(*by_aggregate(envelopes(2_000, stream))), jetstream(nats_server.url)
    )

    run(made.flow, workers=2)

    published = Counter(result.worker for result in made.oks)
    assert set(published) == {0, 1}
    assert min(published.values()) >= 200


@workers_1_2
@pytest.mark.parametrize("stored_before", [0, 300])
def test_each_lane_and_epoch_gets_one_checkpoint_with_its_counts(
    nats_server: NatsServer, stream: str, workers: int, stored_before: int
) -> None:
    settings = jetstream(nats_server.url)
    good = envelopes(1_000, stream)
    bad = [
        Envelope("*", b"", event_id=f"bad-{number}", aggregate_id=f"a-{number}")
        for number in range(50)
    ]
    run(publishing(Envelopes(good[:stored_before]), settings).flow)
    made = publishing(Envelopes(*by_aggregate([*good, *bad]), batch_size=5), settings)

    run(made.flow, workers=workers, epoch=EVERY_BATCH)

    results: dict[tuple[int, int], list[PublishResult]] = defaultdict(list)
    for result in [*made.oks, *made.errs]:
        results[result.worker, result.epoch].append(result)
    assert len(results) >= 20
    assert len(made.checkpoints) == len(results)
    for checkpoint in made.checkpoints:
        theirs = results.pop((checkpoint.worker, checkpoint.epoch))
        assert checkpoint.step == "flow.publish"
        assert checkpoint.stored == sum(result.envelope is None for result in theirs)
        assert checkpoint.duplicates == sum(bool(result.duplicate) for result in theirs)
        assert checkpoint.rejected == sum(result.envelope is not None for result in theirs)
        assert checkpoint.last_event_id in {result.event_id for result in theirs}
    assert len({(checkpoint.worker, checkpoint.lane) for checkpoint in made.checkpoints}) == workers
    assert sum(checkpoint.duplicates for checkpoint in made.checkpoints) == stored_before


def test_checkpoint_names_the_event_id_that_was_settled_last(
    nats_server: NatsServer, stream: str
) -> None:
    made = publishing(
        Envelopes(envelopes(50, stream, aggregates=1), batch_size=10), jetstream(nats_server.url)
    )

    run(made.flow, epoch=EVERY_BATCH)

    assert [each.last_event_id for each in made.checkpoints] == [
        f"e-{number}" for number in (9, 19, 29, 39, 49)
    ]


def test_result_names_its_epoch_and_worker(nats_server: NatsServer, stream: str) -> None:
    made = publishing(Envelopes(envelopes(50, stream), batch_size=10), jetstream(nats_server.url))

    run(made.flow, epoch=EVERY_BATCH)

    assert {
        (result.worker, result.epoch, int(result.event_id[2:]) // 10) for result in made.oks
    } == {(0, epoch, epoch - 1) for epoch in range(1, 6)}


@workers_1_2
def test_an_epoch_commits_only_when_all_of_it_is_stored(
    nats_server: NatsServer, proxy: Proxy, stream: str, tmp_path: Path, workers: int
) -> None:
    # A source is asked for more, after its snapshot, only when the epoch of that snapshot is
    # committed everywhere.
    proxy.answers.delay = 0.002
    seen: list[tuple[int, int]] = []

    def before(index: int) -> None:
        seen.append((index, api(nats_server.url, f"STREAM.INFO.{stream}")["state"]["messages"]))

    made = publishing(
        Envelopes(envelopes(200, stream), batch_size=20, before=before), jetstream(proxy.url)
    )

    run(made.flow, workers=workers, store=recovery_store(tmp_path / "store"), epoch=EVERY_BATCH)

    assert [index for index, _ in seen] == [*range(0, 201, 20)]
    assert all(messages >= index for index, messages in seen), seen


@pytest.mark.parametrize("workers", [(1, 1, 1, 1), (2, 2, 2, 2), (1, 2, 1, 2)], ids=str)
def test_results_and_checkpoints_survive_crashes_at_the_commit_of_an_epoch(
    nats_server: NatsServer, proxy: Proxy, stream: str, tmp_path: Path, workers: tuple[int, ...]
) -> None:
    # The acks come only while an epoch's end waits for them, so its results can be passed on only
    # in the next epoch, and the crash is when a source is asked for more: the epoch is committed,
    # the next one is not.
    proxy.answers.delay = 0.005
    batch = envelopes(400, stream)
    asked: list[int] = []

    def before(index: int) -> None:
        asked.append(index)
        if index > asked[0] and crashing:
            raise CrashError(str(index))

    flow = Dataflow("flow")
    source = Envelopes(*by_aggregate(batch), batch_size=3, before=before)
    out = jop.publish("publish", op.input("in", flow, source), jetstream(proxy.url))
    results, checkpoints = Ledger(), Ledger()
    op.output("results", op.map("id", out.oks, lambda result: ("all", result.event_id)), results)
    op.output(
        "checkpoints",
        op.map("all", out.checkpoints, lambda checkpoint: ("all", checkpoint)),
        checkpoints,
    )
    store = recovery_store(tmp_path / "store", parts=2)

    crashing = True
    for started, number in enumerate(workers):
        asked.clear()
        with pytest.raises(BytewaxRuntimeError) as crashed:
            run(flow, workers=number, store=store, epoch=EVERY_BATCH)
        assert isinstance(root_cause(crashed.value), CrashError)
        assert min(asked) == 3 * started, (
            "the epoch before the crash was not committed, so nothing was to survive"
        )
    crashing = False
    proxy.answers.delay = 0
    run(flow, workers=workers[0], store=store, epoch=EVERY_BATCH)

    assert results.counts == {envelope.event_id: 1 for envelope in batch}
    assert set(checkpoints.counts.values()) == {1}
    assert sum(checkpoint.stored for checkpoint in checkpoints.counts) == len(batch)
    assert audit(nats_server.url, stream, batch) == FLAWLESS


@workers_1_2
def test_crash_at_any_batch_loses_and_duplicates_nothing(
    nats_server: NatsServer, stream: str, tmp_path: Path, workers: int
) -> None:
    batch = envelopes(2_000, stream)
    calls, fatal = count(), 0

    def before(index: int) -> None:
        if next(calls) == fatal:
            raise CrashError(str(index))

    flow = Dataflow("flow")
    source = Envelopes(*by_aggregate(batch), before=before)
    out = jop.publish("publish", op.input("in", flow, source), jetstream(nats_server.url))
    results = Ledger()
    op.output("results", op.map("id", out.oks, lambda result: ("all", result.event_id)), results)
    store = recovery_store(tmp_path / "store")
    for fatal in (2, 20, 3, 30):  # noqa: B007  # read by `before`
        calls = count()
        with pytest.raises(BytewaxRuntimeError) as crashed:
            run(flow, workers=workers, store=store, epoch=EVERY_BATCH)
        assert isinstance(root_cause(crashed.value), CrashError)
    fatal = -1
    run(flow, workers=workers, store=store, epoch=EVERY_BATCH)

    assert results.counts == {envelope.event_id: 1 for envelope in batch}
    assert audit(nats_server.url, stream, batch) == FLAWLESS


def _as_own(number: int, envelope: Envelope) -> Envelope:
    return envelope._replace(event_id=f"{number}-{envelope.event_id}")


def _again(result: PublishResult) -> Envelope:
    return Envelope(f"{result.stream}.again", b"0", event_id=f"again-{result.event_id}")


@workers_1_2
@pytest.mark.parametrize("budget", [1, 10])
def test_a_small_budget_does_not_stall_two_publish_steps_in_series(
    nats_server: NatsServer, stream: str, workers: int, budget: int
) -> None:
    settings = jetstream(nats_server.url, pool={"budget_messages": budget})
    batch = envelopes(500, stream)
    flow = Dataflow("series")
    first = jop.publish(
        "first", op.input("in", flow, Envelopes(*by_aggregate(batch), batch_size=25)), settings
    )
    second = jop.publish("second", op.map("again", first.oks, _again), settings)
    oks: list[PublishResult] = []
    op.output("oks", second.oks, TestingSink(oks))

    run(flow, workers=workers)

    assert {result.event_id for result in oks} == {
        f"again-{envelope.event_id}" for envelope in batch
    }
    assert len(stored(nats_server.url, stream)) == 1_000


@workers_1_2
@pytest.mark.parametrize(
    "clients", [("one", "one"), ("one", "other")], ids=["one connection", "two connections"]
)
def test_a_small_budget_does_not_stall_two_publish_steps_side_by_side(
    nats_server: NatsServer, stream: str, workers: int, clients: tuple[str, str]
) -> None:
    batch = envelopes(500, stream)
    flow = Dataflow("side-by-side")
    up = op.input("in", flow, Envelopes(*by_aggregate(batch), batch_size=25))
    oks: list[PublishResult] = []
    for number, name in enumerate(clients):
        settings = jetstream(nats_server.url, name=name, pool={"budget_messages": 10})
        mine = op.map(f"own-{number}", up, partial(_as_own, number))
        op.output(
            f"oks-{number}", jop.publish(f"publish-{number}", mine, settings).oks, TestingSink(oks)
        )

    run(flow, workers=workers)

    wanted = {f"{number}-{envelope.event_id}" for number in range(2) for envelope in batch}
    assert {result.event_id for result in oks} == wanted
    assert set(message_ids(nats_server.url, stream)) == wanted


def _to_output(source: Envelopes, settings: JetStreamSettings) -> Dataflow:
    flow = Dataflow("flow")
    jop.output("out", op.input("in", flow, source), settings)
    return flow


def _to_sink(source: Envelopes, settings: JetStreamSettings) -> Dataflow:
    flow = Dataflow("flow")
    op.output("out", op.input("in", flow, source), JetStreamSink(settings))
    return flow


both_outputs = pytest.mark.parametrize("to", [_to_output, _to_sink])


@workers_1_2
@both_outputs
def test_an_output_stores_everything(
    nats_server: NatsServer,
    stream: str,
    to: Callable[[Envelopes, JetStreamSettings], Dataflow],
    workers: int,
) -> None:
    batch = envelopes(2_000, stream)

    run(
        to(Envelopes(*by_aggregate(batch), batch_size=50), jetstream(nats_server.url)),
        workers=workers,
    )

    assert audit(nats_server.url, stream, batch) == FLAWLESS


@workers_1_2
@both_outputs
def test_output_stops_at_a_rejected_envelope_and_does_not_commit_its_epoch(
    nats_server: NatsServer,
    stream: str,
    tmp_path: Path,
    to: Callable[[Envelopes, JetStreamSettings], Dataflow],
    workers: int,
) -> None:
    batch = envelopes(300, stream)
    bad = [each._replace(topic="") if each.event_id == "e-155" else each for each in batch]
    store = recovery_store(tmp_path / "store")
    settings = jetstream(nats_server.url)

    with pytest.raises(BytewaxRuntimeError) as stopped:
        run(to(Envelopes(bad), settings), workers=workers, store=store, epoch=EVERY_BATCH)

    cause = root_cause(stopped.value)
    assert isinstance(cause, PublishError)
    assert str(cause).startswith(
        "envelope e-155 on  is rejected: the topic is empty: give the envelope a subject"
    )
    asked: list[int] = []
    run(
        to(Envelopes(batch, before=asked.append), settings),
        workers=workers,
        store=store,
        epoch=EVERY_BATCH,
    )
    assert asked[0] == 150
    assert audit(nats_server.url, stream, batch) == FLAWLESS


def _left() -> tuple[int, int, bool]:
    """Threads, file descriptors and the process's pool: a run leaves none of them behind."""
    process = psutil.Process()
    return process.num_threads(), process.num_fds(), shared_pool._shared.pool is not None


@pytest.mark.parametrize("store", [False, True], ids=["without recovery", "with recovery"])
@pytest.mark.alone
def test_successive_dataflows_in_one_process_leave_nothing_behind(
    nats_server: NatsServer, names: Names, tmp_path: Path, *, store: bool
) -> None:
    before = _left()
    for number, workers in enumerate((1, 2, 1, 2)):
        stream = names()
        make_stream(nats_server.url, stream, stream)
        batch = envelopes(500, stream)
        made = publishing(Envelopes(*by_aggregate(batch)), jetstream(nats_server.url))

        run(
            made.flow,
            workers=workers,
            store=recovery_store(tmp_path / str(number)) if store else None,
        )

        assert audit(nats_server.url, stream, batch) == FLAWLESS
        assert _left() == before


@pytest.mark.alone
def test_failed_dataflow_leaves_nothing_behind(nats_server: NatsServer, stream: str) -> None:
    def crash(index: int) -> None:
        if index == 100:
            raise CrashError(str(index))

    before = _left()
    for workers in (1, 2, 1, 2):
        made = publishing(
            Envelopes(envelopes(500, stream), before=crash), jetstream(nats_server.url)
        )
        with pytest.raises(BytewaxRuntimeError):
            run(made.flow, workers=workers)
        until(lambda: _left() == before)  # the engine raises before its other threads have ended


@pytest.mark.alone
def test_dataflow_that_cannot_start_leaves_nothing_behind(nats_server: NatsServer) -> None:
    before = _left()
    for workers in (1, 2, 1, 2):
        made = publishing(
            Envelopes(envelopes(5, "x")), jetstream(nats_server.url, topics=("nobodys",))
        )
        with pytest.raises(BytewaxRuntimeError) as failed:
            run(made.flow, workers=workers)
        assert isinstance(root_cause(failed.value), StreamError)
        until(lambda: _left() == before)


def test_steps_with_different_pool_settings_are_refused_naming_both(
    nats_server: NatsServer, stream: str
) -> None:
    flow = Dataflow("flow")
    up = op.input("in", flow, Envelopes(envelopes(10, stream)))
    for number in (1, 2):
        jop.publish(
            f"publish-{number}", up, jetstream(nats_server.url, pool={"budget_messages": number})
        )

    with pytest.raises(BytewaxRuntimeError) as refused:
        run(flow)

    cause = root_cause(refused.value)
    assert isinstance(cause, PoolClosedError)
    assert "give all steps the same PoolSettings" in str(cause)
    assert "budget_messages=1" in str(cause)
    assert "budget_messages=2" in str(cause)


def test_outputs_of_a_publish_step_may_stay_unconnected(
    nats_server: NatsServer, stream: str
) -> None:
    batch = envelopes(1_000, stream)
    flow = Dataflow("flow")
    jop.publish(
        "publish", op.input("in", flow, Envelopes(*by_aggregate(batch))), jetstream(nats_server.url)
    )

    run(flow, workers=2)

    assert audit(nats_server.url, stream, batch) == FLAWLESS


def test_an_idle_source_does_not_hold_results_back(nats_server: NatsServer, stream: str) -> None:
    patience = time.monotonic() + 20

    def nothing_yet(index: int) -> bool:
        return index == 10 and len(made.oks) < 10 and time.monotonic() < patience

    source = Envelopes(envelopes(20, stream), before=nothing_yet)
    made = publishing(source, jetstream(nats_server.url))

    run(made.flow, epoch=timedelta(minutes=1))

    assert time.monotonic() < patience
    assert len(made.oks) == 20


def test_an_idle_source_does_not_hold_a_checkpoint_back(
    nats_server: NatsServer, stream: str
) -> None:
    patience = time.monotonic() + 20

    def nothing_yet(index: int) -> bool:
        return index == 10 and not made.checkpoints and time.monotonic() < patience

    source = Envelopes(envelopes(20, stream), before=nothing_yet)
    made = publishing(source, jetstream(nats_server.url))

    run(made.flow)

    assert time.monotonic() < patience
    assert sum(checkpoint.stored for checkpoint in made.checkpoints) == 20

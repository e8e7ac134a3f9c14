"""A server that is killed, paused and restarted, and a cluster that loses its leaders, under a
dataflow.
"""

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import nats
import pytest
from bytewax.errors import BytewaxRuntimeError

from bytewax_jetstream.envelope import Envelope, Outcome, PublishOptions
from bytewax_jetstream.errors import PublishError
from bytewax_jetstream.settings import StreamSettings
from bytewax_jetstream.testing import NatsCluster, NatsServer
from tests.support.dataflows import (
    Envelopes,
    Publishing,
    by_aggregate,
    publishing,
    recovery_store,
    root_cause,
    run,
)
from tests.support.lanes import broker_of, jetstream, opened, publish
from tests.support.streams import FLAWLESS, api, audit, envelopes, make_stream, stored
from tests.support.waiting import until
from tests.support.ways import workers_1_2

pytestmark = pytest.mark.usefixtures("batched")


class _Faults:
    """Faults in order of their index: each is called when a partition has come to it."""

    def __init__(self, faults: dict[int, Callable[[], object]]) -> None:
        self._left = sorted(faults.items())
        self._lock = threading.Lock()

    def __call__(self, index: int) -> None:
        with self._lock:
            while self._left and index >= self._left[0][0]:
                self._left.pop(0)[1]()

    @property
    def over(self) -> bool:
        return not self._left


def _assert_flawless(made: Publishing, batch: list[Envelope], url: str, stream: str) -> None:
    assert audit(url, stream, batch) == FLAWLESS
    assert Counter(result.event_id for result in made.oks) == Counter(
        each.event_id for each in batch
    )
    assert not made.errs
    assert sum(checkpoint.stored for checkpoint in made.checkpoints) == len(batch)
    assert max(result.attempts for result in made.oks) > 1, "no fault met a message on its way"


def _kill(server: NatsServer) -> None:
    server.kill()
    server.start()


def _terminate(server: NatsServer) -> None:
    server.terminate()
    server.start()


@workers_1_2
@pytest.mark.parametrize("fault", [_kill, _terminate])
def test_restarted_server_loses_and_duplicates_nothing(
    own_nats_server: NatsServer, fault: Callable[[NatsServer], None], workers: int
) -> None:
    server = own_nats_server
    make_stream(server.url, "ENDS", "ends")
    batch = envelopes(16_000, "ends", aggregates=800)
    faults = _Faults({index: lambda: fault(server) for index in (200, 600, 1_000, 1_400)})
    source = Envelopes(*by_aggregate(batch), batch_size=50, before=faults)
    made = publishing(source, jetstream(server.url))

    run(made.flow, workers=workers)

    assert faults.over
    _assert_flawless(made, batch, server.url, "ENDS")


@pytest.mark.parametrize("seconds", [1, 8])
def test_paused_server_loses_and_duplicates_nothing(
    own_nats_server: NatsServer, seconds: int
) -> None:
    server = own_nats_server
    make_stream(server.url, "PAUSED", "paused")
    batch = envelopes(8_000, "paused", aggregates=800)

    with ExitStack() as timers:

        def pause() -> None:
            server.pause()
            timer = threading.Timer(seconds, server.resume)
            timer.start()
            timers.callback(timer.join)

        faults = _Faults({200: pause})
        source = Envelopes(*by_aggregate(batch), batch_size=50, before=faults)
        made = publishing(source, jetstream(server.url, ack_timeout=0.4))

        run(made.flow, workers=2)

    assert faults.over
    _assert_flawless(made, batch, server.url, "PAUSED")


def test_server_away_for_many_ack_timeouts_loses_and_duplicates_nothing(
    own_nats_server: NatsServer,
) -> None:
    server = own_nats_server
    make_stream(server.url, "AWAY", "away")
    batch = envelopes(20_000, "away", aggregates=2_000)
    with opened(jetstream(server.url, ack_timeout=0.1)) as (pool, lane):
        lane.submit(batch)
        until(lambda: broker_of(pool)["in_flight"] > 500)
        server.kill()
        until(lambda: broker_of(pool)["retries"] > 0)
        threading.Timer(1.5, server.start).start()
        results = lane.flush()

    assert len(results) == len(batch)
    assert {result.outcome for result in results} == {Outcome.STORED}
    assert audit(server.url, "AWAY", batch) == FLAWLESS


@workers_1_2
def test_server_gone_for_good_stops_the_run_and_the_next_run_replays(
    own_nats_server: NatsServer, tmp_path: Path, workers: int
) -> None:
    server = own_nats_server
    make_stream(server.url, "GONE", "gone")
    batch = envelopes(4_000, "gone")
    store = recovery_store(tmp_path / "store")
    faults = _Faults({300: server.kill})
    asked: list[int] = []

    def before(index: int) -> None:
        faults(index)
        asked.append(index)

    settings = jetstream(server.url, ack_timeout=0.3, delivery_timeout=1)
    made = publishing(Envelopes(*by_aggregate(batch), batch_size=20, before=before), settings)

    with pytest.raises(BytewaxRuntimeError) as stopped:
        run(made.flow, workers=workers, store=store)

    cause = root_cause(stopped.value)
    assert isinstance(cause, PublishError)
    assert str(cause).startswith("flow.publish stops without committing its epoch: envelope e-")
    assert "is unknown: not settled while the broker settled nothing for 1 s" in str(cause)
    assert (cause.outcome, cause.broker) == ("unknown", "jetstream")
    assert f"envelope {cause.event_id} on {cause.topic} is" in str(cause)
    assert "\n" not in str(cause)
    assert not made.errs, "an unknown result left the dataflow"
    last = max(asked)
    asked.clear()
    server.start()
    run(made.flow, workers=workers, store=store)
    assert min(asked) <= last
    assert audit(server.url, "GONE", batch) == FLAWLESS
    assert {result.event_id for result in made.oks} == {envelope.event_id for envelope in batch}


def _leader(cluster: NatsCluster, stream: str) -> str:
    try:
        return str(
            api(cluster.url, f"STREAM.INFO.{stream}", seconds=0.5)["cluster"].get("leader", "")
        )
    except nats.errors.Error:  # while there is none, nobody answers
        return ""


def test_cluster_that_loses_its_leaders_loses_and_duplicates_no_message(
    cluster: NatsCluster, *, batched: bool
) -> None:
    stream = f"R3{batched}"
    make_stream(cluster.url, stream, stream, num_replicas=3)
    batch = envelopes(6_000, stream, aggregates=600)
    killed: list[NatsServer] = []

    def step_down() -> None:
        before = _leader(cluster, stream)
        api(cluster.url, f"STREAM.LEADER.STEPDOWN.{stream}")
        until(lambda: _leader(cluster, stream) not in ("", before))

    def kill_leader() -> None:
        (server,) = (
            each
            for each in cluster.servers
            if f"n{cluster.servers.index(each) + 1}" == _leader(cluster, stream)
        )
        server.kill()
        killed.append(server)

    def bring_back() -> None:
        killed[0].start()

    faults = _Faults(
        {100: step_down, 200: step_down, 300: step_down, 400: kill_leader, 600: bring_back}
    )
    source = Envelopes(*by_aggregate(batch), batch_size=20, before=faults)
    made = publishing(source, jetstream(cluster.url))

    run(made.flow, workers=2)

    assert faults.over
    assert killed
    _assert_flawless(made, batch, cluster.url, stream)


def test_a_replicated_stream_is_not_updated_down_to_one_replica(
    cluster: NatsCluster, *, batched: bool
) -> None:
    make_stream(cluster.url, f"KEPT3{batched}", f"kept3{batched}.>", num_replicas=3)
    wanted = StreamSettings(
        name=f"KEPT3{batched}", subjects=(f"kept3{batched}.>",), max_messages=1_000
    )
    settings = jetstream(cluster.url, streams=(wanted,), stream_strategy="create_or_update")

    publish(settings, *envelopes(10, f"kept3{batched}.a"))

    assert api(cluster.url, f"STREAM.INFO.KEPT3{batched}")["config"]["num_replicas"] == 3


def test_repeated_envelope_with_an_expectation_is_a_duplicate_in_a_cluster(
    cluster: NatsCluster, *, batched: bool
) -> None:
    stream = f"EXPECT3{batched}"
    make_stream(cluster.url, stream, stream, num_replicas=3)
    envelope = Envelope(
        stream, b"", event_id="e", options=PublishOptions(expected_last_subject_sequence=0)
    )
    settings = jetstream(cluster.url)

    results = [publish(settings, envelope)["e"] for _ in range(2)]

    assert [(result.outcome, result.sequence, result.duplicate) for result in results] == [
        (Outcome.STORED, 1, False), (Outcome.STORED, 1, True),
    ]  # fmt: skip
    assert len(stored(cluster.url, stream)) == 1

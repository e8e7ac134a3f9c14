"""Batches on a real server: what the server does in odd cases, what has to come of it, and the ack
of a leader without followers.
"""

import contextlib
import json
import logging
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nats
import pytest

from bytewax_jetstream.envelope import Envelope, Outcome, PublishOptions, PublishResult
from bytewax_jetstream.jetstream.publisher.publisher import JetStreamPublisher
from bytewax_jetstream.jetstream.publisher.replays import Replays
from bytewax_jetstream.pool.ack_pool import AckPool
from bytewax_jetstream.pool.lane import Lane
from bytewax_jetstream.settings import StreamSettings
from bytewax_jetstream.testing import NatsCluster, NatsServer
from tests.support.child import Child, Told
from tests.support.lanes import broker_of, jetstream, opened, settle
from tests.support.simulation.believing import Believing
from tests.support.streams import (
    FLAWLESS,
    api,
    audit,
    change_stream,
    envelopes,
    make_stream,
    message_ids,
    stored,
)
from tests.support.waiting import PATIENCE, until

SMALL, LARGE = b"1", b"1" * 500


def _batch(*payloads: bytes, topic: str) -> list[Envelope]:
    return [
        Envelope(topic, payload, f"e-{at}", f"a-{at % 3}") for at, payload in enumerate(payloads)
    ]


def _outcomes(results: dict[str, PublishResult]) -> list[str]:
    return [str(results[f"e-{at}"].outcome) for at in range(len(results))]


def test_batch_is_sent_as_one_and_acknowledged_as_one(nats_server: NatsServer) -> None:
    make_stream(nats_server.url, "TOGETHER", "together.>", allow_batched=True)
    warm_up, *batch = envelopes(10_001, "together.a", aggregates=100)
    with opened(jetstream(nats_server.url)) as (pool, lane):
        settle(lane, [warm_up])
        before = api(nats_server.url, "STREAM.INFO.TOGETHER")["state"]["messages"]
        requests = broker_of(pool)["management_requests"]
        results = settle(lane, batch)
        counts = broker_of(pool)

    assert before == 1
    assert counts["messages_in_batches"] == len(batch)
    assert counts["batches"] < 20
    assert counts["management_requests"] == requests
    assert {
        (r.outcome, r.stream, r.sequence, r.duplicate, r.attempts) for r in results.values()
    } == {(Outcome.STORED, "TOGETHER", None, None, 1)}
    assert audit(nats_server.url, "TOGETHER", [warm_up, *batch]) == FLAWLESS


@pytest.mark.parametrize("bad", [[0], [7], [19], [0, 1, 18, 19], [5, 6, 7]], ids=str)
def test_refused_message_at_any_index_of_a_batch_is_rejected_alone(
    nats_server: NatsServer, request: pytest.FixtureRequest, bad: list[int]
) -> None:
    stream = f"MIDDLE{'_'.join(map(str, bad))}"
    make_stream(nats_server.url, stream, stream, allow_batched=True, max_msg_size=400)
    batch = _batch(*(LARGE if at in bad else SMALL for at in range(20)), topic=stream)
    with opened(jetstream(nats_server.url)) as (pool, lane):
        results = settle(lane, batch)
        counts = broker_of(pool)

    assert counts["batches"] > 0
    assert _outcomes(results) == ["rejected" if at in bad else "stored" for at in range(20)]
    assert all("10054" in str(results[f"e-{at}"].reason) for at in bad)
    assert message_ids(nats_server.url, stream) == [f"e-{at}" for at in range(20) if at not in bad]


@pytest.mark.parametrize("dedupe", [True, False])
def test_refused_message_of_a_long_batch_is_rejected_alone(
    nats_server: NatsServer, dedupe: bool
) -> None:
    stream = f"LONG{dedupe}".upper()
    make_stream(nats_server.url, stream, stream, allow_batched=True, max_msg_size=400)
    bad = {0, 1, 499, 500, 501, 2_000, 5_555, 5_556, 7_999}
    batch = _batch(*(LARGE if at in bad else SMALL for at in range(8_000)), topic=stream)
    with opened(jetstream(nats_server.url, dedupe=dedupe, ack_timeout=20)) as (pool, lane):
        results = settle(lane, batch)
        counts = broker_of(pool)

    assert 1 < counts["batches"] < 30
    assert counts["retries"] == 0
    assert _outcomes(results) == ["rejected" if at in bad else "stored" for at in range(8_000)]
    found = [
        message.headers["Nats-Msg-Id" if dedupe else "Event-Id"]
        for message in stored(nats_server.url, stream)
    ]
    assert found == [f"e-{at}" for at in range(8_000) if at not in bad]


def test_full_stream_stores_the_rest_when_there_is_room(nats_server: NatsServer) -> None:
    make_stream(
        nats_server.url, "BRIMFUL", "brimful", allow_batched=True, max_msgs=10, discard="new"
    )
    batch = envelopes(20, "brimful", aggregates=3)
    with opened(jetstream(nats_server.url)) as (pool, lane):
        lane.submit(batch)
        until(lambda: broker_of(pool)["retries"] > 0 and lane.unsettled == 10)
        change_stream(nats_server.url, "BRIMFUL", max_msgs=100)
        results = lane.flush()

    assert {result.outcome for result in results} | {Outcome.STORED} == {Outcome.STORED}
    assert audit(nats_server.url, "BRIMFUL", batch) == FLAWLESS


@pytest.mark.parametrize(
    "known", [slice(0, 1), slice(0, 20), slice(3, 4), slice(10, 20), slice(19, 20)], ids=str
)
def test_replayed_batch_is_stored_once_whichever_messages_are_known(
    nats_server: NatsServer, known: slice
) -> None:
    stream = f"REPLAY{known.start}_{known.stop}"
    make_stream(nats_server.url, stream, stream, allow_batched=True)
    batch = envelopes(20, stream, aggregates=3)
    with opened(jetstream(nats_server.url)) as (_, lane):
        settle(lane, batch[known])
        results = settle(lane, batch)

    assert {result.outcome for result in results.values()} == {Outcome.STORED}
    found = message_ids(nats_server.url, stream)
    assert sorted(found) == sorted(envelope.event_id for envelope in batch)


def test_envelope_with_options_is_sent_as_a_single_in_its_order(nats_server: NatsServer) -> None:
    make_stream(nats_server.url, "OPTIONS", "options", allow_batched=True)
    batch = envelopes(30, "options", aggregates=1)
    batch[10] = batch[10]._replace(options=PublishOptions(expected_last_sequence=10))
    batch[20] = batch[20]._replace(options=PublishOptions(expected_last_sequence=7))
    with opened(jetstream(nats_server.url)) as (pool, lane):
        results = settle(lane, batch)
        assert broker_of(pool)["batches"] >= 3

    assert results["e-10"].sequence == 11
    assert results["e-20"].outcome is Outcome.REJECTED
    assert message_ids(nats_server.url, "OPTIONS") == [f"e-{at}" for at in range(30) if at != 20]


def test_each_stream_gets_its_own_batches(nats_server: NatsServer) -> None:
    for name in ("LEFT", "RIGHT"):
        make_stream(nats_server.url, name, name, allow_batched=True)
    batch = [
        Envelope("LEFT" if at % 2 else "RIGHT", b"%d" % at, f"e-{at}", f"a-{at % 20}")
        for at in range(2_000)
    ]
    with opened(jetstream(nats_server.url)) as (pool, lane):
        settle(lane, batch)
        assert broker_of(pool)["messages_in_batches"] == len(batch)

    for name in ("LEFT", "RIGHT"):
        assert (
            audit(nats_server.url, name, [each for each in batch if each.topic == name]) == FLAWLESS
        )


def test_stream_that_stops_taking_batches_gets_singles_and_one_log_line(
    nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    make_stream(nats_server.url, "TURNED", "turned", allow_batched=True)
    with caplog.at_level(logging.WARNING), opened(jetstream(nats_server.url)) as (pool, lane):
        settle(lane, envelopes(100, "turned"))
        change_stream(nats_server.url, "TURNED", allow_batched=False)
        for first in (100, 200, 300):
            settle(lane, envelopes(100, "turned", first=first))
        counts = broker_of(pool)

    assert counts["streams_without_batches"] == 1
    assert [record.message for record in caplog.records if "TURNED" in record.message] == [
        (
            "stream TURNED takes one message at a time: the server refused it: "
            "batch publish is disabled (10205)"
        )
    ]
    assert audit(nats_server.url, "TURNED", envelopes(400, "turned")) == FLAWLESS


def test_declared_stream_takes_batches(nats_server: NatsServer) -> None:
    stream = StreamSettings(name="OURS", subjects=("ours.>",))
    with opened(jetstream(nats_server.url, streams=(stream,))) as (pool, lane):
        settle(lane, envelopes(100, "ours.x"))

        assert broker_of(pool)["messages_in_batches"] == 100


def test_server_keeps_no_ids_without_dedupe(nats_server: NatsServer) -> None:
    make_stream(nats_server.url, "HEADER", "header", allow_batched=True)
    with opened(jetstream(nats_server.url, dedupe=False)) as (pool, lane):
        settle(lane, envelopes(100, "header"))
        settle(lane, envelopes(100, "header"))
        assert broker_of(pool)["messages_in_batches"] == 200

    found = [message.headers["Event-Id"] for message in stored(nats_server.url, "HEADER")]
    assert sorted(found) == sorted(2 * [f"e-{at}" for at in range(100)])


@pytest.fixture(scope="module")
def narrow_server() -> Iterator[NatsServer]:
    """It takes one batch of a stream at a time, and forgets it after a second without a message."""
    limits = 'jetstream { limits { batch { max_inflight_per_stream: 1, timeout: "1s" } } }'
    with NatsServer(config=limits) as server:
        yield server


def test_lanes_beyond_the_servers_batch_limit_send_singles(
    narrow_server: NatsServer,
) -> None:
    make_stream(narrow_server.url, "NARROW", "narrow", allow_batched=True)
    settings = jetstream(narrow_server.url)
    batches = [envelopes(4_000, "narrow", first=10_000 * at) for at in range(3)]
    batches = [
        [e._replace(aggregate_id=f"{at}-{e.aggregate_id}") for e in batch]
        for at, batch in enumerate(batches)
    ]
    with opened(settings) as (pool, lane):
        lanes = [lane, *(pool.lane(JetStreamPublisher(settings), name=str(at)) for at in range(2))]
        for one, batch in zip(lanes, batches, strict=True):
            one.submit(batch)
        results = [result for one in lanes for result in one.flush()]
        counts = broker_of(pool)

    assert {result.outcome for result in results} == {Outcome.STORED}
    assert len(results) == 12_000
    assert max(result.attempts for result in results) > 1, "no batch was refused"
    assert counts["streams_without_batches"] == 0
    assert (
        audit(narrow_server.url, "NARROW", [each for batch in batches for each in batch])
        == FLAWLESS
    )


def test_no_batch_stays_open_until_the_server_forgets_it(narrow_server: NatsServer) -> None:
    make_stream(narrow_server.url, "IDLE", "idle", allow_batched=True)
    with opened(jetstream(narrow_server.url, ack_timeout=20)) as (pool, lane):
        for round_ in range(3):
            settle(lane, envelopes(1_500, "idle", first=1_500 * round_))
            time.sleep(
                1.2 if round_ < 2 else 0
            )  # longer than the server remembers a batch: there must be none
        counts = broker_of(pool)

    assert counts["messages_in_batches"] == 4_500
    assert counts["retries"] == 0
    assert audit(narrow_server.url, "IDLE", envelopes(4_500, "idle")) == FLAWLESS


# The false ack


@pytest.mark.parametrize("believing", [False, True])
def test_ack_of_a_leader_without_followers_is_not_believed(
    own_cluster: NatsCluster, monkeypatch: pytest.MonkeyPatch, believing: bool
) -> None:
    """The leader loses its followers with a batch in flight. Then it dies, and they come back and
    elect another.
    """
    if believing:
        monkeypatch.setattr("bytewax_jetstream.dispatch.dispatch.Batches", Believing)
    roles = _roles(own_cluster)
    stream = StreamSettings(name="DOUBT", subjects=("doubt",), replicas=3)
    before, batch = envelopes(50, "doubt"), envelopes(20, "doubt", first=1_000, aggregates=5)
    with opened(jetstream(roles.leader.url, streams=(stream,), connect_timeout=20)) as (pool, lane):
        roles.have_the_leader_lead()
        settle(lane, before)
        roles.lose_the_followers()
        lane.submit(batch)
        early = _acknowledged_without_followers(pool, lane, believing, aggregates=5)
        first = roles.elect_a_follower()
        results = [*early, *lane.flush()]

    assert {result.outcome for result in results} == {Outcome.STORED}
    assert len(results) == len(batch)
    _judge(roles, early, first, believing, [*before, *batch])


@pytest.mark.parametrize("believing", [False, True])
def test_ack_without_followers_is_not_believed_by_the_run_after_a_kill(
    own_cluster: NatsCluster, monkeypatch: pytest.MonkeyPatch, believing: bool, tmp_path: Path
) -> None:
    """The first run's messages are in process, and the next one does not know which they are."""
    if believing:
        monkeypatch.setattr("bytewax_jetstream.dispatch.dispatch.Batches", Believing)
        monkeypatch.setattr(Replays, "take", lambda *_: False)  # nor asks for their ids
    roles = _roles(own_cluster)
    make_stream(own_cluster.url, "DOUBT", "child", num_replicas=3, allow_batched=True)
    roles.have_the_leader_lead()
    told = Told(roles.leader.url, str(tmp_path), messages=100_000, pool={"ack_timeout": 0.5})
    with Child.of(told) as child:
        until(lambda: len(told.results) > 10_000)  # by then it goes in batches
        roles.lose_the_followers()
        until(lambda: len(told.emitted) > len(told.results) + 100)
        child.signal(signal.SIGKILL)
        child.wait(PATIENCE)
    emitted = set(told.emitted)
    unsettled = emitted - {event_id for event_id, _, _ in told.results}
    wanted = [envelope for envelope in told.envelopes if envelope.event_id in emitted]
    with opened(jetstream(roles.leader.url, connect_timeout=20)) as (pool, lane):
        lane.submit([envelope for envelope in wanted if envelope.event_id in unsettled])
        early = _acknowledged_without_followers(pool, lane, believing, aggregates=50)
        first = roles.elect_a_follower()
        results = [*early, *lane.flush()]

    assert {result.outcome for result in results} == {Outcome.STORED}
    assert {result.event_id for result in results} == unsettled
    _judge(roles, early, first, believing, wanted)


class Roles(NamedTuple):
    """Who does what in a cluster with the stream DOUBT."""

    leader: NatsServer
    """Of the cluster, and of the stream: so it still answers what a run asks at its start."""
    followers: list[NatsServer]

    def have_the_leader_lead(self) -> None:
        until(self._leads_when_asked)

    def _leads_when_asked(self) -> bool:
        leads = self._stream_leader()
        if leads is not None and leads is not self.leader:
            wish = {"placement": {"preferred": self.leader.name}}
            with contextlib.suppress(AssertionError):  # another may win, or the same again
                api(self.leader.url, "STREAM.LEADER.STEPDOWN.DOUBT", wish)
                until(lambda: self._stream_leader() not in (leads, None), 10)
        return self._stream_leader() is self.leader

    def lose_the_followers(self) -> None:
        for follower in self.followers:
            follower.kill()

    def elect_a_follower(self) -> set[str]:
        """The leader dies, and those it had lost elect another, which says what it has; then it
        comes back.
        """
        self.leader.kill()
        for follower in self.followers:
            follower.start()
        until(lambda: self._stream_leader() in self.followers)
        found = set(message_ids(self.followers[0].url, "DOUBT"))
        self.leader.start()
        return found

    def _stream_leader(self) -> NatsServer | None:
        """As far as a server without a leader says anything."""
        try:
            answer = api(self.followers[0].url, "STREAM.INFO.DOUBT", seconds=3)
            name = answer["cluster"].get("leader")
        except (nats.errors.Error, AssertionError):  # it answers with an error, or not at all
            return None
        return next(
            (server for server in [self.leader, *self.followers] if server.name == name), None
        )


def _roles(cluster: NatsCluster) -> Roles:
    with urllib.request.urlopen(f"{cluster.servers[0].monitor_url}/jsz", timeout=5) as answer:
        name = json.load(answer)["meta_cluster"]["leader"]
    leader = next(server for server in cluster.servers if server.name == name)
    return Roles(leader, [server for server in cluster.servers if server is not leader])


def _acknowledged_without_followers(
    pool: AckPool, lane: Lane, believing: bool, aggregates: int
) -> list[PublishResult]:
    """The results so far; a run that believes every ack has all of them by then."""
    if believing:
        until(lambda: not lane.unsettled)
    else:  # it tries one of each aggregate, again and again
        until(lambda: broker_of(pool)["retries"] >= 2 * aggregates)
    return lane.collect()


def _judge(
    roles: Roles,
    early: list[PublishResult],
    first: set[str],
    believing: bool,
    wanted: list[Envelope],
) -> None:
    """What was acknowledged before the election is there after it, and all of it in the end, once
    and in order.
    """
    lost = {result.event_id for result in early} - first
    if believing:
        assert lost, "this server keeps its word: the rule is no longer needed"
    else:
        assert not lost
        assert audit(roles.followers[0].url, "DOUBT", wanted) == FLAWLESS

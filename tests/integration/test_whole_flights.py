"""Whole flights on a real server: its traps, each with what has to come of it, and the acknowledgement that is none."""

import logging
from collections.abc import Iterator

import nats
import pytest

from bytewax_jetstream.envelope import Envelope, Outcome, PublishOptions, PublishResult
from bytewax_jetstream.settings import StreamSettings
from bytewax_jetstream.testing import NatsCluster, NatsServer
from tests.lanes import broker_of, jetstream, opened, settle
from tests.simulation import Believing
from tests.streams import FLAWLESS, api, audit, envelopes, make_stream, stored
from tests.waiting import until

SMALL, LARGE = b"1", b"1" * 500


def _batch(*payloads: bytes, topic: str) -> list[Envelope]:
    return [Envelope(topic, payload, f"e-{at}", f"a-{at % 3}") for at, payload in enumerate(payloads)]


def _outcomes(results: dict[str, PublishResult]) -> list[str]:
    return [str(results[f"e-{at}"].outcome) for at in range(len(results))]


def _placed(url: str, stream: str) -> list[str]:
    return [message.headers["Nats-Msg-Id"] for message in stored(url, stream)]


def test_a_batch_goes_whole_and_is_acknowledged_as_one(nats_server: NatsServer) -> None:
    make_stream(nats_server.url, "WHOLE", "whole.>", allow_batched=True)
    warm_up, *batch = envelopes(10_001, "whole.a", aggregates=100)
    with opened(jetstream(nats_server.url)) as (pool, lane):
        settle(lane, [warm_up])
        before = api(nats_server.url, "STREAM.INFO.WHOLE")["state"]["messages"]
        requests = broker_of(pool)["management_requests"]
        results = settle(lane, batch)
        counts = broker_of(pool)

    assert before == 1
    assert counts["in_whole_flights"] == len(batch)
    assert counts["whole_flights"] < 100
    assert counts["management_requests"] == requests
    assert {(r.outcome, r.stream, r.sequence, r.duplicate, r.attempts) for r in results.values()} == {
        (Outcome.STORED, "WHOLE", None, None, 1)
    }
    assert audit(nats_server.url, "WHOLE", [warm_up, *batch]) == FLAWLESS


@pytest.mark.parametrize("bad", [[0], [7], [19], [0, 1, 18, 19], [5, 6, 7]], ids=str)
def test_what_is_refused_is_rejected_alone_wherever_in_the_flight_it_is(
    nats_server: NatsServer, request: pytest.FixtureRequest, bad: list[int]
) -> None:
    stream = f"MIDDLE{'_'.join(map(str, bad))}"
    make_stream(nats_server.url, stream, stream, allow_batched=True, max_msg_size=400)
    batch = _batch(*(LARGE if at in bad else SMALL for at in range(20)), topic=stream)
    with opened(jetstream(nats_server.url)) as (pool, lane):
        results = settle(lane, batch)
        counts = broker_of(pool)

    assert counts["whole_flights"] > 0
    assert _outcomes(results) == ["rejected" if at in bad else "stored" for at in range(20)]
    assert all("10054" in str(results[f"e-{at}"].reason) for at in bad)
    assert _placed(nats_server.url, stream) == [f"e-{at}" for at in range(20) if at not in bad]


def test_a_full_stream_takes_the_rest_when_there_is_room(nats_server: NatsServer) -> None:
    make_stream(nats_server.url, "BRIMFUL", "brimful", allow_batched=True, max_msgs=10, discard="new")
    batch = envelopes(20, "brimful", aggregates=3)
    with opened(jetstream(nats_server.url)) as (pool, lane):
        lane.submit(batch)
        until(lambda: broker_of(pool)["retries"] > 0)
        assert lane.unsettled == 10
        config = api(nats_server.url, "STREAM.INFO.BRIMFUL")["config"]
        api(nats_server.url, "STREAM.UPDATE.BRIMFUL", {**config, "max_msgs": 100})
        results = lane.flush()

    assert {result.outcome for result in results} | {Outcome.STORED} == {Outcome.STORED}
    assert audit(nats_server.url, "BRIMFUL", batch) == FLAWLESS


@pytest.mark.parametrize("known", [slice(0, 1), slice(0, 20), slice(3, 4), slice(10, 20), slice(19, 20)], ids=str)
def test_a_replay_is_stored_once_wherever_the_known_ones_are(nats_server: NatsServer, known: slice) -> None:
    stream = f"REPLAY{known.start}_{known.stop}"
    make_stream(nats_server.url, stream, stream, allow_batched=True)
    batch = envelopes(20, stream, aggregates=3)
    with opened(jetstream(nats_server.url)) as (_, lane):
        settle(lane, batch[known])
        results = settle(lane, batch)

    assert {result.outcome for result in results.values()} == {Outcome.STORED}
    found = _placed(nats_server.url, stream)
    assert sorted(found) == sorted(envelope.event_id for envelope in batch)


def test_what_has_options_goes_alone_in_its_place_in_the_order(nats_server: NatsServer) -> None:
    make_stream(nats_server.url, "OPTIONS", "options", allow_batched=True)
    batch = envelopes(30, "options", aggregates=1)
    batch[10] = batch[10]._replace(options=PublishOptions(expected_last_sequence=10))
    batch[20] = batch[20]._replace(options=PublishOptions(expected_last_sequence=7))
    with opened(jetstream(nats_server.url)) as (pool, lane):
        results = settle(lane, batch)
        assert broker_of(pool)["whole_flights"] >= 3

    assert results["e-10"].sequence == 11
    assert results["e-20"].outcome is Outcome.REJECTED
    assert _placed(nats_server.url, "OPTIONS") == [f"e-{at}" for at in range(30) if at != 20]


def test_topics_of_two_streams_go_in_a_flight_each(nats_server: NatsServer) -> None:
    for name in ("LEFT", "RIGHT"):
        make_stream(nats_server.url, name, name, allow_batched=True)
    batch = [Envelope("LEFT" if at % 2 else "RIGHT", b"%d" % at, f"e-{at}", f"a-{at % 20}") for at in range(2_000)]
    with opened(jetstream(nats_server.url)) as (pool, lane):
        settle(lane, batch)
        assert broker_of(pool)["in_whole_flights"] == len(batch)

    for name in ("LEFT", "RIGHT"):
        assert audit(nats_server.url, name, [each for each in batch if each.topic == name]) == FLAWLESS


def test_a_stream_that_takes_no_flights_any_more_is_published_to_one_by_one_and_that_is_said_once(
    nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    make_stream(nats_server.url, "TURNED", "turned", allow_batched=True)
    with caplog.at_level(logging.WARNING), opened(jetstream(nats_server.url)) as (pool, lane):
        settle(lane, envelopes(100, "turned"))
        config = api(nats_server.url, "STREAM.INFO.TURNED")["config"]
        api(nats_server.url, "STREAM.UPDATE.TURNED", {**config, "allow_batched": False})
        for first in (100, 200, 300):
            settle(lane, envelopes(100, "turned", first=first))
        counts = broker_of(pool)

    assert counts["streams_without_flights"] == 1
    assert [record.message for record in caplog.records if "TURNED" in record.message] == [
        "stream TURNED takes one message at a time: the server refused it: batch publish is disabled (10205)"
    ]
    assert audit(nats_server.url, "TURNED", envelopes(400, "turned")) == FLAWLESS


def test_a_stream_that_the_settings_declare_takes_whole_flights(nats_server: NatsServer) -> None:
    stream = StreamSettings(name="OURS", subjects=("ours.>",))
    with opened(jetstream(nats_server.url, streams=(stream,))) as (pool, lane):
        settle(lane, envelopes(100, "ours.x"))

        assert broker_of(pool)["in_whole_flights"] == 100


def test_without_dedupe_the_server_keeps_no_ids(nats_server: NatsServer) -> None:
    make_stream(nats_server.url, "HEADER", "header", allow_batched=True)
    with opened(jetstream(nats_server.url, dedupe=False)) as (pool, lane):
        settle(lane, envelopes(100, "header"))
        settle(lane, envelopes(100, "header"))
        assert broker_of(pool)["in_whole_flights"] == 200

    found = [message.headers["Event-Id"] for message in stored(nats_server.url, "HEADER")]
    assert sorted(found) == sorted(2 * [f"e-{at}" for at in range(100)])


# The false ack


@pytest.fixture
def own_cluster() -> Iterator[NatsCluster]:
    with NatsCluster(3) as cluster:
        yield cluster


@pytest.mark.parametrize("believing", [False, True])
def test_an_ack_of_a_leader_without_followers_is_not_believed(
    own_cluster: NatsCluster, monkeypatch: pytest.MonkeyPatch, believing: bool
) -> None:
    """The leader loses its followers with a flight out; then it dies, and they come back and elect another."""
    if believing:
        monkeypatch.setattr("bytewax_jetstream.pool.Dispatch", Believing)
    cluster = own_cluster
    stream = StreamSettings(name="DOUBT", subjects=("doubt",), replicas=3)
    leader_url = cluster.servers[0].url
    batch = envelopes(20, "doubt", first=1_000, aggregates=5)
    with opened(jetstream(leader_url, streams=(stream,), connect_timeout=20)) as (pool, lane):
        settle(lane, envelopes(1, "doubt"))
        place = {"preferred": "n1"}
        if api(cluster.url, "STREAM.INFO.DOUBT")["cluster"]["leader"] != "n1":
            api(cluster.url, "STREAM.LEADER.STEPDOWN.DOUBT", {"placement": place})
            until(lambda: api(cluster.url, "STREAM.INFO.DOUBT")["cluster"].get("leader") == "n1", 20)
        settle(lane, envelopes(50, "doubt", first=100))
        for follower in cluster.servers[1:]:
            follower.kill()
        lane.submit(batch)
        if believing:
            until(lambda: not lane.unsettled, 20)
        else:
            until(lambda: broker_of(pool)["retries"] > 2 * len(batch), 20)
            assert lane.unsettled == len(batch)
        early = lane.collect()
        cluster.servers[0].kill()
        for follower in cluster.servers[1:]:
            follower.start()
        until(lambda: api_leader(cluster.servers[1].url) in ("n2", "n3"), 30)
        first = set(_placed(cluster.servers[1].url, "DOUBT"))
        cluster.servers[0].start()
        results = [*early, *lane.flush()]

    assert {result.outcome for result in results} == {Outcome.STORED}
    assert len(results) == len(batch)
    acknowledged = {result.event_id for result in early}
    if believing:
        assert acknowledged - first, "the server keeps its word by now: then this rule is not needed any more"
    else:
        wanted = [*envelopes(1, "doubt"), *envelopes(50, "doubt", first=100), *batch]
        assert audit(cluster.servers[1].url, "DOUBT", wanted) == FLAWLESS


def api_leader(url: str) -> str:
    """Who leads, as far as a server without one says anything."""
    try:
        return str(api(url, "STREAM.INFO.DOUBT", seconds=0.5)["cluster"].get("leader", ""))
    except (nats.errors.Error, AssertionError):  # it has no leader yet, and answers with an error or not at all
        return ""

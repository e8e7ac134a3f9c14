"""A slow or far broker ends in "stored", however long it takes; a dead one in "unknown"."""

import time
from itertools import count

import pytest

from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.testing import NatsCluster, NatsServer
from tests.support.lanes import broker_of, jetstream, opened, publish, settle
from tests.support.proxy import Proxy
from tests.support.streams import FLAWLESS, audit, envelopes, make_stream
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("batched")

DELIVERY_TIMEOUT = 1.5


def test_one_hot_aggregate_behind_a_long_round_trip_and_a_reset_is_stored(
    nats_server: NatsServer, proxy: Proxy
) -> None:
    make_stream(nats_server.url, "HOT", "hot.>")
    batch = envelopes(600, "hot.x", aggregates=1)
    settings = jetstream(proxy.url, ack_timeout=0.5, delivery_timeout=DELIVERY_TIMEOUT)
    with opened(settings) as (pool, lane):
        proxy.requests.delay = 0.005
        began = time.monotonic()
        lane.submit(batch)
        until(lambda: broker_of(pool)["in_flight"] > 0)
        proxy.cut_all()
        results = lane.flush()

        assert broker_of(pool)["reconnects"] >= 1
    assert time.monotonic() - began > DELIVERY_TIMEOUT
    assert {result.outcome for result in results} == {Outcome.STORED}
    assert audit(nats_server.url, "HOT", batch) == FLAWLESS


def test_hot_aggregate_of_a_replicated_stream_in_doubt_is_stored(
    cluster: NatsCluster, batched: bool
) -> None:
    make_stream(cluster.url, "REPLICATED", "replicated.>", num_replicas=3)
    publish(jetstream(cluster.url), *envelopes(10, "replicated.x", aggregates=1))
    batch = envelopes(600, "replicated.x", aggregates=1, first=10)
    with Proxy(cluster.servers[0].url, opaque=True) as proxy:
        proxy.answers.delay = 0.005
        settings = jetstream(proxy.url, ack_timeout=0.5, delivery_timeout=DELIVERY_TIMEOUT)
        with opened(settings) as (pool, lane):
            lane.submit(batch)
            until(lambda: broker_of(pool)["in_flight"] > 0)
            proxy.cut_all()
            results = lane.flush()
            proxy.answers.delay = 0
            numbers = count(1_000)

            def doubt_ended() -> bool:
                # It ends with something that is sent an ack timeout after what was lost.
                settle(lane, envelopes(1, "replicated.x", first=next(numbers)))
                return not broker_of(pool)["streams_in_doubt"]

            until(doubt_ended)
            more = settle(lane, envelopes(100, "replicated.x", first=100_000))

            assert broker_of(pool)["reconnects"] >= 1
            assert bool(broker_of(pool)["batches"]) == batched, "none was sent after the doubt"
    assert {result.outcome for result in [*results, *more.values()]} == {Outcome.STORED}
    assert audit(cluster.url, "REPLICATED", batch)._replace(strangers=0) == FLAWLESS


def test_link_that_carries_less_than_the_timeouts_need_holds_the_producer_back(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "NARROW", "narrow.>")
    batch = [each._replace(payload=bytes(2_000)) for each in envelopes(3_000, "narrow.x")]
    with Proxy(nats_server.url, opaque=True, rate=900_000) as proxy:
        settings = jetstream(proxy.url, ack_timeout=3.0, delivery_timeout=5.0)
        with opened(settings) as (pool, lane):
            began = time.monotonic()
            lane.submit(batch)
            results = lane.flush()

            assert broker_of(pool)["retries"] == 0, "nothing was silent: its bytes were taken"
    assert time.monotonic() - began > 5.0
    assert {result.outcome for result in results} == {Outcome.STORED}


def test_broker_that_dies_is_noticed_within_the_timeouts(own_nats_server: NatsServer) -> None:
    make_stream(own_nats_server.url, "DYING", "dying.>")
    settings = jetstream(own_nats_server.url, ack_timeout=0.5, delivery_timeout=DELIVERY_TIMEOUT)
    with opened(settings) as (_, lane):
        lane.submit(envelopes(100, "dying.x"))
        lane.flush()
        own_nats_server.pause()
        lane.submit(envelopes(100, "dying.x", first=100))
        results = lane.flush()
        own_nats_server.resume()

    assert len(results) == 100
    assert {result.outcome for result in results} == {Outcome.UNKNOWN}
    assert "while the broker settled nothing for 1.5 s" in str(results[0].reason)


def test_message_larger_than_an_ack_timeout_carries_is_stored_by_a_slow_link(
    nats_server: NatsServer,
) -> None:
    make_stream(nats_server.url, "LARGE", "large.>")
    batch = [each._replace(payload=b"." * 900_000) for each in envelopes(4, "large.x")]
    with (
        Proxy(nats_server.url, opaque=True, rate=500_000) as proxy,
        opened(jetstream(proxy.url)) as (pool, lane),
    ):
        lane.submit(batch)
        results = lane.flush()

        assert broker_of(pool)["retries"] == 0, "nothing was silent: its bytes were taken"
    assert [result.outcome for result in results] == [Outcome.STORED] * 4

"""Acks, requests and connections that are lost on the way: everything is stored once, in order."""

import re

import pytest

from bytewax_jetstream.envelope import Envelope, Outcome
from bytewax_jetstream.jetstream.connection import client
from bytewax_jetstream.jetstream.publisher.publisher import JetStreamPublisher
from bytewax_jetstream.testing import NatsServer
from tests.support.lanes import broker_of, jetstream, opened, publish, settle
from tests.support.proxy import Proxy
from tests.support.streams import FLAWLESS, audit, envelopes, make_stream
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("batched")


def test_server_killed_with_thousands_in_flight_loses_and_reorders_nothing(
    own_nats_server: NatsServer,
) -> None:
    server = own_nats_server
    make_stream(server.url, "KILLED", "killed.>")
    batch = envelopes(40_000, "killed.x", aggregates=5_000)
    with opened(jetstream(server.url)) as (pool, lane):
        results = []
        for kill in (1, 2):
            lane.submit(batch[20_000 * (kill - 1) : 20_000 * kill])
            until(lambda: broker_of(pool)["in_flight"] > 1_000)
            server.kill()
            server.start()
            results += lane.flush()

        assert broker_of(pool)["reconnects"] == 2
        assert broker_of(pool)["retries"] > 1_000
    assert len(results) == len(batch)
    assert {result.outcome for result in results} == {Outcome.STORED}
    assert audit(server.url, "KILLED", batch) == FLAWLESS


def test_more_silent_sends_than_ack_workers_block_no_other_lane(
    nats_server: NatsServer, proxy: Proxy, batched: bool
) -> None:
    make_stream(nats_server.url, "SILENT", "silent.>")
    make_stream(nats_server.url, "LOUD", "loud.>")
    silent = [
        Envelope(f"silent.{n}", b"", event_id=f"s-{n}", aggregate_id=f"a-{n}") for n in range(50)
    ]
    proxy.requests.loses = lambda frame: frame.startswith(b"HPUB silent.")
    settings = jetstream(proxy.url, ack_timeout=0.3, delivery_timeout=2, pool={"ack_workers": 2})
    with opened(settings) as (pool, lane):
        quiet_lane = pool.lane(JetStreamPublisher(settings), name="quiet")
        for envelope in silent:
            quiet_lane.submit([envelope])
        until(lambda: proxy.requests.lost >= 50)

        results = settle(lane, envelopes(5_000, "loud.x"))

        assert quiet_lane.unsettled == 50
        assert {result.outcome for result in results.values()} == {Outcome.STORED}
        for result in quiet_lane.flush():
            assert result.outcome is Outcome.UNKNOWN
            assert result.attempts > 1
            # By its own clock, or by that of the connection: on a busy machine either is first.
            assert re.match("not settled (within|while .* nothing for) 2 s", str(result.reason))
            # The end of a batch does get through, and is answered.
            ended = batched and "its batch ended before it" in str(result.reason)
            assert ended or "no ack within 0.3 s" in str(result.reason)
        proxy.requests.loses = lambda frame: False
        assert {result.outcome for result in settle(quiet_lane, silent).values()} == {
            Outcome.STORED
        }


def test_messages_with_lost_acks_are_sent_again_and_stored_once(
    nats_server: NatsServer, proxy: Proxy, batched: bool
) -> None:
    make_stream(nats_server.url, "ACKLESS", "ackless.>")
    batch = envelopes(3_000, "ackless.x", aggregates=500)
    answered = iter(range(1_000_000))
    with opened(jetstream(proxy.url, ack_timeout=0.3)) as (pool, lane):
        proxy.answers.loses = lambda frame: (
            frame.startswith(b"MSG _INBOX") and next(answered) % 5 == 0
        )

        results = settle(lane, batch)

        assert broker_of(pool)["reconnects"] == 0
    assert proxy.answers.lost > (0 if batched else 500)
    assert {result.outcome for result in results.values()} == {Outcome.STORED}
    assert sum(bool(result.duplicate) for result in results.values()) > 300 or batched
    assert audit(nats_server.url, "ACKLESS", batch) == FLAWLESS


def test_lost_requests_are_sent_again_in_the_order_of_their_aggregates(
    nats_server: NatsServer, proxy: Proxy
) -> None:
    make_stream(nats_server.url, "LOST", "lost.>")
    batch = envelopes(3_000, "lost.x", aggregates=500)
    sent = iter(range(1_000_000))
    proxy.requests.loses = lambda frame: frame.startswith(b"HPUB lost.") and next(sent) % 5 == 0

    results = publish(jetstream(proxy.url, ack_timeout=0.3), *batch)

    assert proxy.requests.lost > 500
    assert {result.outcome for result in results.values()} == {Outcome.STORED}
    assert max(result.attempts for result in results.values()) > 1
    assert audit(nats_server.url, "LOST", batch) == FLAWLESS


@pytest.mark.parametrize("way", ["requests", "answers"])
def test_a_connection_cut_in_the_middle_of_a_frame_is_replaced(
    nats_server: NatsServer, proxy: Proxy, way: str, batched: bool
) -> None:
    stream = f"CUT-{way}"
    make_stream(nats_server.url, stream, f"{stream}.>")
    batch = envelopes(10_000, f"{stream}.x", aggregates=1_000)
    direction = getattr(proxy, way)
    with opened(jetstream(proxy.url)) as (pool, lane):
        passed, fatal = iter(range(1_000_000)), 3 if batched and way == "answers" else 2_000
        direction.cuts = lambda frame: frame.startswith((b"HPUB", b"MSG")) and next(passed) == fatal

        results = settle(lane, batch)

        assert direction.cut == 1
        assert broker_of(pool)["reconnects"] == 1
        assert broker_of(pool)["retries"] > 0
    assert {result.outcome for result in results.values()} == {Outcome.STORED}
    assert audit(nats_server.url, stream, batch) == FLAWLESS


def test_connections_reset_again_and_again_lose_nothing(
    nats_server: NatsServer, proxy: Proxy
) -> None:
    make_stream(nats_server.url, "RESET", "reset.>")
    batch = envelopes(20_000, "reset.x", aggregates=1_000)
    with opened(jetstream(proxy.url)) as (pool, lane):
        lane.submit(batch)
        for resets in range(1, 6):
            until(lambda: broker_of(pool)["in_flight"] > 0 or not lane.unsettled)
            proxy.cut_all()
            until(lambda: broker_of(pool)["reconnects"] >= resets)  # noqa: B023  # called here only

        results = lane.flush()

    assert len(results) == len(batch)
    assert {result.outcome for result in results} == {Outcome.STORED}
    assert audit(nats_server.url, "RESET", batch) == FLAWLESS


def test_connection_that_went_dead_is_noticed_and_replaced(
    nats_server: NatsServer, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is noticed at the third ping without an answer.
    monkeypatch.setattr(client, "PING_INTERVAL", 0.3)
    make_stream(nats_server.url, "HALF", "half.>")
    batch = envelopes(3_000, "half.x", aggregates=500)
    with opened(jetstream(proxy.url, ack_timeout=0.5)) as (pool, lane):
        settle(lane, batch[:1_000])
        proxy.freeze_all()

        results = settle(lane, batch[1_000:])

        assert broker_of(pool)["reconnects"] == 1
    assert {result.outcome for result in results.values()} == {Outcome.STORED}
    assert audit(nats_server.url, "HALF", batch) == FLAWLESS


def test_slow_link_settles_everything_at_the_first_attempt(
    nats_server: NatsServer, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, batched: bool
) -> None:
    # Pings queue behind the data: on a busy machine their answers come late, too.
    monkeypatch.setattr(client, "PING_INTERVAL", 60)
    make_stream(nats_server.url, "SLOW", "slow.>")
    batch = envelopes(1_000, "slow.x", aggregates=1_000)
    with opened(jetstream(proxy.url)) as (pool, lane):
        proxy.answers.piece = 1
        proxy.requests.delay = 0.001

        results = settle(lane, batch)

        assert broker_of(pool)["reconnects"] == 0
        # A batch is answered every 500 messages, which may take longer than the ack timeout.
        assert batched or broker_of(pool)["retries"] == 0
    assert {result.outcome for result in results.values()} == {Outcome.STORED}
    assert audit(nats_server.url, "SLOW", batch) == FLAWLESS

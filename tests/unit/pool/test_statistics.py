"""What the pool tells of itself: log, statistics, repr."""

import json
import logging
import time

import pytest

from bytewax_jetstream.envelope import Envelope
from tests.support.fake_publisher import FakePublisher, silent, stored
from tests.support.lanes import broker_of
from tests.support.pooling import InThread, envelopes, pooled
from tests.support.waiting import until


def test_log_names_the_sizes_at_the_start_and_each_worker_that_starts_or_stops(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "bytewax_jetstream.pool")
    with pooled(ack_workers=2, budget_messages=10, budget_bytes=1000) as pool:
        lane = pool.lane(FakePublisher(), name="lane")
        lane.submit(envelopes(3))
        lane.flush()

    logged = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert logged[0] == (
        "INFO",
        "ACK pool started: 2 ACK workers, budget 10 messages and 1000 bytes, transport fake",
    )
    assert logged.count(("DEBUG", "ACK worker 0 started")) == 1
    assert logged.count(("DEBUG", "ACK worker 1 started")) == 1
    assert logged.count(("DEBUG", "ACK worker 0 stopped")) == 1
    assert logged.count(("DEBUG", "ACK worker 1 stopped")) == 1
    assert logged[-1][0] == "INFO"
    assert logged[-1][1].startswith("ACK pool closed: {'stored': 3, ")


def test_statistics_are_a_plain_value() -> None:
    publisher = FakePublisher(
        lambda envelope: stored(envelope) if envelope.topic == "topic" else None
    )
    with pooled(ack_workers=2, budget_messages=100, budget_bytes=1000) as pool:
        assert pool.statistics()["state"] == "new"
        lane = pool.lane(publisher, name="lane")
        lane.submit(
            [*envelopes(3), Envelope("bad", b"", "bad"), Envelope("silent", b"12", "silent")]
        )
        until(lambda: lane.unsettled == 1)
        until(lambda: pool.unsettled == 1)
        statistics = pool.statistics()
        for age in ("last_progress_seconds", "oldest_unsettled_seconds"):
            assert 0.0 <= statistics["brokers"][0].pop(age) < 60.0

        assert (
            json.loads(json.dumps(statistics))
            == statistics
            == {
                "state": "running",
                "ack_workers": 2,
                "budget_messages": 100,
                "budget_bytes": 1000,
                "unsettled_messages": 1,
                "unsettled_bytes": 2,
                "budget_stalls": 0,
                "stored": 3,
                "duplicates": 0,
                "rejected": 1,
                "unknown": 0,
                "brokers": [
                    {
                        "broker": "fake",
                        "lanes": 1,
                        "long_epochs": 0,
                        "connected": True,
                        "in_flight": 1,
                        "admitted_bytes": 2,
                        "retries": 0,
                        "late_acks": 0,
                        "batches": 0,
                        "messages_in_batches": 0,
                        "streams_in_doubt": 0,
                        "sends": publisher.sends,
                    }
                ],
            }
        )
    assert pool.statistics()["state"] == "closed"
    assert pool.statistics()["unknown"] == 1


def test_oldest_unsettled_envelope_grows_older_until_it_is_settled() -> None:
    publisher = FakePublisher(silent)
    with pooled() as pool:
        lane = pool.lane(publisher, name="lane")
        assert broker_of(pool)["oldest_unsettled_seconds"] == 0.0
        began = time.monotonic()
        lane.submit(envelopes(1))
        until(lambda: broker_of(pool)["oldest_unsettled_seconds"] > 0.1)
        assert time.monotonic() - began > 0.1
        lane.submit(envelopes(1, prefix="later"))
        until(lambda: broker_of(pool)["in_flight"] == 2)
        assert broker_of(pool)["oldest_unsettled_seconds"] > 0.1
        assert broker_of(pool)["admitted_bytes"] == 2

        publisher.release()
        lane.flush()
        assert broker_of(pool)["oldest_unsettled_seconds"] == 0.0
        assert broker_of(pool)["admitted_bytes"] == 0


def test_statistics_may_be_asked_for_while_envelopes_are_settled() -> None:
    with pooled() as pool:
        lane = pool.lane(FakePublisher(), name="lane")
        publishing = InThread(lambda: lane.submit(envelopes(10_000, aggregates=7)))
        while publishing.is_alive() or lane.unsettled:
            assert broker_of(pool)["oldest_unsettled_seconds"] < 60.0
        assert publishing.end() is None


def test_repr_shows_the_state() -> None:
    with pooled() as pool:
        assert repr(pool) == "<AckPool new, 0 unsettled, no brokers>"
        lane = pool.lane(FakePublisher(silent), name="lane")
        lane.submit(envelopes(3))
        until(lambda: "3 in flight" in repr(pool))
        assert repr(pool) == (
            "<AckPool running, 3 unsettled, "
            "<Dispatch connected, 3 in flight, 0 backing off, 1 lanes>>"
        )
        assert repr(lane) == "<Lane 'lane', 3 unsettled, 0 deliveries>"

"""What the metrics say while a broker is away, and afterwards."""

from collections.abc import Callable

import pytest

from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.testing import KafkaServer, NatsServer
from tests.support.kafka import new_topic
from tests.support.lanes import jetstream, kafka, opened, settle
from tests.support.metrics import Scrape, scrape
from tests.support.streams import make_stream
from tests.support.waiting import until


def _envelopes(topic: str, first: int, last: int) -> list[Envelope]:
    return [Envelope(topic, b"x", f"e{number}") for number in range(first, last)]


@pytest.fixture
def grown() -> Callable[..., float]:
    """By how much a counter has grown since the test began."""
    before = scrape()

    def by(name: str, **labels: str) -> float:
        seen: Scrape = scrape()
        return seen.sum(name, **labels) - before.sum(name, **labels)

    return by


BATCHED = pytest.mark.parametrize("batched", [False, True], ids=["singles", "batches"])


@BATCHED
def test_killed_server_shows_at_once_and_its_retries_and_reconnect_are_counted(
    own_nats_server: NatsServer, grown: Callable[..., float], batched: bool
) -> None:
    make_stream(own_nats_server.url, "OUT", "out", allow_batched=batched)
    settings = jetstream(own_nats_server.url, ack_timeout=50, delivery_timeout=120)
    with opened(settings) as (_, lane):
        settle(lane, _envelopes("out", 0, 10))
        own_nats_server.pause()
        lane.submit(_envelopes("out", 10, 30))
        until(lambda: scrape().each("in_flight_messages", broker="jetstream") == [20])
        own_nats_server.kill()
        until(lambda: scrape().each("connected", broker="jetstream") == [0])
        until(lambda: scrape().sum("oldest_unsettled_seconds", broker="jetstream") > 1)
        until(lambda: scrape().sum("last_progress_seconds", broker="jetstream") > 1)
        assert grown("unsettled_messages") == 20
        own_nats_server.start()
        lane.flush()
        seen = scrape()
        assert seen.each("connected", broker="jetstream") == [1]
        assert seen.each("oldest_unsettled_seconds", broker="jetstream") == [0]
        assert grown("reconnects_total", broker="jetstream") >= 1
        assert grown("retries_total", broker="jetstream", reason="disconnected") >= 20
        assert grown("retries_total", broker="jetstream", reason="timeout") == 0
        assert grown("stored_total", broker="jetstream") == 30
    # Those 20 waited for longer than a second.
    assert grown("result_latency_seconds_bucket", broker="jetstream", le="1.0") <= 10
    assert grown("result_latency_seconds_bucket", broker="jetstream", le="+Inf") == 30


@BATCHED
def test_silent_server_shows_in_the_attempts_that_are_made_again(
    own_nats_server: NatsServer, grown: Callable[..., float], batched: bool
) -> None:
    make_stream(own_nats_server.url, "OUT", "out", allow_batched=batched)
    with opened(jetstream(own_nats_server.url)) as (_, lane):
        settle(lane, _envelopes("out", 0, 10))
        own_nats_server.pause()
        lane.submit(_envelopes("out", 10, 30))
        until(lambda: grown("retries_total", broker="jetstream", reason="timeout") >= 20)
        own_nats_server.resume()
        lane.flush()
    assert grown("stored_total", broker="jetstream") == 30


def test_killed_kafka_shows_in_the_age_and_its_cut_connection_is_counted(
    own_kafka_server: KafkaServer, grown: Callable[..., float]
) -> None:
    topic = new_topic(own_kafka_server.bootstrap)
    with opened(kafka(own_kafka_server.bootstrap)) as (_, lane):
        settle(lane, _envelopes(topic, 0, 10))
        own_kafka_server.kill()
        lane.submit(_envelopes(topic, 10, 30))
        until(lambda: scrape().sum("oldest_unsettled_seconds", broker="kafka") > 1)
        until(lambda: grown("reconnects_total", broker="kafka") >= 1)
        own_kafka_server.start()
        lane.flush()
    assert grown("stored_total", broker="kafka") == 30

"""A Kafka broker that is killed, paused, cut off and short of replicas, under the pool and a
dataflow.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import pytest
from bytewax.errors import BytewaxRuntimeError
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from bytewax_jetstream.envelope import Envelope, Outcome
from bytewax_jetstream.errors import PublishError, TopicError
from bytewax_jetstream.kafka import config
from bytewax_jetstream.kafka import producer as client
from bytewax_jetstream.kafka.producer import Client
from bytewax_jetstream.kafka.publisher import KafkaPublisher
from bytewax_jetstream.pool.shared_publisher import SharedPublisher
from bytewax_jetstream.publishing import Outgoing
from bytewax_jetstream.settings import KafkaTopicSettings
from bytewax_jetstream.testing import KafkaServer
from tests.support.dataflows import (
    Envelopes,
    by_aggregate,
    publishing,
    recovery_store,
    root_cause,
    run,
)
from tests.support.kafka import audit, lower_limit, new_topic, records
from tests.support.kafka_reading import Reading
from tests.support.lanes import broker_of, kafka, opened, publish, settle
from tests.support.proxy import Direction, Proxy
from tests.support.streams import FLAWLESS, envelopes
from tests.support.waiting import until


def _kill(server: KafkaServer) -> None:
    server.kill()
    server.start()


def _restart(server: KafkaServer) -> None:
    server.restart()


@pytest.mark.parametrize("fault", [_kill, _restart])
def test_restarted_broker_loses_and_duplicates_nothing(
    own_kafka_server: KafkaServer, fault: Callable[[KafkaServer], None]
) -> None:
    server = own_kafka_server
    topic = new_topic(server.bootstrap)
    batch = envelopes(40_000, topic, aggregates=100)
    # Room for all of them: a full budget would hold the second submit until the paused broker's
    # messages time out.
    settings = kafka(server.bootstrap, topics=(topic,), pool={"budget_messages": len(batch)})
    with opened(settings) as (pool, lane):
        for start in (0, 20_000):
            lane.submit(batch[start : start + 10_000])
            until(lambda: pool.statistics()["stored"] > start + 500)  # noqa: B023  # called here only
            server.pause()
            lane.submit(batch[start + 10_000 : start + 20_000])
            until(lambda: broker_of(pool)["queued"] > 0)
            fault(server)
        results = lane.flush()

    assert len(results) == len(batch)
    assert {result.outcome for result in results} == {Outcome.STORED}
    assert audit(server.bootstrap, topic, batch) == FLAWLESS


def test_broker_restarted_under_a_dataflow_loses_and_duplicates_nothing(
    own_kafka_server: KafkaServer,
) -> None:
    server = own_kafka_server
    topic = new_topic(server.bootstrap)
    batch = envelopes(8_000, topic, aggregates=80)
    lock = threading.Lock()
    done: list[int] = []

    def before(index: int) -> None:
        with lock:
            if index >= 1_000 and not done:
                done.append(index)
                _kill(server)

    made = publishing(
        Envelopes(*by_aggregate(batch, 4), batch_size=50, before=before), kafka(server.bootstrap)
    )

    run(made.flow, workers=2)

    assert done
    assert audit(server.bootstrap, topic, batch) == FLAWLESS
    assert sorted(result.event_id for result in made.oks) == sorted(each.event_id for each in batch)


def test_broker_paused_beyond_the_ack_timeout_loses_and_duplicates_nothing(
    own_kafka_server: KafkaServer,
) -> None:
    server = own_kafka_server
    topic = new_topic(server.bootstrap)
    batch = envelopes(40_000, topic, aggregates=100)
    with ExitStack() as timers, opened(kafka(server.bootstrap, ack_timeout=0.5)) as (pool, lane):
        lane.submit(batch)
        until(lambda: pool.statistics()["stored"] > 2_000)
        server.pause()
        timer = threading.Timer(4, server.resume)
        timer.start()
        timers.callback(timer.join)
        results = lane.flush()

    assert {result.outcome for result in results} == {Outcome.STORED}
    assert audit(server.bootstrap, topic, batch) == FLAWLESS


@pytest.fixture
def proxied() -> Iterator[tuple[KafkaServer, Proxy]]:
    """A broker and a proxy before it, to which the broker sends its clients back."""
    with (
        Proxy("kafka://127.0.0.1:1", opaque=True) as proxy,
        KafkaServer(proxied_as=proxy.port) as server,
    ):
        proxy.aim(f"kafka://{server.proxied}")
        yield server, proxy


@pytest.mark.parametrize("way", ["requests", "answers"])
def test_reset_while_the_publisher_starts_is_retried(
    proxied: tuple[KafkaServer, Proxy], way: str
) -> None:
    server, proxy = proxied
    direction: Direction = getattr(proxy, way)
    for number in count():  # each piece of what is said until a lane is open
        topic = f"starts-{way}-{number}"
        declared = KafkaTopicSettings(name=topic, partitions=2)
        pieces, cut = count(), direction.cut
        direction.cuts = lambda piece: next(pieces) == number  # noqa: B023  # called here only
        settings = kafka(f"127.0.0.1:{proxy.port}", topic_settings=(declared,), connect_timeout=60)
        with opened(settings) as (_, lane):
            direction.cuts = lambda piece: False
            results = settle(lane, envelopes(10, topic))
        assert {result.outcome for result in results.values()} == {Outcome.STORED}
        assert audit(server.bootstrap, topic, envelopes(10, topic)) == FLAWLESS
        if direction.cut == cut:
            break
    assert number > 3


@pytest.mark.parametrize("way", ["requests", "answers"])
def test_reset_while_a_source_starts_is_not_taken_for_a_gap(
    proxied: tuple[KafkaServer, Proxy], way: str
) -> None:
    server, proxy = proxied
    topic = new_topic(server.bootstrap, partitions=2)
    publish(kafka(server.bootstrap), *envelopes(20, topic))
    settings = kafka(f"127.0.0.1:{proxy.port}", connect_timeout=60)
    direction: Direction = getattr(proxy, way)
    for number in sorted([*range(3, 8)] * 2):  # pieces of what is said at the start
        pieces = count()
        direction.cuts = lambda piece: next(pieces) == number  # noqa: B023  # called here only
        with Reading(settings, topics=topic, tail=False) as reading:
            reading.to_the_end()
        assert len(reading.values) == len(reading.items) == 20
    assert direction.cut > 5


def test_messages_with_lost_responses_are_retried_and_stored_once(
    proxied: tuple[KafkaServer, Proxy],
) -> None:
    server, proxy = proxied
    topic = new_topic(server.bootstrap)
    batch = envelopes(30_000, topic, aggregates=100)
    with opened(kafka(f"127.0.0.1:{proxy.port}", topics=(topic,))) as (pool, lane):
        settle(lane, batch[:100])
        for part in range(1, 4):
            stored = len(records(server.bootstrap, topic))
            lost = proxy.answers.lost
            proxy.answers.loses = lambda piece: True
            lane.submit(batch[part * 9_000 - 8_900 : part * 9_000 + 100])
            until(lambda: proxy.answers.lost > lost)  # noqa: B023  # called here only
            until(lambda: len(records(server.bootstrap, topic)) > stored)  # noqa: B023
            proxy.cut_all()
            proxy.answers.loses = lambda piece: False
            until(lambda: lane.unsettled == 0)
        lane.submit(batch[27_100:])
        lane.flush()

        assert pool.statistics()["stored"] == len(batch)
        assert pool.statistics()["unknown"] == 0
    assert proxy.answers.lost > 0
    assert audit(server.bootstrap, topic, batch) == FLAWLESS


@pytest.mark.parametrize("brokers", [1, 2])
def test_stored_message_whose_retry_is_refused_is_not_rejected(
    proxied: tuple[KafkaServer, Proxy], brokers: int
) -> None:
    server, proxy = proxied
    with ExitStack() as more:
        if brokers == 2:  # then the library does not report that one connection is closed
            more.enter_context(KafkaServer(joins=server))
        topic = _led_by_the_first(server.bootstrap)
        _refuse_a_retry(server, proxy, topic)


def _led_by_the_first(address: str) -> str:
    """A topic with one partition, led by the broker that is behind the proxy."""
    while True:
        topic = new_topic(address, partitions=1)
        found = AdminClient({"bootstrap.servers": address}).list_topics(topic).topics[topic]
        if found.partitions[0].leader == 1:
            return topic


def _refuse_a_retry(server: KafkaServer, proxy: Proxy, topic: str) -> None:
    large = Envelope(topic, b"1" * 5_000, "large", "a")
    settings = kafka(
        f"127.0.0.1:{proxy.port}", topics=(topic,), ack_timeout=60, delivery_timeout=120
    )
    with opened(settings) as (_, lane):
        settle(lane, envelopes(10, topic))
        proxy.answers.loses = lambda piece: True
        lane.submit([large])
        until(lambda: len(records(server.bootstrap, topic)) == 11)
        lower_limit(server.bootstrap, topic, 1_000)
        proxy.cut_all()
        proxy.answers.loses = lambda piece: False
        (result,) = lane.flush()

    assert result.outcome is Outcome.UNKNOWN
    assert "but an earlier attempt was not answered, so it may be stored" in str(result.reason)


def test_a_producer_that_fails_is_reported_once(
    kafka_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = new_topic(kafka_address)
    told: list[str] = []

    def failed(self: SharedPublisher, reason: str) -> None:
        told.append(reason)
        self.abandon(reason)

    monkeypatch.setattr(SharedPublisher, "failed", failed)
    with opened(kafka(kafka_address, topics=(topic,))) as (_, lane):
        settle(lane, envelopes(1, topic))

        def produce(*_: Any) -> None:
            raise KafkaException(KafkaError(KafkaError._FATAL, "gone", fatal=True))

        monkeypatch.setattr(KafkaPublisher, "send", _sending_with(produce))
        results = settle(lane, envelopes(100, topic, first=1))

    assert {each.outcome for each in results.values()} == {Outcome.UNKNOWN}
    assert len(told) == 1


def _sending_with(produce: Callable[..., None]) -> Callable[..., None]:
    send = KafkaPublisher.send

    def sending(self: KafkaPublisher, outgoing: Outgoing) -> None:
        assert self._client is not None
        self._client.produce = produce
        send(self, outgoing)

    return sending


def test_connections_reset_again_and_again_lose_nothing(proxied: tuple[KafkaServer, Proxy]) -> None:
    server, proxy = proxied
    topic = new_topic(server.bootstrap)
    batch = envelopes(20_000, topic, aggregates=100)
    with opened(kafka(f"127.0.0.1:{proxy.port}", topics=(topic,))) as (pool, lane):
        for number in range(5):
            lane.submit(batch[number * 4_000 : number * 4_000 + 4_000])
            until(lambda: broker_of(pool)["queued"] > 0 or not lane.unsettled)
            proxy.cut_all()
        results = lane.flush()

    assert {result.outcome for result in results} == {Outcome.STORED}
    assert audit(server.bootstrap, topic, batch) == FLAWLESS


def test_link_that_needs_longer_than_the_delivery_timeout_stores_everything(
    proxied: tuple[KafkaServer, Proxy],
) -> None:
    server, proxy = proxied
    topic = new_topic(server.bootstrap, partitions=1)
    batch = [
        each._replace(payload=each.payload + b" " * 50_000)  # type: ignore[operator]
        for each in envelopes(60, topic, first=1, aggregates=1)
    ]
    settings = kafka(
        f"127.0.0.1:{proxy.port}", topics=(topic,), batch_bytes=60_000, ack_timeout=2,
        delivery_timeout=4,
    )  # fmt: skip
    with opened(settings) as (_, lane):
        first = envelopes(1, topic, aggregates=1)
        settle(lane, first)
        proxy.requests.delay = 0.25  # for each 64 KB
        began = time.monotonic()
        results = settle(lane, batch)

        assert time.monotonic() - began > 2 * settings.pool.delivery_timeout
    assert {(each.outcome, each.reason) for each in results.values()} == {(Outcome.STORED, None)}
    assert audit(server.bootstrap, topic, first + batch) == FLAWLESS


def test_broker_gone_for_good_stops_the_dataflow_and_the_next_run_replays(
    own_kafka_server: KafkaServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    server = own_kafka_server
    topic = new_topic(server.bootstrap)
    batch = envelopes(2_000, topic)
    gone: list[int] = []

    def before(index: int) -> None:
        if index == 500 and not gone:
            gone.append(index)
            server.kill()

    store = recovery_store(tmp_path_factory.mktemp("run") / "store")
    made = publishing(
        Envelopes(batch, before=before),
        kafka(server.bootstrap, ack_timeout=0.5, delivery_timeout=2),
    )

    with pytest.raises(BytewaxRuntimeError) as stopped:
        run(made.flow, store=store)

    cause = root_cause(stopped.value)
    assert isinstance(cause, PublishError)
    assert "stops without committing its epoch: envelope e-" in str(cause)
    assert "is unknown: " in str(cause)
    assert not made.errs, "an unknown result left the dataflow"
    server.start()
    again = publishing(Envelopes(batch), kafka(server.bootstrap))
    run(again.flow, store=store)
    ids = {record.headers["Event-Id"].decode() for record in records(server.bootstrap, topic)}
    assert ids == {each.event_id for each in batch}
    assert {result.event_id for result in made.oks + again.oks} == ids


def test_messages_with_too_few_replicas_are_unknown_never_called_stored(
    own_kafka_server: KafkaServer,
) -> None:
    with KafkaServer(joins=own_kafka_server) as second:
        server = own_kafka_server
        topic = new_topic(server.bootstrap, partitions=1, replicas=2, min_insync_replicas="2")
        strong = KafkaTopicSettings(name=topic, replicas=2, min_insync_replicas=2)
        settings = kafka(
            server.bootstrap, ack_timeout=0.5, delivery_timeout=6, topic_settings=(strong,)
        )
        with opened(settings) as (_, lane):
            assert {result.outcome for result in settle(lane, envelopes(10, topic)).values()} == {
                Outcome.STORED
            }
            second.kill()
            results = settle(lane, envelopes(10, topic, first=10))

            assert {result.outcome for result in results.values()} == {Outcome.UNKNOWN}
            assert "check the broker" in str(results["e-10"].reason)


def test_nothing_more_is_handed_over_behind_an_unknown_message_of_its_aggregate(
    own_kafka_server: KafkaServer,
) -> None:
    server = own_kafka_server
    topic = new_topic(server.bootstrap, partitions=1)
    handed, waiting = config.WINDOW, 1_000
    batch = envelopes(handed + waiting, topic, first=10, aggregates=1)
    settings = kafka(server.bootstrap, topics=(topic,), ack_timeout=0.5, delivery_timeout=3)
    with opened(settings) as (_, lane):
        settle(lane, envelopes(10, topic, aggregates=1))
        server.pause()
        lane.submit(batch)
        results = lane.flush()
        server.resume()

        assert {each.outcome for each in results} == {Outcome.UNKNOWN}
        assert {each.attempts for each in results[-waiting:]} == {0}
        after = envelopes(10, topic, first=100_000, aggregates=1)
        assert {each.outcome for each in settle(lane, after).values()} == {Outcome.STORED}
    stored = [int(each.payload) for each in records(server.bootstrap, topic)]
    assert stored == sorted(set(stored))
    assert not {int(each.payload or b"") for each in batch[handed:]} & set(stored)
    assert stored[-10:] == list(range(100_000, 100_010))


def test_one_replica_is_too_weak_whatever_min_insync_replicas_says(kafka_address: str) -> None:
    topic = new_topic(kafka_address, min_insync_replicas="2")  # Kafka stores to it all the same
    strong = KafkaTopicSettings(name=topic, replicas=2, min_insync_replicas=2)

    with pytest.raises(
        TopicError,
        match=r"its replication factor is 1, the settings require 2; "
        r"min\.insync\.replicas is 2 of 1 replicas",
    ):
        publish(kafka(kafka_address, topic_settings=(strong,), topic_strategy="validate"))


def test_a_full_queue_of_the_library_loses_and_reorders_nothing(
    kafka_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        client,
        "producer",
        lambda settings, **how: {
            **config.producer(settings, **how),
            "queue.buffering.max.messages": 500,
        },
    )
    topic = new_topic(kafka_address)
    batch = envelopes(20_000, topic, aggregates=20)
    with opened(kafka(kafka_address, topics=(topic,))) as (pool, lane):
        lane.submit(batch)
        results = lane.flush()

        assert broker_of(pool)["queue_full"] > 0
    assert {result.outcome for result in results} == {Outcome.STORED}
    assert audit(kafka_address, topic, batch) == FLAWLESS


def test_a_producer_that_fails_leaves_everything_unknown_and_stops_the_flow(
    kafka_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What librdkafka raises out of a poll is fatal, and may come as a `SystemError`."""
    topic = new_topic(kafka_address)

    def broken(self: Client) -> None:
        def poll(seconds: float) -> int:
            raise SystemError("a result with an error set")

        self._guarded(poll, 0)

    monkeypatch.setattr(Client, "serve", broken)
    made = publishing(Envelopes(envelopes(100, topic)), kafka(kafka_address))

    with pytest.raises(BytewaxRuntimeError) as stopped:
        run(made.flow)

    assert "is unknown: the Kafka producer has failed" in str(root_cause(stopped.value))
    assert "check the brokers, then start the flow again" in str(root_cause(stopped.value))


def test_a_forked_child_gets_a_clear_error_and_the_parent_goes_on(kafka_address: str) -> None:
    topic = new_topic(kafka_address)
    with opened(kafka(kafka_address, topics=(topic,))) as (_, lane):
        settle(lane, envelopes(10, topic))
        pid = os.fork()
        if pid == 0:  # pragma: no cover  # in the child nothing may escape to pytest
            code = 1
            try:
                lane.submit(envelopes(1, topic, first=10))
            except Exception as error:
                code = 0 if "make a new one after a fork" in str(error) else 2
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

        assert len(settle(lane, envelopes(10, topic, first=20))) == 10
    assert len(records(kafka_address, topic)) == 20

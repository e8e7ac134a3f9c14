"""Every strategy, small: it runs, stores every message once, and leaves nothing behind."""

from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from bytewax_jetstream.bench.cases import STRATEGIES, Case
from bytewax_jetstream.bench.jetstream_broker import JetStreamBroker
from bytewax_jetstream.bench.kafka_broker import KafkaBroker
from bytewax_jetstream.bench.results import check
from bytewax_jetstream.bench.runner import run
from bytewax_jetstream.errors import BenchError
from bytewax_jetstream.testing import NatsServer
from tests.support.kafka import make_topic, records
from tests.support.lanes import jetstream, kafka, publish
from tests.support.streams import api, envelopes, make_stream, stored
from tests.support.waiting import until

pytestmark = pytest.mark.alone

MESSAGES = 60


def case(strategy: str, **more: Any) -> Case:
    return Case(
        "low",
        "jetstream",
        "memory",
        "msgid",
        strategy,
        messages=MESSAGES,
        payload_bytes=16,
        batch=25,
    )._replace(**more)


@pytest.fixture(scope="module")
def broker() -> Iterator[JetStreamBroker]:
    with JetStreamBroker() as started:
        yield started


@pytest.fixture(scope="module")
def rounds(broker: JetStreamBroker) -> dict[str, dict[str, Any]]:
    """One round of every strategy, in turns, as the command runs them."""
    group = [case(strategy) for strategy in STRATEGIES["jetstream"]]
    measured = run([group], {"jetstream": broker}, rounds=1)
    assert check(measured) == []
    return {entry["strategy"]: entry for entry in measured}


@pytest.mark.parametrize("strategy", STRATEGIES["jetstream"])
def test_a_strategy_stores_or_reads_every_message_and_leaves_nothing_behind(
    strategy: str, rounds: dict[str, dict[str, Any]]
) -> None:
    entry = rounds[strategy]

    assert entry["acked"] == entry["found"] == MESSAGES
    assert entry["success"] == 1
    assert entry["repeated"] == 0
    assert entry["msgs_per_s"] > 0
    assert entry["client_cpu_us_per_msg"] > 0
    assert entry["threads_final"] == entry["threads_initial"]
    assert entry["tasks_initial"] == entry["tasks_final"] == 0


def test_management_requests_match_the_servers_count(
    rounds: dict[str, dict[str, Any]],
) -> None:
    assert rounds["before"]["mgmt_requests_per_msg"] == 1
    assert all(
        rounds[name]["mgmt_requests_per_msg"] == 0
        for name in ("sync", "task", "async", "pool", "lean")
    )


def test_ack_frames_match_the_servers_count(rounds: dict[str, dict[str, Any]]) -> None:
    assert rounds["sync"]["ack_frames_per_msg"] == rounds["pool"]["ack_frames_per_msg"] == 1
    assert rounds["before"]["ack_frames_per_msg"] == 2
    assert rounds["lean"]["ack_frames_per_msg"] < 0.1


@pytest.mark.parametrize("payload", [128, 1024, 16_384])
def test_every_kafka_strategy_stores_every_message_and_leaves_nothing_behind(
    kafka_address: str, payload: int
) -> None:
    group = [
        case(name, broker="kafka", payload_bytes=payload, ids="header")
        for name in STRATEGIES["kafka"]
    ]
    with KafkaBroker(kafka_address) as broker:
        measured = run([group], {"kafka": broker}, rounds=1)

    assert check(measured) == []
    assert {entry["strategy"] for entry in measured} == set(STRATEGIES["kafka"])
    assert {entry["found"] for entry in measured} == {MESSAGES}
    threads = {
        entry["strategy"]: (entry["threads_initial"], entry["threads_final"]) for entry in measured
    }
    assert threads == dict.fromkeys(STRATEGIES["kafka"], (1, 1))


def test_users_topics_and_streams_are_left_as_they_were(
    kafka_address: str, nats_server: NatsServer
) -> None:
    for name in ("bench.0", "bench.1"):
        make_topic(kafka_address, name, partitions=1)
        publish(kafka(kafka_address), *envelopes(5, name))
    make_stream(nats_server.url, "BYTEWAX_JETSTREAM_BENCH", "bench.0")
    publish(jetstream(nats_server.url), *envelopes(5, "bench.0"))
    before = _places(kafka_address, nats_server.url)

    with KafkaBroker(kafka_address) as there, JetStreamBroker(nats_server.url) as here:
        measured = run(
            [[case("pool"), case("pool", broker="kafka", ids="header")]],
            {"kafka": there, "jetstream": here},
            rounds=1,
        )
        assert len(_places(kafka_address, nats_server.url) - before) == 5

    assert check(measured) == []
    until(lambda: _places(kafka_address, nats_server.url) == before)
    assert [len(records(kafka_address, name)) for name in ("bench.0", "bench.1")] == [5, 5]
    assert len(stored(nats_server.url, "BYTEWAX_JETSTREAM_BENCH")) == 5


def test_topic_of_somebody_else_is_refused_and_kept(kafka_address: str) -> None:
    broker = KafkaBroker(kafka_address)
    make_topic(kafka_address, f"{broker.place}.3", partitions=1)
    publish(kafka(kafka_address), *envelopes(5, f"{broker.place}.3"))

    with pytest.raises(BenchError, match=rf"topic {broker.place}\.3 cannot be created at .*exists"):
        broker.__enter__()

    assert len(records(kafka_address, f"{broker.place}.3")) == 5
    made = [f"{broker.place}.{number}" for number in (0, 1, 2, 4)]
    until(lambda: not _places(kafka_address) & set(made))


def _places(kafka_address: str, url: str | None = None) -> set[str]:
    found = set(AdminClient({"bootstrap.servers": kafka_address}).list_topics(timeout=60).topics)
    return found if url is None else found | set(api(url, "STREAM.NAMES")["streams"] or ())


def test_paced_messages_and_ids_in_another_header_are_stored_too(broker: JetStreamBroker) -> None:
    group = [
        case("sync", rate=1_000, batch=1),
        case("flow", rate=1_000, batch=1),
        case("lean", ids="header"),
    ]

    assert check(run([group], {"jetstream": broker}, rounds=1)) == []


def test_failed_strategy_is_reported_with_its_reason(broker: JetStreamBroker) -> None:
    with pytest.raises(BenchError, match=r"jetstream sync failed: .*maximum payload"):
        run([[case("sync", payload_bytes=2_000_000)]], {"jetstream": broker}, rounds=1)

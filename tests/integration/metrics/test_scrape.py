"""A running flow is scraped, and its figures agree with what was published."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from bytewax_jetstream.exit_codes import ExitCode
from bytewax_jetstream.testing import NatsServer
from tests.support.kafka import new_topic, ordered_producer, records
from tests.support.metered import Metered
from tests.support.metrics import Scrape, promtool, scraped
from tests.support.processes import free_port, start_run
from tests.support.reading import numbered, put
from tests.support.streams import api, make_stream
from tests.support.waiting import PATIENCE, until

FLOW = "tests.support.metered:flow"
PUBLISH, READ = "metered.publish", "metered.in.source"


@contextmanager
def _run(told: Metered, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    options = ("-s", 1, "--metrics-port", port)
    with start_run(FLOW, *options, log=log, environment=told.environment) as process:
        yield process.running


@contextmanager
def _plain(told: Metered, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Under Bytewax's own runner."""
    api_of_bytewax = {
        "BYTEWAX_DATAFLOW_API_ENABLED": "1",
        "BYTEWAX_DATAFLOW_API_PORT": str(port),
        "BYTEWAX_DATAFLOW_API_CACHE_PATH": str(log.parent),
    }
    with log.open("ab") as file:
        running = subprocess.Popen(
            [sys.executable, "-m", "bytewax.run", FLOW, "-s", "1"],
            env={**os.environ, **told.environment, **api_of_bytewax},
            stdout=file,
            stderr=file,
        )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def _until(port: int, log: Path, condition: Callable[[Scrape], object]) -> Scrape:
    """Scrape until a condition holds."""
    last = [Scrape("")]

    def holds() -> object:
        last[0] = scraped(port)
        return condition(last[0])

    try:
        until(holds)
    except AssertionError:
        raise AssertionError(f"{log.read_text()}\n{last[0].text}") from None
    return last[0]


def _is_settled(messages: int) -> Callable[[Scrape], bool]:
    return lambda seen: (
        seen.sum("stored_total") + seen.sum("rejected_total") == messages
        and seen.sum("barrier_wait_seconds_count") > 0
        and seen.each("source_lag_messages") == [0]
    )


def _check_common(seen: Scrape, broker: str, messages: int) -> None:
    """What is the same for both brokers."""
    lane = {"broker": broker, "step_id": PUBLISH, "worker_index": "0"}
    assert seen.each("submitted_total", **lane) == [messages]
    assert seen.each("stored_total", **lane) == [messages - 1]
    assert seen.each("rejected_total", **lane) == [1]
    assert seen.each("unknown_total", **lane) == [0]
    assert seen.each("result_latency_seconds_count", broker=broker, step_id=PUBLISH) == [messages]
    assert seen.sum("retries_total") == seen.sum("reconnects_total") == 0
    assert seen.each("lanes") == [1]
    assert seen.sum("budget_messages") == 16_000
    for name in ("unsettled_messages", "unsettled_bytes", "in_flight_messages"):
        assert seen.each(name) == [0], name
    assert seen.each("oldest_unsettled_seconds", broker=broker) == [0]
    assert seen.each("source_messages_total", broker=broker, step_id=READ) == [messages]
    assert seen.sum("scrape_errors_total") == 0
    assert "bytewax_item_inp_count_total" in seen.names, "Bytewax's own are beside them"
    assert promtool("check", "metrics", given=seen.text) == ""


@pytest.mark.parametrize("started", [_run, _plain], ids=["run", "bytewax.run"])
def test_figures_of_a_jetstream_flow_agree_with_the_streams(
    nats_server: NatsServer, tmp_path: Path, started: Callable[..., object]
) -> None:
    url, name, log = nats_server.url, f"M{started.__name__}", tmp_path / "log"
    make_stream(url, f"{name}-IN", f"{name}.in")
    make_stream(url, f"{name}-OUT", f"{name}.out", allow_batched=True)
    put(url, f"{name}-IN", numbered(f"{name}.in", 500))
    port = free_port()
    told = Metered("jetstream", url, f"{name}-IN", f"{name}.out")
    with started(told, port, log) as running:  # type: ignore[attr-defined]
        seen = _until(port, log, _is_settled(500))
        _check_common(seen, "jetstream", 500)
        assert seen.sum("duplicates_total") == 1
        assert api(url, f"STREAM.INFO.{name}-OUT")["state"]["messages"] == 500 - 1 - 1
        source = {"stream": f"{name}-IN", "step_id": READ}
        assert seen.each("source_position", **source) == [501]
        assert seen.each("connected") == [1]
        assert 0 < seen.sum("batch_messages_total") <= 500
        assert 0 < seen.sum("batches_total") <= seen.sum("batch_messages_total")

        put(url, f"{name}-IN", numbered(f"{name}.in", 100, first=501))
        seen = _until(port, log, _is_settled(600))
        _check_common(seen, "jetstream", 600)

        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENCE) == ExitCode.STORED


def test_figures_of_a_kafka_flow_agree_with_the_topics_and_its_group(
    kafka_address: str, tmp_path: Path
) -> None:
    reads, writes = (new_topic(kafka_address, partitions=1) for _ in range(2))
    log, port, group = tmp_path / "log", free_port(), f"group-{reads}"

    def produce(first: int, last: int) -> None:
        producer = ordered_producer(kafka_address)
        for number in range(first, last + 1):
            producer.produce(reads, b"%d" % number)
        assert producer.flush(30) == 0

    def committed() -> int:
        consumer = Consumer({"bootstrap.servers": kafka_address, "group.id": group})
        try:
            (place,) = consumer.committed([TopicPartition(reads, 0)], timeout=30)
            return int(place.offset)
        finally:
            consumer.close()

    produce(1, 500)
    told = Metered("kafka", kafka_address, reads, writes, group)
    with _run(told, port, log) as running:
        seen = _until(port, log, _is_settled(500))
        _check_common(seen, "kafka", 500)
        assert len(records(kafka_address, writes)) == 499
        assert seen.sum("duplicates_total") == 0, "Kafka knows no event ids"
        assert seen.each("connected") == [], "librdkafka connects by itself"
        source = {"stream": reads, "partition": "0", "step_id": READ}
        assert seen.each("source_position", **source) == [500]

        produce(501, 600)
        _until(port, log, _is_settled(600))
        until(lambda: committed() == 600)
        seen = _until(port, log, lambda seen: seen.sum("source_group_commits_total", result="ok"))
        assert seen.each("source_group_commits_total", result="failed", step_id=READ) == [0]

        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENCE) == ExitCode.STORED

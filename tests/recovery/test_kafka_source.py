"""Reading Kafka through crashes, and from the recovery stores of the source before."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.connectors.kafka import KafkaSource as BytewaxSource
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink
from confluent_kafka.admin import AdminClient, NewPartitions

import bytewax_jetstream.operators as jop
from bytewax_jetstream.settings import KafkaSettings
from tests.support.dataflows import recovery_store, run
from tests.support.kafka import new_topic, records
from tests.support.lanes import kafka, publish
from tests.support.streams import envelopes
from tests.support.waiting import until


def _reading(source: Any, found: list[Any]) -> Dataflow:
    flow = Dataflow("reading")
    if isinstance(source, BytewaxSource):  # as jop.input did it before
        old: Any = source
        items = jop._kafka_input("in", flow, old)
        op.output("errs", items.errs, TestingSink(found))
    else:
        items = jop.input("in", flow, source["settings"], topics=source["topics"], tail=False)
    op.output("out", items.oks, TestingSink(found))
    return flow


def test_store_of_bytewaxs_source_resumes_with_nothing_lost_and_nothing_repeated(
    kafka_address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    topic = new_topic(kafka_address, partitions=3)
    settings: KafkaSettings = kafka(kafka_address)
    store, first, second = recovery_store(tmp_path / "store"), list[Any](), list[Any]()
    publish(settings, *envelopes(500, topic, aggregates=10))
    run(_reading(BytewaxSource([kafka_address], [topic], tail=False), first), store=store)
    publish(settings, *envelopes(500, topic, first=500, aggregates=10))

    run(_reading({"settings": settings, "topics": topic}, second), store=store)

    assert len(first) == 500
    assert sorted(int(item.value) for item in second) == [*range(500, 1_000)]
    warnings = [line.message for line in caplog.records if "earlier version" in line.message]
    assert len(warnings) == 1


PROGRAM = """
import sys
import bytewax.operators as op, bytewax_jetstream.operators as jop
from datetime import timedelta
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig
from bytewax.testing import cluster_main
from bytewax_jetstream import Envelope, KafkaSettings

address, source, target, store = sys.argv[1:]
settings = KafkaSettings(brokers=(address,))
flow = Dataflow("copying")
read = jop.input("in", flow, settings, topics=source, batch_size=20)
made = op.map("made", read.oks, lambda one: Envelope(
    target, one.value, event_id=one.value.decode(), aggregate_id=one.key.decode()))
jop.output("out", made, settings)
cluster_main(flow, [], 0, worker_count_per_proc=2, epoch_interval=timedelta(seconds=0.05),
             recovery_config=RecoveryConfig(store, backup_interval=timedelta(0)))
"""


def _has_more(address: str, topic: str, count: int) -> bool:
    return len(records(address, topic)) > count


def test_kills_while_a_topic_grows_lose_no_message(kafka_address: str, tmp_path: Path) -> None:
    admin = AdminClient({"bootstrap.servers": kafka_address})
    source, target = new_topic(kafka_address, partitions=2), new_topic(kafka_address)
    store = recovery_store(tmp_path / "store")
    command = [sys.executable, "-c", PROGRAM, kafka_address, source, target, str(store)]

    for attempt in range(3):
        before = len(records(kafka_address, target))
        publish(kafka(kafka_address), *envelopes(400, source, first=400 * attempt, aggregates=40))
        child = subprocess.Popen(command)
        try:
            until(partial(_has_more, kafka_address, target, before + 50))
            admin.create_partitions([NewPartitions(source, 3 + attempt)])[source].result(30)
            child.send_signal(signal.SIGKILL)
            child.wait(30)
        finally:
            child.kill()
            child.wait()
    child = subprocess.Popen(command)
    try:
        # Only this child can copy these: when they are there, it runs and handles SIGTERM.
        publish(kafka(kafka_address), *envelopes(100, source, first=1_200, aggregates=40))
        wanted = {b"%d" % number for number in range(1_300)}
        until(lambda: {one.payload for one in records(kafka_address, target)} >= wanted)
        os.kill(child.pid, signal.SIGTERM)
        assert child.wait(40) == 0
    finally:
        child.kill()
        child.wait()

    assert {one.payload for one in records(kafka_address, target)} == wanted

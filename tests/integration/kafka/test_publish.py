"""The pool, the operators and the sink against a real Kafka broker."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import bytewax.operators as op
import psutil
import pytest
from bytewax.connectors.kafka import KafkaSink as BytewaxKafkaSink
from bytewax.connectors.kafka import KafkaSinkMessage
from bytewax.dataflow import Dataflow
from bytewax.errors import BytewaxRuntimeError
from bytewax.testing import TestingSink

import bytewax_jetstream.operators as jop
from bytewax_jetstream import AckPool, Envelope, Outcome, PublishResult
from bytewax_jetstream.bridge import from_jetstream, from_kafka
from bytewax_jetstream.errors import PublishError
from bytewax_jetstream.kafka.publisher import KafkaPublisher
from bytewax_jetstream.pool import shared_pool
from bytewax_jetstream.sinks import KafkaSink
from bytewax_jetstream.testing import KafkaServer, NatsServer
from tests.support.dataflows import Envelopes, publishing, recovery_store, root_cause, run
from tests.support.kafka import audit, make_topic, new_topic, records
from tests.support.lanes import broker_of, jetstream, kafka, opened, publish, settle
from tests.support.streams import FLAWLESS, envelopes, make_stream, stored
from tests.support.waiting import PATIENCE, until


def test_a_stored_result_names_partition_and_offset(kafka_address: str) -> None:
    topic = new_topic(kafka_address)
    first = Envelope(
        topic, b"one", event_id="e-1", aggregate_id="a-1", event_type="made", headers={"a": "ü"}
    )
    second = Envelope(topic, b"two", event_id="e-ü", partition=3)

    results = publish(kafka(kafka_address), first, second)

    by_id = {
        record.headers["Event-Id"].decode(): record for record in records(kafka_address, topic)
    }
    one, two = by_id["e-1"], by_id["e-ü"]
    assert (one.key, one.payload) == (b"a-1", b"one")
    assert one.headers == {"Event-Id": b"e-1", "Event-Type": b"made", "a": "ü".encode()}
    assert (two.key, two.payload, two.partition) == (None, b"two", 3)
    result = results["e-1"]
    assert result.outcome is Outcome.STORED
    assert (result.broker, result.stream, result.partition, result.sequence) == (
        "kafka", None, one.partition, one.offset,
    )  # fmt: skip
    assert (result.topic, result.aggregate_id, result.event_type) == (topic, "a-1", "made")
    assert (result.duplicate, result.attempts, result.reason, result.envelope) == (
        None,
        1,
        None,
        None,
    )
    assert (results["e-ü"].partition, results["e-ü"].sequence) == (3, two.offset)


def test_every_envelope_is_stored_once_and_in_order(kafka_address: str) -> None:
    topic = new_topic(kafka_address)
    batch = envelopes(30_000, topic, aggregates=100)

    results = publish(kafka(kafka_address, topics=(topic,)), *batch)

    assert {result.outcome for result in results.values()} == {Outcome.STORED}
    by_position = {
        (record.partition, record.offset): record for record in records(kafka_address, topic)
    }
    for result in results.values():
        assert result.partition is not None
        assert result.sequence is not None
        assert (
            by_position[result.partition, result.sequence].headers["Event-Id"].decode()
            == result.event_id
        )
    assert audit(kafka_address, topic, batch) == FLAWLESS


def test_each_topic_is_looked_up_only_once(kafka_address: str) -> None:
    topics = [new_topic(kafka_address) for _ in range(3)]
    with opened(kafka(kafka_address)) as (pool, lane):
        settle(lane, [Envelope(topic, b"0", event_id=topic) for topic in topics])
        asked = broker_of(pool)["topic_look_ups"]
        for number in range(10):
            settle(lane, [Envelope(topic, b"0", event_id=f"{topic}-{number}") for topic in topics])

        assert broker_of(pool)["topic_look_ups"] == asked
        assert broker_of(pool)["topics"] == 3


def test_envelopes_that_wait_for_a_topic_look_up_keep_their_order(kafka_address: str) -> None:
    topic = new_topic(kafka_address)
    batch = envelopes(20_000, topic, aggregates=5)
    with opened(kafka(kafka_address)) as (_, lane):
        for start in range(0, len(batch), 500):
            lane.submit(batch[start : start + 500])
        results = lane.flush()

    assert {result.outcome for result in results} == {Outcome.STORED}
    assert audit(kafka_address, topic, batch) == FLAWLESS


def test_topic_created_after_a_rejection_is_found(kafka_address: str) -> None:
    topic = f"late-{time.time_ns()}"
    with opened(kafka(kafka_address)) as (_, lane):
        assert (
            settle(lane, [Envelope(topic, b"0", event_id="e-0")])["e-0"].outcome is Outcome.REJECTED
        )
        make_topic(kafka_address, topic)
        result = settle(lane, [Envelope(topic, b"0", event_id="e-1")])["e-1"]

    assert result.outcome is Outcome.STORED


@pytest.mark.alone
def test_end_of_an_epoch_does_not_wait_for_the_linger_time(kafka_address: str) -> None:
    topic = new_topic(kafka_address)
    linger = 10.0
    with opened(kafka(kafka_address, topics=(topic,), linger=linger)) as (_, lane):
        began = time.monotonic()
        results = [settle(lane, envelopes(1, topic, first=number)) for number in range(5)]

        assert time.monotonic() - began < linger
    assert all(result.outcome is Outcome.STORED for each in results for result in each.values())


def test_end_of_an_epoch_does_not_wait_for_other_lanes(kafka_address: str) -> None:
    topic = new_topic(kafka_address)
    settings = kafka(kafka_address, topics=(topic,))
    stop = threading.Event()
    with AckPool(settings.pool) as pool:
        mine = pool.lane(KafkaPublisher(settings), name="mine")
        busy = pool.lane(KafkaPublisher(settings), name="busy")

        def fill() -> None:
            number = 0
            while not stop.is_set():
                busy.submit(envelopes(500, topic, first=number))
                busy.collect()
                number += 500

        thread = threading.Thread(target=fill)
        thread.start()
        try:
            until(lambda: busy.unsettled > 0)
            for number in range(5):
                mine.submit([Envelope(topic, b"%d" % number, event_id=f"mine-{number}")])
                assert [result.outcome for result in mine.flush(10)] == [Outcome.STORED]
            assert broker_of(pool)["lanes"] == 2
        finally:
            stop.set()
            thread.join()
        busy.flush()


def test_a_dataflow_gets_every_result_and_a_checkpoint(kafka_address: str, tmp_path: Path) -> None:
    topic = new_topic(kafka_address)
    batch = envelopes(5_000, topic, aggregates=100)
    parts = [
        [each for each in batch if int(str(each.aggregate_id)[2:]) % 4 == part] for part in range(4)
    ]
    made = publishing(Envelopes(*parts, batch_size=50), kafka(kafka_address, topics=(topic,)))

    run(made.flow, workers=2, store=recovery_store(tmp_path / "store"))

    assert sorted(result.event_id for result in made.oks) == sorted(each.event_id for each in batch)
    assert sum(checkpoint.stored for checkpoint in made.checkpoints) == len(batch)
    assert not made.errs
    assert audit(kafka_address, topic, batch) == FLAWLESS


@pytest.mark.parametrize("step", ["sink", "output"])
def test_rejected_envelope_stops_the_run(kafka_address: str, step: str) -> None:
    topic = new_topic(kafka_address)
    settings = kafka(kafka_address)
    flow = Dataflow("flow")
    up = op.input(
        "in", flow, Envelopes([*envelopes(10, topic), Envelope("nowhere", b"", event_id="bad")])
    )
    if step == "sink":
        op.output("out", up, KafkaSink(settings))
    else:
        jop.output("out", up, settings)

    with pytest.raises(BytewaxRuntimeError) as stopped:
        run(flow)

    cause = root_cause(stopped.value)
    assert isinstance(cause, PublishError)
    assert "envelope bad on nowhere is rejected: there is no topic nowhere" in str(cause)
    assert (cause.topic, cause.event_id, cause.outcome) == ("nowhere", "bad", "rejected")


@pytest.mark.parametrize("step", ["sink", "output"])
def test_written_envelopes_are_stored_when_the_run_ends(kafka_address: str, step: str) -> None:
    topic = new_topic(kafka_address)
    batch = envelopes(1_000, topic)
    flow = Dataflow("flow")
    up = op.input("in", flow, Envelopes(batch, batch_size=100))
    if step == "sink":
        op.output("out", up, KafkaSink(kafka(kafka_address)))
    else:
        jop.output("out", up, kafka(kafka_address))

    run(flow)

    assert audit(kafka_address, topic, batch) == FLAWLESS


def test_unreachable_broker_stops_our_sink_where_bytewaxs_loses_everything() -> None:
    with KafkaServer() as server:
        address = server.bootstrap  # where nobody listens from now on
    theirs = Dataflow("theirs")
    quickly = {"message.timeout.ms": "1000", "log_level": "0"}
    up = op.input("in", theirs, Envelopes(envelopes(20, "topic")))
    made = op.map("made", up, lambda each: KafkaSinkMessage(key=None, value=each.payload))
    op.output("out", made, BytewaxKafkaSink([address], "topic", add_config=quickly))

    run(theirs)  # ends as if nothing had happened, and nothing is stored

    ours = Dataflow("ours")
    up_ours = op.input("in", ours, Envelopes(envelopes(20, "topic")))
    op.output("out", up_ours, KafkaSink(kafka(address, connect_timeout=1)))
    with pytest.raises(BytewaxRuntimeError) as stopped:
        run(ours)
    assert f"no connection to Kafka at {address} within 1 s" in str(root_cause(stopped.value))


def test_vanished_broker_stops_our_sink_where_bytewaxs_loses_messages(
    own_kafka_server: KafkaServer,
) -> None:
    server = own_kafka_server
    topic = new_topic(server.bootstrap)
    causes: dict[str, BaseException | None] = {}
    for name in ("theirs", "ours"):

        def before(index: int) -> None:
            if index == 10:
                server.kill()

        flow = Dataflow(name)
        up = op.input("in", flow, Envelopes(envelopes(30, topic), before=before))
        if name == "theirs":
            quickly = {"message.timeout.ms": "1000", "log_level": "0"}
            made = op.map("made", up, lambda each: KafkaSinkMessage(key=None, value=each.payload))
            op.output("out", made, BytewaxKafkaSink([server.bootstrap], topic, add_config=quickly))
        else:
            op.output(
                "out", up, KafkaSink(kafka(server.bootstrap, ack_timeout=0.5, delivery_timeout=2))
            )
        try:
            run(flow)
            causes[name] = None
        except BytewaxRuntimeError as error:
            causes[name] = root_cause(error)
        server.start()

    assert causes["theirs"] is None
    assert isinstance(causes["ours"], PublishError)
    payloads = [
        record.payload
        for record in records(server.bootstrap, topic)
        if "Event-Id" not in record.headers
    ]
    assert len(payloads) <= 10, "of Bytewax's 30"


def test_one_dataflow_into_both_brokers_has_one_pool(
    kafka_address: str, nats_server: NatsServer
) -> None:
    topic = new_topic(kafka_address)
    make_stream(nats_server.url, topic, topic)
    batch = envelopes(3_000, topic)
    seen: list[dict[str, Any]] = []

    def look(index: int) -> bool:
        """Holds the last batch back until both brokers have answered for the others."""
        assert shared_pool._shared.pool is not None
        seen.append(shared_pool._shared.pool.statistics())
        return index == 2_900 and seen[-1]["stored"] < 2 * 2_900

    flow = Dataflow("both")
    up = op.input("in", flow, Envelopes(batch, batch_size=100, before=look))
    joined: list[tuple[str, tuple[PublishResult, PublishResult]]] = []
    to_kafka = jop.publish("kafka", up, kafka(kafka_address, topics=(topic,)))
    to_jetstream = jop.publish("jetstream", up, jetstream(nats_server.url))
    both = op.join(
        "both",
        op.key_on("kafka-by-id", to_kafka.oks, lambda result: result.event_id),
        op.key_on("jetstream-by-id", to_jetstream.oks, lambda result: result.event_id),
    )
    op.output("joined", both, TestingSink(joined))

    run(flow)

    assert sorted(event_id for event_id, _ in joined) == sorted(each.event_id for each in batch)
    assert all(
        (first.broker, second.broker) == ("kafka", "jetstream") for _, (first, second) in joined
    )
    last = seen[-1]
    assert sorted(broker["broker"] for broker in last["brokers"]) == ["jetstream", "kafka"]
    assert last["ack_workers"] == 2 * (os.cpu_count() or 1)
    assert last["budget_messages"] == 16_000
    assert last["stored"] >= 2 * 2_900, "one count of both brokers' results"
    assert audit(kafka_address, topic, batch) == FLAWLESS


def test_bridge_to_jetstream_and_back_keeps_ids_keys_and_order(
    kafka_address: str, nats_server: NatsServer
) -> None:
    source, target = new_topic(kafka_address), new_topic(kafka_address)
    stream = f"BRIDGE-{target}"
    make_stream(nats_server.url, stream, "bridged")
    batch = [
        each._replace(event_type="made", headers={"a": "b"})
        for each in envelopes(2_000, source, aggregates=20)
    ]
    publish(kafka(kafka_address), *batch)

    there = Dataflow("there")
    read = jop.input("in", there, kafka(kafka_address), topics=source, tail=False)
    made = op.map("envelope", read.oks, lambda record: from_kafka(record, "bridged", own_id=True))
    jop.output("out", made, jetstream(nats_server.url))
    run(there)
    back = Dataflow("back")
    messages = jop.input("in", back, jetstream(nats_server.url), stream=stream, tail=False)
    again = op.map(
        "envelope", messages.oks, lambda message: from_jetstream(message, target, own_id=True)
    )
    jop.output("out", again, kafka(kafka_address))
    run(back)

    assert len(stored(nats_server.url, stream)) == len(batch)
    assert audit(kafka_address, target, batch) == FLAWLESS
    before = {
        record.headers["Event-Id"]: record._replace(offset=0)
        for record in records(kafka_address, source)
    }
    after = {
        record.headers["Event-Id"]: record._replace(offset=0)
        for record in records(kafka_address, target)
    }
    assert before == after


def test_kafka_input_resumes_after_the_last_commit(kafka_address: str, tmp_path: Path) -> None:
    topic = new_topic(kafka_address, partitions=2)
    publish(kafka(kafka_address), *envelopes(1_000, topic, aggregates=10))
    store = recovery_store(tmp_path / "store")

    def read() -> list[bytes]:
        found: list[Any] = []
        flow = Dataflow("reading")
        items = jop.input(
            "in", flow, kafka(kafka_address), topics=topic, tail=False, batch_size=100
        )
        op.output("out", items.oks, TestingSink(found))
        run(flow, store=store)
        return [record.value for record in found]

    first = read()
    publish(kafka(kafka_address), *envelopes(500, topic, first=1_000, aggregates=10))
    second = read()

    assert sorted(first, key=int) == [b"%d" % number for number in range(1_000)]
    assert sorted(second, key=int) == [b"%d" % number for number in range(1_000, 1_500)]


def test_flow_that_tails_a_topic_ends_cleanly_at_sigterm(kafka_address: str) -> None:
    """A process that SIGTERM stops while it tails a topic and publishes what it reads."""
    source, target = new_topic(kafka_address), new_topic(kafka_address)
    batch = envelopes(2_000, source)
    publish(kafka(kafka_address), *batch)
    program = f"""
import bytewax.operators as op, bytewax_jetstream.operators as jop
from bytewax.dataflow import Dataflow
from bytewax_jetstream import KafkaSettings
from bytewax_jetstream.bridge import from_kafka
from bytewax.testing import run_main
settings = KafkaSettings(brokers=({kafka_address!r},))
flow = Dataflow("tailing")
read = jop.input("in", flow, settings, topics={source!r})
out = op.map("e", read.oks, lambda record: from_kafka(record, {target!r}, own_id=True))
jop.output("out", out, settings)
run_main(flow)
"""
    child = subprocess.Popen([sys.executable, "-c", program])
    try:
        until(lambda: len(records(kafka_address, target)) == len(batch))
        child.terminate()
        assert child.wait(PATIENCE) == 0
    finally:
        child.kill()
        child.wait()
    assert audit(kafka_address, target, batch) == FLAWLESS


@pytest.mark.alone
def test_closed_publisher_leaves_no_thread_of_the_library(
    kafka_address: str,
) -> None:
    topic = new_topic(kafka_address)
    process = psutil.Process()
    settings = kafka(kafka_address, topics=(topic,))
    publisher = KafkaPublisher(settings)
    before = process.num_threads()
    with AckPool(settings.pool) as pool:
        settle(pool.lane(publisher, name="lane"), envelopes(10, topic))
        assert (
            process.num_threads() > before + 4
        )  # ours, and those of a producer and an admin client

    until(lambda: process.num_threads() <= before)
    assert publisher.statistics()["queued"] == 0

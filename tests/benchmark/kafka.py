"""Speed into Kafka, beside Bytewax's own sink and a loop written by hand; prints a table.

Every figure comes from a child process of its own, on one real broker; strategies take turns within a
round, so that what the machine does to one it does to the others. Ratios are medians of the rounds' own.

    python -m tests.benchmark.kafka [--rounds 5] [--messages 50000] [--json FILE]
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

import bytewax_jetstream.operators as jop
from bytewax_jetstream import AckPool, Envelope, KafkaSettings
from bytewax_jetstream.kafka.publisher import KafkaPublisher
from bytewax_jetstream.testing import KafkaServer

PAYLOAD = b"x" * 128
TOPIC = "bench"
PARTITIONS = 4
BATCHES = (1, 10, 100, 1000)
SLOW = {"sink-1": 5_000, "sink-10": 20_000}
"""Strategies that would take minutes for what others do in a second."""
BARRIERS = 200


def envelope(run: str, at: int) -> Envelope:
    return Envelope(TOPIC, PAYLOAD, f"{run}-{at}", f"aggregate-{at % 1000}")


def to_message(item: Envelope) -> KafkaSinkMessage[bytes, bytes]:
    return KafkaSinkMessage(
        key=str(item.aggregate_id).encode(), value=item.payload, headers=[("Event-Id", item.event_id.encode())]
    )


class _Part(StatefulSourcePartition[Envelope, int]):
    def __init__(self, run: str, messages: int, batch: int) -> None:
        self.run, self.messages, self.batch, self.at = run, messages, batch, 0
        self.started = 0.0

    def next_batch(self) -> Iterable[Envelope]:
        self.started = self.started or time.perf_counter()
        if self.at >= self.messages:
            raise StopIteration
        first, self.at = self.at, min(self.at + self.batch, self.messages)
        return [envelope(self.run, at) for at in range(first, self.at)]

    def snapshot(self) -> int:
        return self.at


class _Input(FixedPartitionedSource[Envelope, int]):
    def __init__(self, run: str, messages: int, batch: int) -> None:
        self.part = _Part(run, messages, batch)

    def list_parts(self) -> list[str]:
        return ["all"]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _Part:
        return self.part


class _Count(DynamicSink[Any], StatelessSinkPartition[Any]):
    def __init__(self) -> None:
        self.items, self.last = 0, 0.0

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_Count":
        return self

    def write_batch(self, items: list[Any]) -> None:
        self.items += len(items)
        self.last = time.perf_counter()


def flow(address: str, run: str, messages: int, batch: int) -> float:
    """A dataflow with `jop.publish`, from the first item read to the last result passed on."""
    dataflow, source, count = Dataflow("bench"), _Input(run, messages, batch), _Count()
    out = jop.publish("publish", op.input("in", dataflow, source), KafkaSettings(brokers=(address,), topics=(TOPIC,)))
    op.output("results", out.oks, count)
    run_main(dataflow, epoch_interval=timedelta(seconds=1))
    assert count.items == messages, f"{count.items} of {messages} results"
    return count.last - source.part.started


def sink(address: str, run: str, messages: int, batch: int) -> float:
    """The same dataflow with Bytewax's own sink, until all of it is flushed."""
    dataflow, source = Dataflow("bench"), _Input(run, messages, batch)
    made = op.map("to-message", op.input("in", dataflow, source), to_message)
    op.output("out", made, KafkaSink([address], TOPIC))
    run_main(dataflow, epoch_interval=timedelta(seconds=1))
    return time.perf_counter() - source.part.started


def loop(address: str, run: str, messages: int, batch: int) -> float:
    """A loop as one writes it by hand: the same headers, and one result kept for each message."""
    config = {"bootstrap.servers": address, "enable.idempotence": True, "linger.ms": 5}
    producer = Producer(config)
    results: list[tuple[str, int, int]] = []
    problems: list[str] = []

    def reporter(event_id: str) -> Any:
        def report(error: Any, message: Any) -> None:
            if error is not None:
                problems.append(str(error))
            else:
                results.append((event_id, message.partition(), message.offset()))

        return report

    producer.list_topics(timeout=10)
    start = time.perf_counter()
    for first in range(0, messages, batch):
        for at in range(first, min(first + batch, messages)):
            item = envelope(run, at)
            while True:
                try:
                    producer.produce(
                        item.topic, item.payload, str(item.aggregate_id).encode(), on_delivery=reporter(item.event_id),
                        headers=[("Event-Id", item.event_id.encode())],
                    )  # fmt: skip
                    break
                except BufferError:
                    producer.poll(0.01)
        producer.poll(0)
    producer.flush(60)
    assert len(results) == messages, problems[:1]
    return time.perf_counter() - start


def barrier(address: str, run: str, messages: int, linger_ms: int) -> float:
    """One message submitted and waited for, again and again; the median wait, in seconds."""
    settings = KafkaSettings(brokers=(address,), topics=(TOPIC,), linger=linger_ms / 1000)
    waits = []
    with AckPool(settings.pool) as pool:
        lane = pool.lane(KafkaPublisher(settings), name="barrier")
        for at in range(BARRIERS):
            start = time.perf_counter()
            lane.submit([envelope(run, at)])
            lane.flush()
            waits.append(time.perf_counter() - start)
    return statistics.median(waits)


STRATEGIES = {"flow": flow, "sink": sink, "loop": loop, "barrier": barrier}


def measure(strategy: str, address: str, run: str, messages: int) -> dict[str, Any]:
    name, number = strategy.split("-")
    messages = min(messages, SLOW.get(strategy, messages))
    seconds = STRATEGIES[name](address, run, messages, int(number))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "strategy": strategy,
        "messages": messages,
        "seconds": seconds,
        "msgs_per_s": round(messages / seconds),
        "client_cpu_us_per_msg": round((usage.ru_utime + usage.ru_stime) / messages * 1e6, 2),
    }


def child(strategy: str, address: str, run: str, messages: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmark.kafka", "--child", strategy, "--address", address, "--run", run]
    done = subprocess.run([*command, "--messages", str(messages)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--only", default="flow,sink,loop,barrier")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child")
    parser.add_argument("--address", default="")
    parser.add_argument("--run", default="")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments.address, arguments.run, arguments.messages)))
        return
    only = arguments.only.split(",")
    strategies = [f"{name}-{batch}" for batch in BATCHES for name in ("flow", "sink") if name in only]
    strategies += ["loop-1000"] if "loop" in only else []
    strategies += ["barrier-5", "barrier-500"] if "barrier" in only else []
    rounds: list[dict[str, Any]] = []
    with KafkaServer() as server:
        admin = AdminClient({"bootstrap.servers": server.bootstrap})
        admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])[TOPIC].result(30)
        child("loop-1000", server.bootstrap, "warm", 200_000)  # a cold JVM would be slow for the first strategy only
        for number in range(arguments.rounds):
            for strategy in strategies:
                run = f"{os.getpid()}-{number}-{strategy}"
                rounds.append({"round": number, **child(strategy, server.bootstrap, run, arguments.messages)})
                print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    if arguments.json:
        arguments.json.write_text(json.dumps(rounds, indent=1))
    print(table(rounds))


def table(rounds: list[dict[str, Any]]) -> str:
    def of(strategy: str, figure: str = "msgs_per_s") -> list[float]:
        return [entry[figure] for entry in rounds if entry["strategy"] == strategy]

    def ratio(own: list[float], other: list[float]) -> str:
        return f"{statistics.median(a / b for a, b in zip(own, other, strict=True)):.2f}" if other else "-"

    lines = ["| strategy | msg/s, median (min-max) | x Bytewax's sink | x loop | client CPU us/msg |"]
    lines.append("|---|---|---|---|---|")
    for strategy in dict.fromkeys(entry["strategy"] for entry in rounds):
        name, _, number = strategy.partition("-")
        if name == "barrier":
            waits = [1000 * seconds for seconds in of(strategy, "seconds")]
            shown = f"{statistics.median(waits):.2f} ms ({min(waits):.2f}-{max(waits):.2f})"
            lines.append(f"| barrier, one message, linger {number} ms | {shown} | - | - | - |")
            continue
        speeds = of(strategy)
        spread = f"{statistics.median(speeds):,.0f} ({min(speeds):,.0f}-{max(speeds):,.0f})"
        against = [ratio(speeds, of(f"sink-{number}")), ratio(speeds, of("loop-1000"))]
        cpu = statistics.median(of(strategy, "client_cpu_us_per_msg"))
        lines.append(f"| {strategy} | {spread} | {' | '.join(against)} | {cpu:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

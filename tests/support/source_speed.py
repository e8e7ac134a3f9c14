"""Measures how fast a dataflow reads a Kafka topic, beside Bytewax's own source.

    python -m tests.support.source_speed [MESSAGES [ROUNDS]]

Topics of 1, 12 and 200 partitions are filled once. Then both sources read them to the end in turn,
each time in a process of its own, and the order of the two changes from round to round. A line a
topic: medians of messages a second, of client CPU a message, and of the most threads and memory.
"""

import json
import resource
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import bytewax.operators as op
import psutil
from bytewax.connectors.kafka import KafkaSource as BytewaxSource
from bytewax.dataflow import Dataflow
from bytewax.inputs import Source
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import cluster_main
from confluent_kafka import Producer

from bytewax_jetstream import KafkaSettings
from bytewax_jetstream.kafka.source import KafkaSource
from bytewax_jetstream.testing import KafkaServer
from tests.support.kafka import new_topic

__all__ = ["main"]

PARTITIONS = (1, 12, 200)
PAYLOAD = b"x" * 200
LOOK_SECONDS = 0.02


class _Counter(StatelessSinkPartition[Any]):
    def __init__(self, counts: list[int]) -> None:
        self._counts = counts

    def write_batch(self, items: list[Any]) -> None:
        self._counts.append(len(items))


class _Sink(DynamicSink[Any]):
    def __init__(self) -> None:
        self.counts: list[int] = []

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Counter:
        return _Counter(self.counts)


def _source(name: str, address: str, topic: str) -> Source[Any]:
    if name == "bytewax":
        return BytewaxSource([address], [topic], tail=False)
    return KafkaSource(KafkaSettings(brokers=(address,)), topics=topic, tail=False)


def _read(name: str, address: str, topic: str) -> None:
    """Read a topic to its end in this process; prints what it took."""
    sink, flow, threads = _Sink(), Dataflow("read"), [0]
    op.output("count", op.input("topic", flow, _source(name, address, topic)), sink)
    ended, process = threading.Event(), psutil.Process()

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            threads.append(process.num_threads())

    looking = threading.Thread(target=look)
    looking.start()
    cpu, began = time.process_time(), time.perf_counter()
    cluster_main(flow, [], 0)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    ended.set()
    looking.join()
    count = sum(sink.counts)
    print(
        json.dumps(
            {
                "count": count,
                "rate": count / seconds,
                "cpu_us": cpu / count * 1e6,
                "threads": max(threads),
                "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


def _fill(address: str, partitions: int, messages: int) -> str:
    topic = new_topic(address, partitions=partitions)
    producer = Producer(
        {"bootstrap.servers": address, "queue.buffering.max.messages": messages + 1}
    )
    for number in range(messages):
        producer.produce(
            topic,
            PAYLOAD,
            partition=number % partitions,
            headers=[("Event-Id", b"%d" % number)],
        )
    assert producer.flush(120) == 0
    return topic


def main(messages: int = 200_000, rounds: int = 5) -> None:
    """Measure, and print a line for each topic."""
    print(f"{messages:,} messages, {rounds} rounds; ours / Bytewax's")
    with KafkaServer() as kafka:
        for partitions in PARTITIONS:
            topic = _fill(kafka.bootstrap, partitions, messages)
            found: dict[str, list[dict[str, float]]] = defaultdict(list)
            for number in range(rounds):
                for name in ("ours", "bytewax") if number % 2 else ("bytewax", "ours"):
                    command = [sys.executable, "-m", __spec__.name, name, kafka.bootstrap, topic]
                    root = Path(__file__).parents[2]
                    done = subprocess.run(
                        command, cwd=root, capture_output=True, text=True, check=True, timeout=300
                    )
                    result = json.loads(done.stdout)
                    assert result["count"] == messages, result
                    found[name].append(result)

            def both(key: str, of: dict[str, list[dict[str, float]]] = found) -> str:
                ours, theirs = (median(r[key] for r in of[name]) for name in ("ours", "bytewax"))
                return f"{ours:,.0f} / {theirs:,.0f}"

            pairs = zip(found["ours"], found["bytewax"], strict=True)
            ratio = median(ours["rate"] / theirs["rate"] for ours, theirs in pairs)
            cpu = [median(r["cpu_us"] for r in found[name]) for name in ("ours", "bytewax")]
            print(
                f"{partitions:3} partitions: {both('rate')} a second, ratio {ratio:.2f}; "
                f"CPU {cpu[0]:.1f} / {cpu[1]:.1f} us; threads {both('threads')}; "
                f"{both('mb')} MB",
                flush=True,
            )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        _read(*sys.argv[1:])
    else:
        main(*map(int, sys.argv[1:]))

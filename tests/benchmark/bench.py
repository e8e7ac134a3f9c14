"""Speed and memory of a whole dataflow, beside what users have today; `make bench` prints the table.

Every figure comes from a child process of its own, on one nats-server with file storage; strategies
take turns within a round, so that what the machine does to one it does to the others. Ratios are
medians of the rounds' own ratios.

    python -m tests.benchmark.bench [--rounds 5] [--messages 50000] [--json FILE]
"""

import argparse
import asyncio
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
import nats
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

import bytewax_jetstream.operators as jop
from bytewax_jetstream import Envelope, JetStreamSettings
from bytewax_jetstream.testing import NatsServer

PAYLOAD = b"x" * 128
STREAM = "BENCH"
SYNC_MESSAGES = 5_000


def envelope(run: str, at: int) -> Envelope:
    return Envelope(f"bench.{at % 5}", PAYLOAD, f"{run}-{at}", f"aggregate-{at % 1000}")


# What is measured, each in a process of its own


async def sync(url: str, run: str, messages: int) -> float:
    """nats-py's `js.publish`, awaited one by one."""
    async with await nats.connect(url) as client:
        js = client.jetstream()
        await js.publish("bench.0", PAYLOAD)
        start = time.perf_counter()
        for at in range(messages):
            item = envelope(run, at)
            await js.publish(item.topic, item.payload, headers={"Nats-Msg-Id": item.event_id})
        return time.perf_counter() - start


async def publish_async(url: str, run: str, messages: int) -> float:
    """nats-py's `publish_async`, as documented."""
    async with await nats.connect(url) as client:
        js = client.jetstream(publish_async_max_pending=4000)
        await js.publish("bench.0", PAYLOAD)
        start = time.perf_counter()
        for at in range(messages):
            item = envelope(run, at)
            await js.publish_async(item.topic, item.payload, headers={"Nats-Msg-Id": item.event_id})
        await asyncio.wait_for(js.publish_async_completed(), 60)
        return time.perf_counter() - start


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


def flow(url: str, run: str, messages: int, batch: int = 100) -> float:
    """A dataflow with `jop.publish`, from the first item read to the last result passed on."""
    dataflow, source, count = Dataflow("bench"), _Input(run, messages, batch), _Count()
    out = jop.publish("publish", op.input("in", dataflow, source), JetStreamSettings(servers=(url,)))
    op.output("results", out.oks, count)
    run_main(dataflow, epoch_interval=timedelta(seconds=1))
    assert count.items == messages, f"{count.items} of {messages} results"
    return count.last - source.part.started


def source(url: str, messages: int) -> float:
    """`jop.input` in a dataflow, reading the stream."""
    dataflow, count = Dataflow("bench"), _Count()
    settings = JetStreamSettings(servers=(url,))
    items = jop.input("in", dataflow, settings, stream=STREAM, tail=False)
    op.output("count", items.oks, count)
    start = time.perf_counter()
    run_main(dataflow)
    assert count.items >= messages, f"{count.items} of {messages} messages"
    return (count.last - start) * messages / count.items


async def pull(url: str, messages: int) -> float:
    """A pull loop as one writes it by hand on nats-py."""
    async with await nats.connect(url) as client:
        js = client.jetstream()
        sub = await js.pull_subscribe("", stream=STREAM, config=ConsumerConfig(ack_policy=AckPolicy.NONE))
        start = time.perf_counter()
        read = 0
        while read < messages:
            fetched = await sub.fetch(1000, timeout=5)
            read += len(fetched)
        return time.perf_counter() - start


def measure(strategy: str, url: str, run: str, messages: int) -> dict[str, Any]:
    match strategy:
        case "sync":
            messages = min(messages, SYNC_MESSAGES)
            seconds = asyncio.run(sync(url, run, messages))
        case "async":
            seconds = asyncio.run(publish_async(url, run, messages))
        case "pull":
            seconds = asyncio.run(pull(url, messages))
        case "source":
            seconds = source(url, messages)
        case _:
            seconds = flow(url, run, messages, int(strategy.removeprefix("flow-")))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "strategy": strategy,
        "messages": messages,
        "msgs_per_s": round(messages / seconds),
        "client_cpu_us_per_msg": round((usage.ru_utime + usage.ru_stime) / messages * 1e6, 2),
        "rss_peak_mb": round(usage.ru_maxrss / 1024, 1),
    }


# The table


def child(strategy: str, url: str, run: str, messages: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmark.bench", "--child", strategy, "--url", url, "--run", run]
    done = subprocess.run([*command, "--messages", str(messages)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


async def make_stream(url: str) -> None:
    async with await nats.connect(url) as client:
        await client.jetstream().add_stream(StreamConfig(name=STREAM, subjects=["bench.>"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child")
    parser.add_argument("--url", default="")
    parser.add_argument("--run", default="")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments.url, arguments.run, arguments.messages)))
        return
    rounds: list[dict[str, Any]] = []
    with NatsServer() as server:
        asyncio.run(make_stream(server.url))
        for number in range(arguments.rounds):
            for strategy in ("sync", "async", "flow-100", "flow-1000", "flow-10", "flow-1", "pull", "source"):
                run = f"{os.getpid()}-{number}-{strategy}"
                rounds.append({"round": number, **child(strategy, server.url, run, arguments.messages)})
                print(".", end="", flush=True, file=sys.stderr)
        memory = [child("flow-100", server.url, f"memory-{size}", size) for size in (100_000, 1_000_000)]
    print(file=sys.stderr)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rounds": rounds, "memory": memory}, indent=1))
    print(table(rounds))
    grown = memory[1]["rss_peak_mb"] - memory[0]["rss_peak_mb"]
    print(f"\nPeak RSS of a flow: {memory[0]['rss_peak_mb']} MB at 100,000 messages, {grown:+.1f} MB at 1,000,000")


def table(rounds: list[dict[str, Any]]) -> str:
    def of(strategy: str, figure: str = "msgs_per_s") -> list[float]:
        return [entry[figure] for entry in rounds if entry["strategy"] == strategy]

    lines = ["| strategy | msg/s, median (min-max) | x sync | x async | client CPU us/msg |", "|---|---|---|---|---|"]
    for strategy in dict.fromkeys(entry["strategy"] for entry in rounds):
        speeds = of(strategy)
        ratios = [
            statistics.median(own / other for own, other in zip(speeds, of(base), strict=True))
            for base in (("pull", "pull") if strategy == "source" else ("sync", "async"))
        ]
        shown = ["-", "-"] if strategy == "pull" else [f"{ratio:.2f}" for ratio in ratios]
        if strategy == "source":
            shown = [f"{ratios[0]:.2f} x pull", "-"]
        spread = f"{statistics.median(speeds):,.0f} ({min(speeds):,.0f}-{max(speeds):,.0f})"
        cpu = statistics.median(of(strategy, "client_cpu_us_per_msg"))
        lines.append(f"| {strategy} | {spread} | {shown[0]} | {shown[1]} | {cpu:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

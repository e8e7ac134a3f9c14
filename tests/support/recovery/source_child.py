"""A dataflow from a stream into a file, to be killed.

It is started as `python -m tests.support.recovery.source_child ORDERS`.
The file gets what an epoch read when the epoch ends, so a message that the source lets go of
earlier is missing in it."""

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, Self

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from bytewax_jetstream.jetstream.message import JetStreamMessage, UnreadableMessage
from bytewax_jetstream.jetstream.source.source import JetStreamSource
from tests.support.dataflows import run
from tests.support.reading import settings

PARTS = 2


class SourceOrders(NamedTuple):
    """What one run of the child does."""

    url: str
    stream: str
    subjects: list[str]
    durable: str | None
    workers: int
    store: str
    file: str

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(*json.loads(text))

    def to_json(self) -> str:
        return json.dumps(self)


class Lines(FixedPartitionedSink[str, None]):
    """Appends lines to a file, those of an epoch in one write at its end."""

    def __init__(self, path: str) -> None:
        self._path = path

    def list_parts(self) -> list[str]:
        return [f"part-{number}" for number in range(PARTS)]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "_Part":
        return _Part(self._path)


class _Part(StatefulSinkPartition[str, None]):
    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._lines: list[str] = []

    def write_batch(self, values: list[str]) -> None:
        self._lines += values

    def snapshot(self) -> None:
        os.write(self._file, "".join(self._lines).encode())
        self._lines = []

    def close(self) -> None:
        os.close(self._file)


def line(item: JetStreamMessage | UnreadableMessage) -> tuple[str, str]:
    assert isinstance(item, JetStreamMessage)
    time.sleep(0.0005)  # the work a message makes, so that an epoch has several batches
    return item.subject, f"{item.subject} {item.sequence}\n"


def main(orders: SourceOrders) -> None:
    source = JetStreamSource(
        settings(orders.url),
        streams=orders.stream,
        subjects=orders.subjects,
        durable=orders.durable,
        tail=False,
        batch_size=10,
        ack_wait=timedelta(seconds=5),
    )
    flow = Dataflow("flow")
    op.output("out", op.map("line", op.input("in", flow, source), line), Lines(orders.file))
    run(flow, workers=orders.workers, store=Path(orders.store), epoch=timedelta(milliseconds=50))


if __name__ == "__main__":
    main(SourceOrders.from_json(sys.argv[1]))

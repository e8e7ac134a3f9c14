"""A dataflow in a process of its own, which an environment variable tells what to do.

It is started as `python -m bytewax.run tests.support.child:flow`.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import bytewax.operators as op
import psutil
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, Source, StatelessSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition

import bytewax_jetstream.operators as jop
from bytewax_jetstream.drain import drain_on_signal
from bytewax_jetstream.envelope import Envelope, PublishResult
from bytewax_jetstream.settings import JetStreamSettings, PoolSettings
from bytewax_jetstream.sinks import JetStreamSink
from tests.support.dataflows import Envelopes
from tests.support.streams import envelopes

__all__ = ["FLOW", "TOLD", "Child", "Told"]

FLOW = "tests.support.child:flow"

TOLD = "TEST_CHILD"
"""The environment variable."""
TOPIC = "child"
PARTS = 4
AGGREGATES = 12 * PARTS
"""A multiple of the parts, so that each aggregate is read by one part: two parts of a source keep
no order between them.
"""
NAP = timedelta(milliseconds=5)


class Told(NamedTuple):
    """What a child is told, and the folder in which it writes down what it does."""

    url: str
    folder: str
    messages: int = 2_000
    source: str = "fixed"
    """`fixed`: has partitions and state; `dynamic`: has neither; `sleeping`: has, and sleeps after
    its first batch.
    """
    step: str = "publish"
    """`publish`, or `sink` for a `JetStreamSink`, which gives no results."""
    drain_timeout: float = 20
    pool: dict[str, Any] | None = None

    @property
    def envelopes(self) -> list[Envelope]:
        return envelopes(self.messages, TOPIC, aggregates=AGGREGATES)

    @property
    def emitted(self) -> list[str]:
        """Event ids that came from the sources, in all runs."""
        return self._lines("emitted")

    @property
    def results(self) -> list[list[str]]:
        """Event id, outcome and duplicate flag of each result, in all runs."""
        return [line.split() for line in self._lines("results")]

    def write(self, name: str, lines: Sequence[str]) -> None:
        # Unbuffered and in one piece, so that the lines of two workers do not mix and none is lost
        # to a signal.
        with Path(self.folder, name).open("ab", buffering=0) as file:
            file.write("".join(f"{line}\n" for line in lines).encode())

    @property
    def environment(self) -> dict[str, str]:
        """What to start a child with."""
        return {TOLD: json.dumps(self._asdict())}

    def _lines(self, name: str) -> list[str]:
        path = Path(self.folder, name)
        return path.read_text().splitlines() if path.exists() else []


class Child:
    """A running child; killed at the end of `with` unless it has ended."""

    def __init__(
        self, told: Told, workers: int, store: Path | None, before: tuple[str, ...]
    ) -> None:
        recovery = ["-r", str(store), "-s", "1", "-b", "0"] if store is not None else []
        self._log = Path(told.folder, "log")
        self._inside = bool(before)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *before,
                    sys.executable,
                    "-m",
                    "bytewax.run",
                    "tests.support.child:flow",
                    f"-w{workers}",
                    *recovery,
                ],
                env={**os.environ, TOLD: json.dumps(told._asdict())},
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        """What it and the children before it logged."""
        return self._log.read_text()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: int) -> None:
        process = psutil.Process(self._process.pid)
        (process.children()[0] if self._inside else process).send_signal(number)

    def wait(self, seconds: float) -> int:
        """Its exit code; it must end within that time."""
        return self._process.wait(seconds)

    @classmethod
    @contextmanager
    def of(
        cls,
        told: Told,
        *,
        workers: int = 1,
        store: Path | None = None,
        before: tuple[str, ...] = (),
    ) -> Iterator["Child"]:
        """Start a child.

        :arg before: Command that starts it as its own child.
        """
        child = cls(told, workers, store, before)
        try:
            yield child
        finally:
            child._process.kill()
            child._process.wait()


class _Dynamic(DynamicSource[Envelope]):
    def __init__(self, told: Told) -> None:
        self._told = told

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_DynamicPart":
        return _DynamicPart(self._told.envelopes[worker_index::worker_count])


class _DynamicPart(StatelessSourcePartition[Envelope]):
    def __init__(self, left: list[Envelope]) -> None:
        self._left = left

    def next_batch(self) -> list[Envelope]:
        if not self._left:
            raise StopIteration
        batch, self._left = self._left[:10], self._left[10:]
        return batch

    def next_awake(self) -> datetime | None:
        return datetime.now(UTC) + NAP


class _Results(DynamicSink[PublishResult]):
    def __init__(self, told: Told) -> None:
        self._told = told

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_ResultsPart":
        return _ResultsPart(self._told)


class _ResultsPart(StatelessSinkPartition[PublishResult]):
    def __init__(self, told: Told) -> None:
        self._told = told

    def write_batch(self, items: list[PublishResult]) -> None:
        self._told.write(
            "results",
            [f"{result.event_id} {result.outcome} {result.duplicate}" for result in items],
        )


def _source(told: Told) -> Source[Envelope]:
    if told.source == "dynamic":
        return _Dynamic(told)
    parts = [told.envelopes[part::PARTS] for part in range(PARTS)]
    return Envelopes(*parts, pause=timedelta(hours=1) if told.source == "sleeping" else NAP)


def _flow(told: Told) -> Dataflow:
    settings = JetStreamSettings(servers=(told.url,), pool=PoolSettings(**(told.pool or {})))

    def note(batch: list[Envelope]) -> list[Envelope]:
        told.write("emitted", [envelope.event_id for envelope in batch])
        return batch

    flow = Dataflow("child")
    up = op.input("in", flow, drain_on_signal(_source(told), timeout=told.drain_timeout))
    noted = op.flat_map_batch("note", up, note)
    if told.step == "sink":
        op.output("sink", noted, JetStreamSink(settings))
    else:
        op.output("results", jop.publish("publish", noted, settings).oks, _Results(told))
    return flow


if TOLD in os.environ:
    logging.basicConfig(level=logging.INFO)
    flow = _flow(Told(**json.loads(os.environ[TOLD])))

"""A dataflow for `bytewax-jetstream run`, with sources that know nothing of drains.

An environment variable tells it what to do.
"""

import ctypes
import itertools
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import (
    DynamicSource,
    FixedPartitionedSource,
    Source,
    StatefulSourcePartition,
    StatelessSourcePartition,
)
from bytewax.testing import TestingSink, TestingSource

import bytewax_jetstream.operators as jop
from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.settings import BrokerSettings
from tests.support.lanes import jetstream, kafka

__all__ = ["FLOW", "OPERATED", "Operated"]

OPERATED = "TEST_OPERATED"
"""The environment variable."""
FLOW = "tests.support.operated:flow"


class Operated(NamedTuple):
    """What the dataflow does, and the folder in which it writes down what it has emitted."""

    folder: str
    address: str = ""
    """Of the broker; without one, nothing is published."""
    broker: str = "jetstream"
    topic: str = "operated"
    settings: dict[str, Any] = {}  # noqa: RUF012  # it is only read
    source: str = "testing"
    """`testing`: Bytewax's own `TestingSource`; `dynamic`: without partitions; `fixed`: with one
    partition, so that other workers and processes have none.
    """
    items: int | None = None
    """How many items come; None: it goes on."""
    nap: float = 0.005
    size: int = 0
    """Bytes by which a payload is longer than its number."""
    step: str = "output"
    """`output` or `publish`, which gives results."""
    trouble: str = ""
    """What happens at item 10: `raises`, `warns`, `hangs`, `hangs in C`."""

    @property
    def environment(self) -> dict[str, str]:
        """What to start it with."""
        return {OPERATED: json.dumps(self._asdict())}

    @property
    def emitted(self) -> list[int]:
        """What has come from the source, in all runs."""
        path = Path(self.folder, "emitted")
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def numbers(self) -> Iterator[int]:
        """What the source emits."""
        numbers = itertools.count() if self.items is None else range(self.items)
        for number in numbers:
            time.sleep(self.nap)
            yield number


class _Fixed(FixedPartitionedSource[int, int]):
    def __init__(self, told: Operated) -> None:
        self._told = told

    def list_parts(self) -> list[str]:
        return ["only"]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> "_FixedPart":
        return _FixedPart(self._told, resume_state or 0)


class _FixedPart(StatefulSourcePartition[int, int]):
    def __init__(self, told: Operated, number: int) -> None:
        self._told, self._number = told, number

    def next_batch(self) -> Iterable[int]:
        if self._told.items is not None and self._number >= self._told.items:
            raise StopIteration
        self._number += 1
        return [self._number - 1]

    def next_awake(self) -> datetime | None:
        if not self._number:
            return None
        return datetime.now(UTC) + timedelta(seconds=self._told.nap)

    def snapshot(self) -> int:
        return self._number


class _Dynamic(DynamicSource[int]):
    def __init__(self, told: Operated) -> None:
        self._told = told

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_DynamicPart":
        return _DynamicPart(self._told, worker_index, worker_count)


class _DynamicPart(StatelessSourcePartition[int]):
    def __init__(self, told: Operated, worker: int, workers: int) -> None:
        self._numbers = itertools.islice(told.numbers(), worker, None, workers)

    def next_batch(self) -> Iterable[int]:
        return [next(self._numbers)]


def _source(told: Operated) -> Source[int]:
    match told.source:
        case "testing":
            return TestingSource(told.numbers())
        case "dynamic":
            return _Dynamic(told)
        case _:
            return _Fixed(told)


def _settings(told: Operated) -> BrokerSettings:
    if told.broker == "kafka":
        return kafka(told.address, **told.settings)
    return jetstream(told.address, **told.settings)


def _make(told: Operated) -> Dataflow:
    def note(number: int) -> int:
        with Path(told.folder, "emitted").open("ab", buffering=0) as file:
            file.write(f"{number}\n".encode())
        if number == 10:
            _trouble(told.trouble)
        return number

    def envelope(number: int) -> Envelope:
        return Envelope(told.topic, str(number).encode().rjust(told.size), f"e-{number}", "all")

    flow = Dataflow("operated")
    noted = op.map("note", op.input("in", flow, _source(told)), note)
    if not told.address:
        op.output("out", noted, TestingSink([]))
        return flow
    up = op.map("envelope", noted, envelope)
    if told.step == "output":
        jop.output("publish", up, _settings(told))
    else:
        op.output("results", jop.publish("publish", up, _settings(told)).oks, TestingSink([]))
    return flow


def _trouble(kind: str) -> None:
    match kind:
        case "raises":
            raise ValueError("item 10\nis wrong")
        case "warns":
            warnings.warn("item 10\nis odd", stacklevel=1)
            threading.Thread(target=lambda: [][10], name="odd").start()
            sys.stderr.write("to stderr\n")
            raise ValueError("item 10\nis wrong")
        case "hangs":
            while True:
                time.sleep(60)
        case "hangs in C":
            # A lock that this thread holds already: a wait that no signal ends.
            library, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
            library.pthread_mutex_lock(lock)
            library.pthread_mutex_lock(lock)


if OPERATED in os.environ:
    flow = _make(Operated(**json.loads(os.environ[OPERATED])))

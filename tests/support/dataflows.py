"""Dataflows that run in this process, and a resumable source of envelopes for them."""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, Source, StatefulSourcePartition
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, cluster_main, run_main

import bytewax_jetstream.operators as jop
from bytewax_jetstream.envelope import Checkpoint, Envelope, PublishResult
from bytewax_jetstream.settings import BrokerSettings

__all__ = [
    "CrashError",
    "Envelopes",
    "Ledger",
    "Publishing",
    "by_aggregate",
    "publishing",
    "recovery_store",
    "root_cause",
    "run",
]

EPOCH = timedelta(seconds=0.05)


class Envelopes(FixedPartitionedSource[Envelope, int]):
    """Each list of envelopes is a partition, which resumes at the envelope it had come to.

    :arg batch_size: Envelopes a call.
    :arg pause: Between two calls.
    :arg before: Called with the index of the first envelope of each batch; may raise, and if its
        answer is true there is nothing yet, and it is called again soon.
    """

    def __init__(
        self,
        *parts: Sequence[Envelope],
        batch_size: int = 10,
        pause: timedelta = timedelta(0),
        before: Callable[[int], object] = lambda index: None,
    ) -> None:
        self._parts = dict(
            zip((f"part-{number}" for number in range(len(parts))), parts, strict=True)
        )
        self._batch_size = batch_size
        self._pause = pause
        self._before = before

    def list_parts(self) -> list[str]:
        return list(self._parts)

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> "_Part":
        return _Part(
            self._parts[for_part], resume_state or 0, self._batch_size, self._pause, self._before
        )


class _Part(StatefulSourcePartition[Envelope, int]):
    def __init__(
        self,
        envelopes: Sequence[Envelope],
        index: int,
        batch_size: int,
        pause: timedelta,
        before: Callable[[int], object],
    ) -> None:
        self._envelopes, self._index, self._batch_size, self._pause = (
            envelopes,
            index,
            batch_size,
            pause,
        )
        self._before = before
        self._awake: datetime | None = None

    def next_batch(self) -> Sequence[Envelope]:
        if self._before(self._index):
            self._awake = datetime.now(UTC) + timedelta(milliseconds=5)
            return []
        if self._index >= len(self._envelopes):
            raise StopIteration
        batch = self._envelopes[self._index : self._index + self._batch_size]
        self._index += len(batch)
        self._awake = datetime.now(UTC) + self._pause if self._pause else None
        return batch

    def next_awake(self) -> datetime | None:
        return self._awake

    def snapshot(self) -> int:
        return self._index


def by_aggregate(batch: Sequence[Envelope], parts: int = 8) -> list[list[Envelope]]:
    """Numbered envelopes, divided by aggregate so that the order of each is kept."""
    return [
        [each for each in batch if int(str(each.aggregate_id)[2:]) % parts == part]
        for part in range(parts)
    ]


class Publishing(NamedTuple):
    """A dataflow with one publish step, and what came out of that in all of its runs."""

    flow: Dataflow
    oks: list[PublishResult]
    errs: list[PublishResult]
    checkpoints: list[Checkpoint]


def publishing(source: Source[Envelope], settings: BrokerSettings) -> Publishing:
    """Publish what a source yields."""
    flow = Dataflow("flow")
    made = Publishing(flow, [], [], [])
    out = jop.publish("publish", op.input("in", flow, source), settings)
    op.output("oks", out.oks, TestingSink(made.oks))
    op.output("errs", out.errs, TestingSink(made.errs))
    op.output("checkpoints", out.checkpoints, TestingSink(made.checkpoints))
    return made


def recovery_store(path: Path, parts: int = 1) -> Path:
    """An empty recovery directory."""
    path.mkdir()
    init_db_dir(path, parts)
    return path


def run(
    flow: Dataflow, *, workers: int = 1, store: Path | None = None, epoch: timedelta = EPOCH
) -> None:
    """Run a dataflow to its end."""
    recovery = RecoveryConfig(str(store), backup_interval=timedelta(0)) if store else None
    if workers == 1:  # on this thread, as `python -m bytewax.run` does it
        run_main(flow, epoch_interval=epoch, recovery_config=recovery)
    else:
        cluster_main(
            flow,
            [],
            0,
            epoch_interval=epoch,
            recovery_config=recovery,
            worker_count_per_proc=workers,
        )


class Ledger(FixedPartitionedSink[Any, dict[Any, int]]):
    """Counts what it is given, as far as epochs were committed: a crash takes it back to the last
    committed one.
    """

    def __init__(self) -> None:
        self.counts: dict[Any, int] = {}
        """After a run that ended well."""

    def list_parts(self) -> list[str]:
        return ["ledger"]

    def build_part(
        self, step_id: str, for_part: str, resume_state: dict[Any, int] | None
    ) -> "_LedgerPart":
        return _LedgerPart(self, resume_state or {})


class _LedgerPart(StatefulSinkPartition[Any, dict[Any, int]]):
    def __init__(self, ledger: Ledger, counts: dict[Any, int]) -> None:
        self._ledger = ledger
        self._counts = Counter(counts)

    def write_batch(self, values: list[Any]) -> None:
        self._counts.update(values)

    def snapshot(self) -> dict[Any, int]:
        return dict(self._counts)

    def close(self) -> None:
        self._ledger.counts = dict(self._counts)


class CrashError(Exception):
    """Ends a run on purpose."""


def root_cause(error: BaseException) -> BaseException:
    """What an error of the engine came from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error

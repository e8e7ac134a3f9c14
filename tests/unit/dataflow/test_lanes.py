from collections.abc import Callable
from datetime import timedelta
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import cluster_main

from bytewax_jetstream.dataflow.lanes import local_key


class _OneKeyForEach(FixedPartitionedSource[str, None]):
    """One partition that names the key of every worker."""

    def __init__(self, keys: list[str]) -> None:
        self._keys = keys

    def list_parts(self) -> list[str]:
        return ["keys"]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "_Part":
        return _Part(self._keys)


class _Part(StatefulSourcePartition[str, None]):
    def __init__(self, keys: list[str]) -> None:
        self._batches = [keys]

    def next_batch(self) -> list[str]:
        if not self._batches:
            raise StopIteration
        return self._batches.pop()

    def snapshot(self) -> None:
        return None


class _Passing(StatefulBatchLogic[str, str, None]):
    def on_batch(self, values: list[str]) -> tuple[list[str], bool]:
        return values, StatefulBatchLogic.RETAIN

    def snapshot(self) -> None:
        return None


class _Witness(DynamicSink[Any]):
    """Writes down on which worker each key came out of the keyed step."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_WitnessPart":
        return _WitnessPart(lambda key: self.seen.update({key: worker_index}))


class _WitnessPart(StatelessSinkPartition[Any]):
    def __init__(self, see: Callable[[str], None]) -> None:
        self._see = see

    def write_batch(self, items: list[tuple[str, str]]) -> None:
        for key, _ in items:
            self._see(key)


def _workers_of(keys: list[str], workers: int) -> dict[str, int]:
    """Where Bytewax itself sends each key."""
    witness = _Witness()
    flow = Dataflow("routing")
    stream = op.input("in", flow, _OneKeyForEach(keys))
    keyed = op.key_on("key", stream, lambda key: key)
    passed = op.stateful_batch("stay", keyed, lambda state: _Passing())
    op.output("out", passed, witness)
    cluster_main(flow, [], 0, epoch_interval=timedelta(0), worker_count_per_proc=workers)
    return witness.seen


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_a_workers_key_stays_on_that_worker(workers: int) -> None:
    keys = {local_key(worker, workers): worker for worker in range(workers)}

    assert len(keys) == workers
    assert _workers_of(list(keys), workers) == keys


def test_other_names_may_be_routed_to_another_worker() -> None:
    names = [f"lane-{number}" for number in range(20)]

    assert set(_workers_of(names, 2).values()) == {0, 1}


@pytest.mark.parametrize("workers", [2, 3, 5, 7, 64])
def test_every_worker_has_its_own_key_that_names_it(workers: int) -> None:
    keys = [local_key(worker, workers) for worker in range(workers)]

    assert len(set(keys)) == workers
    assert all(key.split(".")[0] == f"worker-{worker}" for worker, key in enumerate(keys))


def test_a_key_is_the_same_in_every_process() -> None:
    assert [local_key(worker, 3) for worker in range(3)] == ["worker-0.8", "worker-1.4", "worker-2"]

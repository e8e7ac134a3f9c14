"""A publish step's lanes, with names that Bytewax hashes to the worker that uses them."""

import threading
from collections.abc import Callable
from typing import Any

from bytewax.outputs import DynamicSink, StatelessSinkPartition

from ..pool import Lane
from ..settings import BrokerSettings, KafkaSettings
from ..tracing import check_tracing
from .long_epochs import LongEpochs
from .outlet import Outlet
from .refusals import Refusals

__all__ = ["Anchor", "Lanes", "local_key"]


class Lanes:
    """The lanes of one publish step in this process, one for each of the process's workers."""

    def __init__(self, step_id: str, settings: BrokerSettings) -> None:
        self.step_id = step_id
        self.settings = settings
        self.refusals = Refusals(step_id)
        self.long_epochs = LongEpochs(step_id)
        self.traced = check_tracing()
        """Whether batches leave spans."""
        self._outlets: dict[int, Outlet] = {}
        self._open = 0
        self._lock = threading.Lock()

    def open(self, worker: int, workers: int) -> Callable[[], None]:
        """Connect a worker's lane; returns a function that closes it."""
        lane = local_key(worker, workers)
        outlet = Outlet(self.settings, lane=lane, step=self.step_id, worker=worker)
        self._outlets[worker] = outlet
        with self._lock:
            self._open += 1
        return lambda: self._close(outlet)

    @property
    def broker(self) -> str:
        """Which broker it publishes to."""
        return "kafka" if isinstance(self.settings, KafkaSettings) else "jetstream"

    def key_of(self, worker: int) -> str:
        """The name of a worker's lane, a key that Bytewax routes to the same worker."""
        return self._outlets[worker].lane.name

    def lane_of(self, worker: int) -> Lane:
        """A worker's lane; for a worker of another process, any lane of this process."""
        outlet = self._outlets.get(worker) or next(iter(self._outlets.values()))
        return outlet.lane

    def _close(self, outlet: Outlet) -> None:
        outlet.close()
        with self._lock:
            self._open -= 1
            last = not self._open
        if last:
            self.refusals.end()


class Anchor(DynamicSink[Any]):
    """Opens a publish step's lanes before the first message, and closes them after the last.

    It is a sink, because Bytewax builds each worker's sinks before the first message and closes
    them after the last. Also, without recovery, a stateful step that no output follows loses items.
    """

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_AnchorPartition":
        """Connect a worker's lane; Bytewax calls this before the first message."""
        return _AnchorPartition(self._lanes.open(worker_index, worker_count))


class _AnchorPartition(StatelessSinkPartition[Any]):
    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close

    def write_batch(self, items: list[Any]) -> None:
        """Do nothing: users get the reports from the operator's streams."""

    def close(self) -> None:
        self._close()


MASK = 0xFFFF_FFFF_FFFF_FFFF


def local_key(worker: int, workers: int) -> str:
    """A name for a worker's lane; with this many workers, keyed steps keep it on that worker.

    A keyed step sends a key to worker `hash(key) % workers`. A lane's name is chosen so that it
    hashes to its own worker: no envelope moves to another worker, and every worker publishes. Any
    other name would be correct too, but the lanes of two workers could then be on the same worker
    (with two workers, half the time).
    """
    name = f"worker-{worker}"
    attempt = 0
    while _hash(name) % workers != worker:
        attempt += 1
        name = f"worker-{worker}.{attempt}"
    return name


def _hash(key: str) -> int:
    """Rust's `DefaultHasher` over a `String`: SipHash-1-3 with a zero key over the bytes and 0xff.

    Source: Rust `core::hash::sip`; J.-P. Aumasson and D. J. Bernstein, "SipHash" (2012).
    """
    data = key.encode() + b"\xff"
    v = [0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573]
    tail = len(data) - len(data) % 8
    words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, tail, 8)]
    words.append(int.from_bytes(data[tail:], "little") | (len(data) & 0xFF) << 56)
    for word in words:
        v[3] ^= word
        _round(v)
        v[0] ^= word
    v[2] ^= 0xFF
    for _ in range(3):
        _round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def _round(v: list[int]) -> None:
    v[0] = (v[0] + v[1]) & MASK
    v[1] = _rotate(v[1], 13) ^ v[0]
    v[0] = _rotate(v[0], 32)
    v[2] = (v[2] + v[3]) & MASK
    v[3] = _rotate(v[3], 16) ^ v[2]
    v[0] = (v[0] + v[3]) & MASK
    v[3] = _rotate(v[3], 21) ^ v[0]
    v[2] = (v[2] + v[1]) & MASK
    v[1] = _rotate(v[1], 17) ^ v[2]
    v[2] = _rotate(v[2], 32)


def _rotate(x: int, bits: int) -> int:
    return (x << bits | x >> (64 - bits)) & MASK

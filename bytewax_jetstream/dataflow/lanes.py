"""A publish step's lanes: opened before the first message, closed after the last."""

from collections.abc import Callable
from typing import Any

from bytewax.outputs import DynamicSink, StatelessSinkPartition

from ..pool import Lane
from ..settings import BrokerSettings
from .lane_keys import local_key
from .outlet import Outlet

__all__ = ["Anchor", "Lanes"]


class Lanes:
    """The lanes of one publish step in this process, one for each of the process's workers."""

    def __init__(self, step_id: str, settings: BrokerSettings) -> None:
        self.step_id = step_id
        self.settings = settings
        self._outlets: dict[int, Outlet] = {}

    def open(self, worker: int, workers: int) -> Callable[[], None]:
        """Connect a worker's lane; returns a function that closes it."""
        outlet = Outlet(self.settings, lane=local_key(worker, workers), worker=worker)
        self._outlets[worker] = outlet
        return outlet.close

    def key_of(self, worker: int) -> str:
        """The name of a worker's lane, a key that Bytewax routes to the same worker."""
        return self._outlets[worker].lane.name

    def lane_of(self, worker: int) -> Lane:
        """A worker's lane; for a worker of another process, any lane of this process."""
        outlet = self._outlets.get(worker) or next(iter(self._outlets.values()))
        return outlet.lane


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

"""Dataflows to measure: their source, and how they are run. Strategies of both kinds use it."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.testing import run_main

from ...envelope import Envelope
from ..meter import Trial

__all__ = ["LOOK", "Feed", "run"]

EPOCH = timedelta(seconds=1)
"""Ten times as many epochs, and so barriers, as with Bytewax's default."""
LOOK = 0.001
"""Seconds between two looks at whether the warm-up is settled."""


def run(dataflow: Dataflow, trial: Trial) -> None:
    """Run the dataflow, and stop the clock if messages are missing at its end."""
    run_main(dataflow, epoch_interval=EPOCH)
    if not trial.meter.stopped:
        trial.meter.stop()


class Feed(FixedPartitionedSource[Envelope, None]):
    """Emits the warm-up, waits until it is settled, starts the clock, and emits the rest.

    :arg settled: Says whether this many envelopes are settled, and the clock may start.
    """

    def __init__(self, trial: Trial, settled: Callable[[int], bool]) -> None:
        self.trial = trial
        self.settled = settled

    def list_parts(self) -> list[str]:
        """One partition: one worker is measured."""
        return ["all"]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "_FeedPart":
        """Start with the warm-up."""
        return _FeedPart(self.trial, self.settled)


class _FeedPart(StatefulSourcePartition[Envelope, None]):
    def __init__(self, trial: Trial, settled: Callable[[int], bool]) -> None:
        self._load, self._meter, self._settled = trial.load, trial.meter, settled
        self._warm_up: list[Envelope] = self._load.warm_up()
        self._warm = len(self._warm_up)
        self._batches: Iterator[list[Envelope]] | None = None
        self._pause = 0.0

    def next_batch(self) -> list[Envelope]:
        if self._warm_up:
            warm_up, self._warm_up = self._warm_up, []
            return warm_up
        if self._batches is None:
            if not self._settled(self._warm):
                self._pause = LOOK
                return []
            self._meter.start()
            self._batches = self._load.batches()
        batch = next(self._batches)  # its StopIteration ends the source, as Bytewax expects
        self._pause = self._load.seconds_until_due()
        return batch

    def next_awake(self) -> datetime | None:
        return datetime.now(UTC) + timedelta(seconds=self._pause) if self._pause else None

    def snapshot(self) -> None:
        """Nothing is resumed."""

"""The steps of `jop.publish`: submitting, the barrier, reports, checkpoints, recovery state.

The envelopes of one batch travel as one item, with their epoch and worker, to the stateful step of
the worker's lane. That step hands them to the lane, and passes on what the lane has settled so far.
At the end of an epoch it waits until all of the epoch's envelopes are settled (the barrier). What
it could not pass on by then is its recovery state.
"""

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from math import inf

import bytewax.operators as op
from bytewax.dataflow import Stream
from bytewax.operators import StatefulBatchLogic

from ..envelope import Checkpoint, Envelope, Outcome, PublishResult
from ..errors import JetStreamPipelineError, SettleTimeoutError
from ..metrics import barrier_waited
from ..pool import Lane
from ..pool.results import Delivery
from ..recovery_state import PublishState, Report, publish_state, read_publish_state
from ..settings import BrokerSettings
from ..tracing import BatchSpans
from .lanes import Anchor, Lanes
from .outlet import not_stored
from .values import check_envelopes, text_of

__all__ = [
    "Keyed",
    "PublishLogic",
    "Readers",
    "checkpoints_of",
    "errs_of",
    "oks_of",
    "publish_step",
]

POLL = timedelta(milliseconds=2)
"""How often to look for results while the upstream is idle."""
IDLE_POLL = timedelta(milliseconds=50)
"""How often to look for an epoch's checkpoint while the upstream is idle."""
SLICE = 0.1
"""How many seconds the barrier waits between two looks at the signal's deadline."""

Keyed = tuple[str, Report]
"""A report, with the name of its lane."""


class Readers(Enum):
    """Which results of a publish step somebody gets."""

    OF_ALL = auto()
    """The rejected ones, too."""
    NOT_OF_ERRS = auto()
    """No step reads `errs`, so a rejected envelope stops the run: otherwise it would be lost."""
    NONE = auto()
    """It has no results: a rejected envelope stops the run."""


def publish_step(
    step_id: str, up: Stream[Envelope], settings: BrokerSettings, readers: Callable[[], Readers]
) -> Stream[Keyed]:
    """Every envelope is published, and its result is in a report of its lane.

    The names of the steps made here are in every recovery store: a renamed step loses its state.

    :arg step_id: The operator's full id.
    :arg up: Envelopes.
    :arg settings: Which broker.
    :arg readers: Asked when the dataflow is complete.
    """
    lanes = Lanes(step_id, settings)

    def pack(items: list[Envelope]) -> Iterable[_Pack]:
        check_envelopes(items, step_id)
        return [_Pack(items)]

    packs = op.flat_map_batch("pack", up, pack)
    # The only operator that tells a step its epoch and its worker.
    stamped = op.inspect_debug("stamp", packs, _stamp)
    keyed = op.key_on("lane", stamped, lambda pack: lanes.key_of(pack.worker))
    reports = op.stateful_batch(
        "settle", keyed, lambda state: PublishLogic(lanes, state, readers())
    )
    op.output("anchor", reports, Anchor(lanes))
    return reports


def oks_of(reports: list[Keyed]) -> list[PublishResult]:
    """Results of stored envelopes."""
    return [result for _, report in reports for result in report.oks]


def errs_of(reports: list[Keyed]) -> list[PublishResult]:
    """Results of rejected envelopes."""
    return [result for _, report in reports for result in report.errs]


def checkpoints_of(reports: list[Keyed]) -> list[Checkpoint]:
    """Checkpoints of epochs that have ended."""
    return [checkpoint for _, report in reports for checkpoint in report.checkpoints]


class _Pack:
    """The envelopes of one batch with their epoch and worker: one item for the engine, not many."""

    __slots__ = ("envelopes", "epoch", "worker")

    def __init__(self, envelopes: list[Envelope]) -> None:
        self.envelopes = envelopes
        self.epoch = 0
        self.worker = 0


def _stamp(step_id: str, pack: _Pack, epoch: int, worker: int) -> None:
    pack.epoch, pack.worker = epoch, worker


class PublishLogic(StatefulBatchLogic[_Pack, Report, PublishState]):
    """Submits envelopes to one lane, and reports what the lane has settled.

    :arg resumed: The state of the last committed epoch, as the recovery store has it.
    """

    def __init__(self, lanes: Lanes, resumed: object | None, readers: Readers) -> None:
        self._lanes = lanes
        self._readers = readers
        self._lane: Lane | None = None
        self._tally: EpochTally | None = None
        """Of the open epoch; None while it has no envelopes."""
        self._spans: BatchSpans | None = None
        """None while no envelope has come, and without tracing."""
        self._report = (
            Report([], [], []) if resumed is None else read_publish_state(resumed, lanes.step_id)
        )
        """What is settled and not yet passed on."""

    def on_batch(self, values: list[_Pack]) -> tuple[Iterable[Report], bool]:
        """Submit envelopes, waiting while the budget is spent; pass on what is settled."""
        for pack in values:
            if self._lane is None:
                self._lane = self._lanes.lane_of(pack.worker)
                if self._lanes.traced:
                    broker = self._lanes.broker
                    self._spans = BatchSpans(self._lanes.step_id, pack.worker, broker)
            if self._tally is None:
                self._tally = EpochTally(
                    self._lanes.step_id, pack.worker, self._lane.name, pack.epoch, time.monotonic()
                )
            if self._spans is not None:
                self._spans.submitted(pack.envelopes, pack.epoch)
            try:
                self._lane.submit(pack.envelopes, epoch=pack.epoch)
            except JetStreamPipelineError as error:
                self._failed(error)
                raise
            self._collect()
        return self._pass_on()

    def on_notify(self) -> tuple[Iterable[Report], bool]:
        """Pass on what was settled while no envelope came."""
        self._collect()
        return self._pass_on()

    def on_eof(self) -> tuple[Iterable[Report], bool]:
        """Wait until everything is settled, and pass on its results: the input has ended."""
        self._close_epoch()
        return self._pass_on()

    def notify_at(self) -> datetime | None:
        """When to look again for results or a checkpoint; None while there can be neither."""
        if any(self._report) or (self._lane is not None and self._lane.unsettled):
            return datetime.now(UTC) + POLL
        # The epoch's end will leave a checkpoint, and this is not called again then.
        return datetime.now(UTC) + IDLE_POLL if self._tally is not None else None

    def snapshot(self) -> PublishState:
        """The barrier: wait until nothing is unsettled, so that the epoch may commit; results that
        cannot be emitted now are its state.
        """
        self._close_epoch()
        return publish_state(self._report)

    def _close_epoch(self) -> None:
        if self._lane is None or self._tally is None:
            return  # no envelope was submitted in this epoch, so none is unsettled
        began = time.monotonic()
        try:
            self._settle_all(self._lane)
        finally:
            barrier_waited(self._lanes.step_id, time.monotonic() - began)
        self._collect()
        if self._readers is not Readers.NONE:
            self._report.checkpoints.append(self._tally.checkpoint())
        self._tally = None

    def _settle_all(self, lane: Lane) -> None:
        began = time.monotonic()
        while not lane.wait(1, time.monotonic() + SLICE):
            self._stop_if_it_must(lane)
            self._note_a_long_epoch(lane)
            # An envelope has its result before that: this only ends a wait that would never end.
            if time.monotonic() > lane.patience_ends(began):
                raise self._failed(
                    SettleTimeoutError(
                        f"{self._lanes.step_id}: {lane.unsettled} envelopes are not settled, and "
                        f"nothing was for {lane.patience:g} s: check that the broker answers, then "
                        "start the flow again; the epoch is not committed, so it is replayed",
                        step=self._lanes.step_id,
                        lane=lane.name,
                        unsettled=lane.unsettled,
                        seconds=lane.patience,
                    )
                )

    def _collect(self) -> None:
        self._check_rejected(self._report.errs)  # from before a restart
        if self._lane is None:
            return  # no envelope has come yet
        for delivery in self._lane.take():
            if self._tally is not None:
                self._tally.add(delivery)
            if self._spans is not None:
                self._spans.settled(len(delivery.oks) + len(delivery.errs))
            self._check_rejected(delivery.errs)
            if self._readers is not Readers.NONE:
                self._report.oks.extend(delivery.oks)
                self._report.errs.extend(delivery.errs)
                self._lanes.refusals.add(delivery.errs)
        self._note_a_long_epoch(self._lane)
        self._stop_if_it_must(self._lane)

    def _note_a_long_epoch(self, lane: Lane) -> None:
        tally = self._tally
        if tally is not None and tally.became_long(now := time.monotonic()):
            seconds = now - tally.began
            self._lanes.long_epochs.add(lane, tally.epoch, seconds, tally.remembered)

    def _check_rejected(self, errs: list[PublishResult]) -> None:
        if not errs or self._readers is Readers.OF_ALL:
            return
        # An unknown one stops the run, whether or not a step reads the errs.
        rejected = next((each for each in errs if each.outcome is Outcome.REJECTED), None)
        if rejected is None:
            return
        step = self._lanes.step_id
        after = ""
        if self._readers is Readers.NOT_OF_ERRS:
            after = (
                f"; the run stops, because no step reads the errs of {step}: read them to go on "
                "without such envelopes"
            )
        lane = self._lane.name if self._lane is not None else ""
        raise self._failed(not_stored(rejected, step=step, lane=lane, after=after))

    def _stop_if_it_must(self, lane: Lane) -> None:
        if lane.stop is not None:
            step = self._lanes.step_id
            before = f"{step} stops without committing its epoch: "
            raise self._failed(not_stored(lane.stop, step=step, lane=lane.name, before=before))

    def _failed(self, error: Exception) -> Exception:
        if self._spans is not None:
            self._spans.failed(error)
        return error

    def _pass_on(self) -> tuple[Iterable[Report], bool]:
        if not any(self._report):
            return (), StatefulBatchLogic.RETAIN
        report, self._report = self._report, Report([], [], [])
        return (report,), StatefulBatchLogic.RETAIN


class EpochTally:
    """Counts the results of one epoch in one lane.

    :arg began: When its first envelope came.
    """

    def __init__(self, step: str, worker: int, lane: str, epoch: int, began: float) -> None:
        self._step, self._worker, self._lane, self.epoch = step, worker, lane, epoch
        self.began = began
        self.remembered = inf
        """For how many seconds its streams remember event ids, the shortest as far as is known."""
        self._is_long = False
        self._stored = self._duplicates = self._rejected = 0
        self._last_event_id = ""

    def add(self, delivery: Delivery) -> None:
        """Count the results of a delivery."""
        self._stored += len(delivery.oks)
        self._duplicates += delivery.duplicates
        self._rejected += len(delivery.errs)
        self._last_event_id = delivery.last_event_id
        self.remembered = min(self.remembered, delivery.remembered)

    def became_long(self, now: float) -> bool:
        """Whether it is open, for the first time, for more than half of that time."""
        before, self._is_long = self._is_long, now - self.began > self.remembered / 2
        return self._is_long and not before

    def checkpoint(self) -> Checkpoint:
        """The epoch's checkpoint; call this when all of its envelopes are settled."""
        return Checkpoint(
            step=self._step,
            worker=self._worker,
            lane=self._lane,
            epoch=self.epoch,
            stored=self._stored,
            duplicates=self._duplicates,
            rejected=self._rejected,
            # Also that of a rejected envelope, which may be anything.
            last_event_id=text_of(self._last_event_id),
        )

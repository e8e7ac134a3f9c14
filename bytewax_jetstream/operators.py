"""Operators that read, that publish from inside a dataflow, and that bring every result back into
it.

    import bytewax_jetstream.operators as jop

    out = jop.publish("publish", envelopes, settings)
    op.output("mark", out.oks, outbox)
    op.output("dead-letter", out.errs, dead_letters)
    op.output("progress", out.checkpoints, progress)

An epoch commits only when nothing of it is in flight (the barrier), and the results that were not
passed on by then are part of what it commits. So after a crash nothing is missing; an envelope, a
result or a checkpoint may come twice, with the same identity.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import bytewax.operators as op
from bytewax.dataflow import Dataflow, Stream, operator
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import DynamicSink, StatelessSinkPartition

from . import drain
from .dataflow.lane_keys import local_key
from .envelope import Checkpoint, Envelope, PublishResult
from .errors import PublishError, SettleTimeoutError
from .jetstream.message import JetStreamError, JetStreamMessage, Start
from .pool import Lane
from .pool.results import Delivery
from .settings import BrokerSettings, JetStreamSettings, KafkaSettings
from .sinks import Outlet

if TYPE_CHECKING:
    from bytewax.connectors.kafka import KafkaError, KafkaSourceMessage

    KafkaMessage = KafkaSourceMessage[bytes | None, bytes | None]
    KafkaFailure = KafkaError[bytes | None, bytes | None]
else:  # their module loads confluent-kafka
    KafkaMessage = KafkaFailure = Any

__all__ = ["InputOut", "KafkaInputOut", "PublishOut", "input", "output", "publish"]

POLL = timedelta(milliseconds=2)
"""How long results may wait for the dataflow to look, while its upstream is idle."""
IDLE_POLL = timedelta(milliseconds=50)
"""How long the checkpoint of an epoch may wait after it, while its upstream is idle."""
SLICE = 0.1
"""Seconds the barrier waits before it looks at a signal's deadline again."""


@dataclass(frozen=True)
class PublishOut:
    """What became of the envelopes of a `publish` step."""

    oks: Stream[PublishResult]
    """Stored ones."""
    errs: Stream[PublishResult]
    """Rejected ones, each with its envelope; an unknown one stops the run instead."""
    checkpoints: Stream[Checkpoint]
    """One for each lane and epoch, once all of that epoch's envelopes are settled."""


@dataclass(frozen=True)
class InputOut:
    """What a stream holds, and what of it cannot be read."""

    oks: Stream[JetStreamMessage]
    errs: Stream[JetStreamError]
    """Stored messages that cannot be read as one (a subject that is not text, a broken header
    block).
    """


@dataclass(frozen=True)
class KafkaInputOut:
    """What Kafka topics hold, and what of it cannot be read."""

    oks: Stream[KafkaMessage]
    errs: Stream[KafkaFailure]
    """What the consumer reports instead of a message."""


@overload
def input(  # noqa: A001
    step_id: str,
    flow: Dataflow,
    settings: JetStreamSettings,
    *,
    stream: str | Sequence[str],
    subjects: str | Sequence[str] = (),
    durable: str | None = None,
    tail: bool = True,
    start: Start = "first",
    batch_size: int = 1000,
) -> InputOut: ...


@overload
def input(  # noqa: A001
    step_id: str,
    flow: Dataflow,
    settings: KafkaSettings,
    *,
    topics: str | Sequence[str],
    tail: bool = True,
    start: Literal["first", "new"] | int = "first",
    batch_size: int = 1000,
) -> KafkaInputOut: ...


def input(  # noqa: A001  # Bytewax's own word, and always written jop.input
    step_id: str,
    flow: Dataflow,
    settings: JetStreamSettings | KafkaSettings,
    **options: Any,
) -> InputOut | KafkaInputOut:
    """Read every message of streams or topics; after a crash, go on where the last epoch was
    committed.

    Messages that cannot be read come on a stream of their own; SIGTERM and SIGINT stop in order.
    `JetStreamSource` says what that means by sequence and with a durable consumer, `KafkaSource`
    what it means by offset.

    :arg step_id: Unique id; the place reached is kept under it.
    :arg flow: The dataflow.
    :arg settings: Which broker; JetStream streams that it declares are made or checked first.
    :arg stream: JetStream: name of the stream, or of several.
    :arg subjects: JetStream: only messages on these subjects.
    :arg durable: JetStream: name of a durable consumer to read through.
    :arg topics: Kafka: name of the topic, or of several.
    :arg tail: Wait for new messages at the end.
    :arg start: Where to start the first time: `first`, `new`, a stream sequence or an offset, on
        JetStream also a time.
    :arg batch_size: Messages in a batch, at most.
    """
    if isinstance(settings, KafkaSettings):
        return _kafka_input(step_id, flow, settings, **options)
    return _jetstream_input(step_id, flow, settings, **options)


@operator
def _jetstream_input(
    step_id: str,
    flow: Dataflow,
    settings: JetStreamSettings,
    *,
    stream: str | Sequence[str],
    subjects: str | Sequence[str] = (),
    durable: str | None = None,
    tail: bool = True,
    start: Start = "first",
    batch_size: int = 1000,
) -> InputOut:
    from .jetstream.source.source import JetStreamSource  # which loads nats-py

    source = JetStreamSource(
        settings,
        streams=stream,
        subjects=subjects,
        durable=durable,
        tail=tail,
        start=start,
        batch_size=batch_size,
    )
    items = op.input("source", flow, source)
    return InputOut(
        oks=op.flat_map_batch(
            "oks", items, lambda batch: [item for item in batch if type(item) is JetStreamMessage]
        ),
        errs=op.flat_map_batch(
            "errs", items, lambda batch: [item for item in batch if type(item) is JetStreamError]
        ),
    )


@operator
def _kafka_input(
    step_id: str,
    flow: Dataflow,
    settings: KafkaSettings,
    *,
    topics: str | Sequence[str],
    tail: bool = True,
    start: Literal["first", "new"] | int = "first",
    batch_size: int = 1000,
) -> KafkaInputOut:
    from bytewax.connectors.kafka import KafkaSourceMessage  # which loads confluent-kafka

    from .kafka.source import KafkaSource

    source = KafkaSource(settings, topics=topics, tail=tail, start=start, batch_size=batch_size)
    items: Stream[Any] = op.input(
        "source", flow, drain.drain_on_signal(source, timeout=settings.pool.drain_timeout)
    )

    def is_message(item: Any) -> bool:
        return type(item) is KafkaSourceMessage

    return KafkaInputOut(
        oks=op.flat_map_batch(
            "oks", items, lambda batch: [item for item in batch if is_message(item)]
        ),
        errs=op.flat_map_batch(
            "errs", items, lambda batch: [item for item in batch if not is_message(item)]
        ),
    )


@operator
def publish(step_id: str, up: Stream[Envelope], settings: BrokerSettings) -> PublishOut:
    """Publish envelopes through the process's ACK pool; every one comes back as a result.

    Nothing is committed while an envelope of the epoch is in flight. A rejected one goes to `errs`;
    what is still unknown at the delivery timeout stops the run non-zero, its epoch uncommitted, as
    does a refusal that concerns every message (stream or topic gone, JetStream off). At least once:
    after a crash the last epoch is published again with the same event ids, which JetStream drops
    as duplicates within the stream's duplicate window, and Kafka stores again.

    One lane a worker; envelopes of an aggregate keep the order in which they reach their worker, so
    key by aggregate upstream when several workers produce them.

    :arg step_id: Unique id; recovery state and checkpoints go by it.
    :arg up: Envelopes.
    :arg settings: Which broker, and everything that differs between brokers.
    :returns: Streams of results and checkpoints; they need not all be used.
    """
    reports = _publish(step_id, up, settings, strict=False)
    return PublishOut(
        oks=op.flat_map_batch("oks", reports, _oks),
        errs=op.flat_map_batch("errs", reports, _errs),
        checkpoints=op.flat_map_batch("checkpoints", reports, _checkpoints),
    )


@operator
def output(step_id: str, up: Stream[Envelope], settings: BrokerSettings) -> None:
    """Store every envelope, or stop the run: a rejected or unknown one raises `PublishError`.

    The epoch with such an envelope is not committed; nothing is dropped. Otherwise as `publish`.

    :arg step_id: Unique id.
    :arg up: Envelopes.
    :arg settings: Which broker, and everything that differs between brokers.
    """
    _publish(step_id, up, settings, strict=True)


class _Pack:
    """Envelopes that came in one batch, with where they belong; one item for the engine instead of
    many.
    """

    __slots__ = ("envelopes", "epoch", "worker")

    def __init__(self, envelopes: list[Envelope]) -> None:
        self.envelopes = envelopes
        self.epoch = 0
        self.worker = 0


class _Report(NamedTuple):
    """What a lane passes on: to the streams downstream, or to the recovery store when an epoch
    closes.
    """

    oks: list[PublishResult]
    errs: list[PublishResult]
    checkpoints: list[Checkpoint]


Keyed = tuple[str, _Report]


def _publish(
    step_id: str, up: Stream[Envelope], settings: BrokerSettings, *, strict: bool
) -> Stream[Keyed]:
    lanes = _Lanes(step_id, settings)
    packs = op.flat_map_batch("pack", up, _pack)
    # The one operator that tells a step its epoch and its worker.
    stamped = op.inspect_debug("stamp", packs, _stamp)
    keyed = op.key_on("lane", stamped, lanes.key_of)
    reports = op.stateful_batch(
        "settle", keyed, lambda state: _PublishLogic(lanes, state, strict=strict)
    )
    # A stateful step without an output behind it loses items without recovery, so it has its own.
    op.output("anchor", reports, _Anchor(lanes))
    return reports


def _pack(envelopes: list[Envelope]) -> Iterable[_Pack]:
    return [_Pack(envelopes)]


def _stamp(step_id: str, pack: _Pack, epoch: int, worker: int) -> None:
    pack.epoch, pack.worker = epoch, worker


def _oks(reports: list[Keyed]) -> list[PublishResult]:
    return [result for _, report in reports for result in report.oks]


def _errs(reports: list[Keyed]) -> list[PublishResult]:
    return [result for _, report in reports for result in report.errs]


def _checkpoints(reports: list[Keyed]) -> list[Checkpoint]:
    return [checkpoint for _, report in reports for checkpoint in report.checkpoints]


class _Lanes:
    """The lanes of one publish step in this process, one for each of its workers."""

    def __init__(self, step_id: str, settings: BrokerSettings) -> None:
        self.step_id = step_id
        self.settings = settings
        self._outlets: dict[int, Outlet] = {}

    def open(self, worker: int, workers: int) -> Callable[[], None]:
        """Connect a worker's lane; returns what closes it."""
        outlet = Outlet(self.settings, lane=local_key(worker, workers), worker=worker)
        self._outlets[worker] = outlet
        return outlet.close

    def key_of(self, pack: _Pack) -> str:
        return self._outlets[pack.worker].lane.name

    def lane_of(self, pack: _Pack) -> Lane:
        """The lane a pack belongs to; one that came from another process joins a lane of this one."""
        outlet = self._outlets.get(pack.worker) or next(iter(self._outlets.values()))
        return outlet.lane


class _Anchor(DynamicSink[Keyed]):
    """Opens the lanes before the first message, and closes them after the last."""

    def __init__(self, lanes: _Lanes) -> None:
        self._lanes = lanes

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_AnchorPartition":
        return _AnchorPartition(self._lanes.open(worker_index, worker_count))


class _AnchorPartition(StatelessSinkPartition[Keyed]):
    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close

    def write_batch(self, items: list[Keyed]) -> None:
        """The reports go downstream; here they end."""

    def close(self) -> None:
        self._close()


class _PublishLogic(StatefulBatchLogic[_Pack, _Report, _Report]):
    """One lane, between its submissions and its results."""

    def __init__(self, lanes: _Lanes, resumed: _Report | None, *, strict: bool) -> None:
        self._lanes = lanes
        self._strict = strict
        self._lane: Lane | None = None
        self._tally: _Tally | None = None
        """Of the open epoch; None while it has no envelopes."""
        self._report = resumed or _Report([], [], [])
        """Settled, and not yet passed on."""

    def on_batch(self, values: list[_Pack]) -> tuple[Iterable[_Report], bool]:
        for pack in values:
            if self._lane is None:
                self._lane = self._lanes.lane_of(pack)
            if self._tally is None:
                self._tally = _Tally(self._lanes.step_id, pack.worker, self._lane.name, pack.epoch)
            self._lane.submit(pack.envelopes, epoch=pack.epoch)
            self._collect()
        return self._pass_on()

    def on_notify(self) -> tuple[Iterable[_Report], bool]:
        self._collect()
        return self._pass_on()

    def on_eof(self) -> tuple[Iterable[_Report], bool]:
        self._close_epoch()
        return self._pass_on()

    def notify_at(self) -> datetime | None:
        if any(self._report) or (self._lane is not None and self._lane.unsettled):
            return datetime.now(UTC) + POLL
        # The epoch's end leaves a checkpoint, and nobody asks again then.
        return datetime.now(UTC) + IDLE_POLL if self._tally is not None else None

    def snapshot(self) -> _Report:
        """The barrier: an epoch commits with nothing in flight; results that cannot be emitted now
        are its state.
        """
        self._close_epoch()
        oks, errs, checkpoints = self._report
        return _Report(list(oks), list(errs), list(checkpoints))

    def _close_epoch(self) -> None:
        if self._lane is None or self._tally is None:
            return  # nothing was submitted in this epoch, so nothing is in flight
        self._settle_all(self._lane)
        self._collect()
        if not self._strict:
            self._report.checkpoints.append(self._tally.checkpoint())
        self._tally = None

    def _settle_all(self, lane: Lane) -> None:
        pool = self._lanes.settings.pool
        # By then every envelope has its result: this only ends a wait that nothing will end.
        longest = time.monotonic() + pool.delivery_timeout + pool.ack_timeout + 1
        while not lane.wait(1, time.monotonic() + SLICE):
            self._stop_if_unsettled(lane)
            if time.monotonic() > longest:
                raise SettleTimeoutError(
                    f"{lane.unsettled} envelopes of {self._lanes.step_id} are not settled in time: see whether the "
                    "broker answers; the epoch is not committed, and run again it is replayed"
                )

    def _collect(self) -> None:
        if self._lane is None:
            return  # resumed with results to pass on, and no envelope came yet
        for delivery in self._lane.take():
            if self._tally is not None:
                self._tally.add(delivery)
            if self._strict:
                for result in delivery.errs:
                    raise PublishError(
                        f"envelope {result.event_id} on {result.topic} is rejected: {result.reason}"
                    )
            else:
                self._report.oks.extend(delivery.oks)
                self._report.errs.extend(delivery.errs)
        self._stop_if_unsettled(self._lane)

    def _stop_if_unsettled(self, lane: Lane) -> None:
        if lane.stop_reason is not None:
            raise PublishError(
                f"{self._lanes.step_id} stops, its epoch uncommitted: {lane.stop_reason}"
            )

    def _pass_on(self) -> tuple[Iterable[_Report], bool]:
        if not any(self._report):
            return (), StatefulBatchLogic.RETAIN
        report, self._report = self._report, _Report([], [], [])
        return (report,), StatefulBatchLogic.RETAIN


class _Tally:
    """What became of one epoch's envelopes in one lane."""

    def __init__(self, step: str, worker: int, lane: str, epoch: int) -> None:
        self._step, self._worker, self._lane, self._epoch = step, worker, lane, epoch
        self._stored = self._duplicates = self._rejected = 0
        self._last_event_id = ""

    def add(self, delivery: Delivery) -> None:
        self._stored += len(delivery.oks)
        self._duplicates += delivery.duplicates
        self._rejected += len(delivery.errs)
        self._last_event_id = delivery.last_event_id

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(
            step=self._step,
            worker=self._worker,
            lane=self._lane,
            epoch=self._epoch,
            stored=self._stored,
            duplicates=self._duplicates,
            rejected=self._rejected,
            last_event_id=self._last_event_id,
        )

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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import bytewax.operators as op
from bytewax.dataflow import Dataflow, Stream, operator
from bytewax.inputs import Source

from .dataflow.inputs import (
    KafkaFailure,
    KafkaMessage,
    jetstream_source,
    kafka_source,
    read_jetstream,
    read_kafka,
)
from .dataflow.publish_step import checkpoints_of, errs_of, oks_of, publish_step
from .envelope import Checkpoint, Envelope, PublishResult
from .jetstream.message import JetStreamMessage, Start, UnreadableMessage
from .recovery_state import Report
from .settings import BrokerSettings, JetStreamSettings, KafkaSettings

__all__ = ["InputOut", "KafkaInputOut", "PublishOut", "input", "output", "publish"]

_Report = Report
"""The name by which recovery stores find it that were written before states had a version."""


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
    errs: Stream[UnreadableMessage]
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
        return _kafka_input(step_id, flow, kafka_source(settings, **options))
    return _jetstream_input(step_id, flow, jetstream_source(settings, **options))


@operator
def _jetstream_input(
    step_id: str, flow: Dataflow, source: Source[JetStreamMessage | UnreadableMessage]
) -> InputOut:
    oks, errs = read_jetstream(flow, source)
    return InputOut(oks=oks, errs=errs)


@operator
def _kafka_input(
    step_id: str, flow: Dataflow, source: Source[KafkaMessage | KafkaFailure]
) -> KafkaInputOut:
    oks, errs = read_kafka(flow, source)
    return KafkaInputOut(oks=oks, errs=errs)


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
    reports = publish_step(step_id, up, settings, strict=False)
    return PublishOut(
        oks=op.flat_map_batch("oks", reports, oks_of),
        errs=op.flat_map_batch("errs", reports, errs_of),
        checkpoints=op.flat_map_batch("checkpoints", reports, checkpoints_of),
    )


@operator
def output(step_id: str, up: Stream[Envelope], settings: BrokerSettings) -> None:
    """Store every envelope, or stop the run: a rejected or unknown one raises `PublishError`.

    The epoch with such an envelope is not committed; nothing is dropped. Otherwise as `publish`.

    :arg step_id: Unique id.
    :arg up: Envelopes.
    :arg settings: Which broker, and everything that differs between brokers.
    """
    publish_step(step_id, up, settings, strict=True)

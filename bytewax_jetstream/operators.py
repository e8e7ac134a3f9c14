"""`input`, `publish`, `output`: Bytewax operators that read from a broker and publish to one.

    import bytewax_jetstream.operators as jop

    out = jop.publish("publish", envelopes, settings)
    op.output("mark", out.oks, outbox)
    op.output("dead-letter", out.errs, dead_letters)
    op.output("progress", out.checkpoints, progress)

Every envelope comes back as a result. An epoch commits only when all of its envelopes are settled
(the barrier), and results that were not passed on by then are committed with it. So after a crash
no envelope, result or checkpoint is missing; one may come twice, with the same identity.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, overload

import bytewax.operators as op
from bytewax.dataflow import Dataflow, Stream, operator
from bytewax.inputs import Source

from .dataflow.graph import is_read
from .dataflow.inputs import (
    KafkaFailure,
    KafkaMessage,
    jetstream_source,
    kafka_source,
    read_jetstream,
    read_kafka,
)
from .dataflow.publish_step import Readers, checkpoints_of, errs_of, oks_of, publish_step
from .envelope import Checkpoint, Envelope, PublishResult
from .jetstream.message import JetStreamMessage, Start, UnreadableMessage
from .recovery_state import Report
from .settings import BrokerSettings, JetStreamSettings, KafkaSettings

__all__ = ["InputOut", "KafkaInputOut", "PublishOut", "input", "output", "publish"]

_Report = Report
"""Recovery stores written before states had a version hold it pickled under this name."""


@dataclass(frozen=True)
class PublishOut:
    """What became of the envelopes of a `publish` step."""

    oks: Stream[PublishResult]
    """Results of stored envelopes."""
    errs: Stream[PublishResult]
    """Results of rejected envelopes, with the envelope; an unknown one stops the run instead. If no
    step reads them, a rejected envelope stops the run, too.
    """
    checkpoints: Stream[Checkpoint]
    """One for each lane and epoch, when all envelopes of the epoch are settled."""


@dataclass(frozen=True)
class InputOut:
    """The messages of JetStream streams, and those that cannot be read."""

    oks: Stream[JetStreamMessage]
    errs: Stream[UnreadableMessage]
    """Stored messages that cannot be decoded: the subject is not text, or a header is broken."""


@dataclass(frozen=True)
class KafkaInputOut:
    """The messages of Kafka topics, and what could not be read."""

    oks: Stream[KafkaMessage]
    errs: Stream[KafkaFailure]
    """Messages that were removed before they were read; with `on_error="errs"`, errors too."""


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
    ack_wait: timedelta = ...,
    max_ack_pending: int = ...,
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
    on_error: Literal["stop", "errs"] = "stop",
    group: str | None = None,
) -> KafkaInputOut: ...


def input(  # noqa: A001  # Bytewax's own word, and always written jop.input
    step_id: str,
    flow: Dataflow,
    settings: JetStreamSettings | KafkaSettings,
    **options: Any,
) -> InputOut | KafkaInputOut:
    """Every message of the streams or topics is read; after a crash, from the last committed epoch.

    Messages that cannot be read come on a stream of their own. At SIGTERM and SIGINT reading stops,
    and the epoch is committed. `JetStreamSource` gives the details for reading by sequence and with
    a durable consumer, `KafkaSource` those for reading by offset.

    :arg step_id: Unique id; recovery state is kept under it.
    :arg flow: The dataflow.
    :arg settings: Which broker; JetStream streams declared here are made or checked first.
    :arg stream: JetStream: name of the stream, or several names.
    :arg subjects: JetStream: read only messages on these subjects.
    :arg durable: JetStream: name of a durable consumer to read through.
    :arg topics: Kafka: name of the topic, or several names.
    :arg tail: Wait for new messages at the end.
    :arg start: Where to start the first time: `first`, `new`, a stream sequence or an offset; on
        JetStream also a time.
    :arg batch_size: How many messages a batch may have.
    :arg ack_wait: JetStream with `durable`: after how long the server delivers the messages of a
        crashed run again; 90 s by default. An epoch may take longer.
    :arg max_ack_pending: JetStream with `durable`: how many messages may be unacknowledged; 100,000
        by default. It should exceed the messages of an epoch.
    :arg on_error: Kafka: an error that may pass, such as a missing permission, stops the run, or
        comes on `errs` while reading goes on.
    :arg group: Kafka: a consumer group that is told the offsets of committed epochs, for
        monitoring only.
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
    """Every envelope is published through the process's ACK pool, and comes back as a result.

    An epoch is not committed while one of its envelopes is unsettled. A rejected envelope goes to
    `errs`. An envelope that is unknown at the delivery timeout stops the run non-zero without
    committing the epoch; so does a refusal that concerns every message (stream or topic gone,
    JetStream off), and any rejected envelope if no step reads `errs`. At least once: after a crash
    the last epoch is published again with the same event ids. JetStream drops them as duplicates
    within the stream's duplicate window; Kafka stores them again.

    Each worker has one lane. Envelopes of an aggregate keep the order in which they reach their
    worker, so key by aggregate upstream if several workers produce them.

    :arg step_id: Unique id; recovery state and checkpoints carry it.
    :arg up: Envelopes.
    :arg settings: Which broker, and everything that differs between brokers.
    :returns: Streams of results and checkpoints; none of them has to be used. Each reason of a
        rejection is logged once, with a count at the end.
    :raises TypeError: when an item is not an `Envelope`; its epoch is not committed.
    """

    def readers() -> Readers:
        return Readers.OF_ALL if is_read(errs) else Readers.NOT_OF_ERRS

    reports = publish_step(step_id, up, settings, readers)
    errs = op.flat_map_batch("errs", reports, errs_of)
    return PublishOut(
        oks=op.flat_map_batch("oks", reports, oks_of),
        errs=errs,
        checkpoints=op.flat_map_batch("checkpoints", reports, checkpoints_of),
    )


@operator
def output(step_id: str, up: Stream[Envelope], settings: BrokerSettings) -> None:
    """Every envelope is stored, or the run stops: a rejected or unknown one raises `PublishError`.

    The epoch of such an envelope is not committed, so no envelope is dropped. Otherwise like
    `publish`, and an item that is not an `Envelope` raises `TypeError`.

    :arg step_id: Unique id.
    :arg up: Envelopes.
    :arg settings: Which broker, and everything that differs between brokers.
    """
    publish_step(step_id, up, settings, lambda: Readers.NONE)

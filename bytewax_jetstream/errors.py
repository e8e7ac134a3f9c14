"""The errors of this package: what each means for the data, its fields, and what to do next.

An error is a message and keyword-only fields. A field is None where its value was not known, and
only the message is needed to make an error; so errors can be pickled, with their fields.
"""

from dataclasses import dataclass
from typing import final

from .exit_codes import ExitCode

__all__ = [
    "BenchError",
    "ConnectError",
    "EnvelopeError",
    "JetStreamPipelineError",
    "PoolClosedError",
    "PublishError",
    "RunError",
    "SettleTimeoutError",
    "SourceError",
    "StreamError",
    "TopicError",
]


# Not frozen: Python sets the traceback of an exception, and `add_note` its notes.
@dataclass(eq=False, repr=False)
class JetStreamPipelineError(Exception):
    """Any error of this package; its class says what it means for the data.

    :ivar message: What happened, and what to do.

    Catch it to handle every error of this package alike.
    """

    message: str

    def __post_init__(self) -> None:
        super().__init__(self.message)  # what `str()` shows, and what unpickling makes it from


@final  # publishers' answers are told apart by this very type
@dataclass(eq=False, repr=False, kw_only=True)
class EnvelopeError(JetStreamPipelineError):
    """An envelope cannot be published as it is, and was not sent; no other envelope is affected.

    Publishers raise it when they check an envelope. A lane does not: the envelope comes back as a
    rejected result whose `reason` is the message.

    :ivar field: The field of the envelope that is wrong, such as `topic` or `headers`.
    :ivar topic: The topic of the envelope.
    :ivar event_id: The event id of the envelope.
    :ivar size: How many bytes it has, when that is too many.
    :ivar limit: How many are allowed.

    Correct the envelope, or the step that makes it, and publish it again.
    """

    field: str | None = None
    topic: str | None = None
    event_id: str | None = None
    size: int | None = None
    limit: int | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class ConnectError(JetStreamPipelineError):
    """The broker cannot be used, so nothing was published and nothing was read.

    It did not answer in time, it refused the credentials or the certificate, or this user is not
    allowed to use a subject. A connection that is lost later is not an error: it is replaced.

    :ivar broker: `jetstream` or `kafka`.
    :ivar servers: The addresses from the settings.
    :ivar seconds: How long an answer was waited for, 0 when that was not needed to know that there
        is none now; None when the broker refused, as it will refuse the next start.
    :ivar reason: What the broker, or its client library, said.
    :ivar subject: The NATS subject of the request or subscription that failed.

    Check that the broker is running and that the settings fit it, then start the flow again.
    """

    broker: str | None = None
    servers: tuple[str, ...] = ()
    seconds: float | None = None
    reason: str | None = None
    subject: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class StreamError(JetStreamPipelineError):
    """A JetStream stream is missing, or weaker than the settings require; nothing was published.

    It is raised before the first message, so that nothing is acknowledged by a stream that would
    not keep it.

    :ivar stream: The stream.
    :ivar topic: The topic that no stream covers, or that the stream covers.
    :ivar consumer: The durable consumer that is missing.
    :ivar shortcomings: Each point in which the stream is weaker than the settings require.
    :ivar code: The server's own error code, where it gave one.

    Change the stream, or its `StreamSettings`, then start the flow again.
    """

    stream: str | None = None
    topic: str | None = None
    consumer: str | None = None
    shortcomings: tuple[str, ...] = ()
    code: int | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class TopicError(JetStreamPipelineError):
    """A Kafka topic is missing, or weaker than the settings require; nothing was published to it.

    It is raised before the first message, so that nothing is acknowledged by a topic that would not
    keep it.

    :ivar topic: The topic.
    :ivar shortcomings: Each point in which the topic is weaker than the settings require.
    :ivar code: Kafka's own error code, where it gave one.

    Change the topic, or its `KafkaTopicSettings`, then start the flow again.
    """

    topic: str | None = None
    shortcomings: tuple[str, ...] = ()
    code: int | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class PublishError(JetStreamPipelineError):
    """An envelope is not stored, or may not be; the run stops, and its epoch is not committed.

    With a recovery store the epoch is published again at the next start, with the same event ids;
    so nothing is missing, and what was stored before may come a second time.

    :ivar step: The step that stops.
    :ivar lane: Its lane.
    :ivar broker: `jetstream` or `kafka`.
    :ivar topic: The topic of the envelope.
    :ivar event_id: The event id of the envelope.
    :ivar outcome: `rejected` (it is definitely not stored) or `unknown` (it may be).
    :ivar code: The broker's own error code, where it gave one.
    :ivar reason: Why it was not stored, and what to do.

    Do what the reason says, then start the flow again. To handle rejected envelopes in the flow
    instead, use `jop.publish` and its `errs`.
    """

    step: str | None = None
    lane: str | None = None
    broker: str | None = None
    topic: str | None = None
    event_id: str | None = None
    outcome: str | None = None
    code: int | None = None
    reason: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class SettleTimeoutError(JetStreamPipelineError):
    """Envelopes have no result yet when they should: they may be stored, now or later.

    In a dataflow the epoch is not committed, and with a recovery store it is published again at the
    next start, with the same event ids: nothing is lost.

    :ivar step: The step that waited.
    :ivar lane: The lane that waited.
    :ivar unsettled: How many envelopes have no result.
    :ivar seconds: How long they were waited for.
    :ivar limit: How many envelopes the pool's budget allows, when a full budget was waited for.

    Check that the broker answers, then start the flow again; without a dataflow, publish them again
    with the same event ids.
    """

    step: str | None = None
    lane: str | None = None
    unsettled: int | None = None
    seconds: float | None = None
    limit: int | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class PoolClosedError(JetStreamPipelineError):
    """The pool takes no envelopes: what was not accepted gets no result.

    It is draining or closed, it belongs to another process or has other settings, or its thread has
    failed. What it accepted before gets its results as long as its thread runs.

    :ivar state: The state of the pool, such as `draining` or `closed`.
    :ivar lane: The lane that is closed.
    :ivar process: The id of the process to which the pool belongs.
    :ivar thread: The name of the thread that has ended.

    Open a new pool, or a new lane, and publish them again with the same event ids.
    """

    state: str | None = None
    lane: str | None = None
    process: int | None = None
    thread: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class SourceError(JetStreamPipelineError):
    """A source stops, because it could only go on by missing or repeating messages.

    Everything up to the last committed epoch was read and stays read; the recovery store says where
    to go on.

    :ivar step: The step that reads.
    :ivar stream: The stream that is read.
    :ivar subject: The subject to which reading is limited.
    :ivar consumer: The durable consumer.
    :ivar sequence: The stream sequence up to which it was read.
    :ivar seconds: How long it waited or tried.
    :ivar limit: How many seconds it may.
    :ivar shortcomings: Each point in which the durable consumer does not fit the source.
    :ivar code: The server's own error code, where it gave one.
    :ivar topic: The Kafka topic that is read.
    :ivar partition: Its partition.
    :ivar offset: The offset up to which it was read, or where the error is.
    :ivar run_again: Whether another start may go on without a change, as when no broker answered.

    Do what the message says, then start the flow again: it goes on where it was.
    """

    step: str | None = None
    stream: str | None = None
    subject: str | None = None
    consumer: str | None = None
    sequence: int | None = None
    seconds: float | None = None
    limit: float | None = None
    shortcomings: tuple[str, ...] = ()
    code: int | None = None
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    run_again: bool | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class RunError(JetStreamPipelineError):
    """`bytewax-jetstream run` cannot begin or go on; nothing was committed that is not stored.

    :ivar exit_code: What the command returns.
    :ivar flow: The flow, as it was named.
    :ivar directory: The recovery directory.
    :ivar port: The port that cannot be used.
    :ivar process: The number of another process of the dataflow.

    Do what the message says, then run again.
    """

    exit_code: ExitCode = ExitCode.USAGE
    flow: str | None = None
    directory: str | None = None
    port: int | None = None
    process: int | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class BenchError(JetStreamPipelineError):
    """The benchmark cannot run like this, or a strategy failed: there are no results to rely on.

    It touches no streams or topics but its own.

    :ivar broker: The broker of the strategy that failed.
    :ivar strategy: The strategy that failed.
    :ivar url: The address of the broker that does not answer.
    :ivar file: The results file or the page that cannot be used.
    :ivar package: The Python package that is not installed.

    Correct the command or the installation, then run it again.
    """

    broker: str | None = None
    strategy: str | None = None
    url: str | None = None
    file: str | None = None
    package: str | None = None

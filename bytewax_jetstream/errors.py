"""Few errors, each with one sentence that says what to do."""

__all__ = [
    "BenchError",
    "ConnectError",
    "EnvelopeError",
    "JetStreamPipelineError",
    "PoolClosedError",
    "PublishError",
    "SettleTimeoutError",
    "SourceError",
    "StreamError",
]


class JetStreamPipelineError(Exception):
    """Any error of this package."""


class EnvelopeError(JetStreamPipelineError):
    """An envelope cannot be published as it is; it becomes a rejected result with this sentence."""


class ConnectError(JetStreamPipelineError):
    """No usable connection to the broker within the deadline; nothing was published."""


class StreamError(JetStreamPipelineError):
    """A stream or topic is missing, or too weak for what the settings ask; nothing was published."""


class PublishError(JetStreamPipelineError):
    """An envelope could not be stored, and the flow must not go on as if it had been."""


class SettleTimeoutError(JetStreamPipelineError):
    """Envelopes were not settled in time; nothing is lost if the epoch is replayed."""


class PoolClosedError(JetStreamPipelineError):
    """The pool does not take envelopes any more: it is draining, closed, or of another process."""


class SourceError(JetStreamPipelineError):
    """The source cannot go on without missing or repeating messages."""


class BenchError(JetStreamPipelineError):
    """The benchmark cannot be run as asked, or a strategy failed in it; nothing was measured."""

"""What a run's end means: the exit code, and one sentence for whoever reads the log."""

from collections.abc import Iterable

from bytewax.recovery import (
    InconsistentPartitionsError,
    MissingPartitionsError,
    NoPartitionsError,
)
from pydantic import ValidationError
from pydantic_settings import SettingsError

from ..envelope import Outcome
from ..errors import (
    ConnectError,
    JetStreamPipelineError,
    PoolClosedError,
    PublishError,
    RunError,
    SettleTimeoutError,
    SourceError,
    StreamError,
    TopicError,
)
from ..exit_codes import ExitCode
from .cluster import Cluster
from .flow import settings_error

__all__ = ["code_of", "is_panic", "sentence"]


def code_of(error: BaseException, cluster: Cluster) -> ExitCode:
    """The exit code for what ended a run: what it was raised from decides."""
    for each in _chain(error):
        match each:
            case RunError():
                return each.exit_code
            case PublishError():
                unknown = each.outcome is Outcome.UNKNOWN
                return ExitCode.UNKNOWN if unknown else ExitCode.REFUSED
            case ConnectError():
                # Without a time the broker has answered, and refused.
                return ExitCode.REFUSED if each.seconds is None else ExitCode.UNKNOWN
            case SettleTimeoutError() | PoolClosedError():
                return ExitCode.UNKNOWN
            case StreamError() if each.code == 10008:  # JetStream's servers choose a leader
                return ExitCode.UNKNOWN
            case StreamError() | TopicError() | SourceError():
                return ExitCode.REFUSED
            case ValidationError() | SettingsError():
                return ExitCode.USAGE
            case NoPartitionsError() | MissingPartitionsError() | InconsistentPartitionsError():
                return ExitCode.USAGE
            case KeyboardInterrupt():
                return ExitCode.UNKNOWN
    if cluster.addresses and is_panic(error):
        return ExitCode.UNKNOWN
    return ExitCode.FAILED


def sentence(error: BaseException, cluster: Cluster) -> str:
    """What happened and what to do, without a traceback."""
    chain = list(_chain(error))
    for each in chain:
        if isinstance(each, JetStreamPipelineError):
            return each.message
        if isinstance(each, ValidationError):
            return settings_error(each)
        if isinstance(each, KeyboardInterrupt):
            return str(each) or "interrupted: the next start replays the epoch"
    if cluster.addresses and is_panic(error):
        return (
            f"the connection to another process of the dataflow is lost ({error}): run all of them "
            "again; the epoch is replayed"
        )
    last = chain[-1]
    text = " ".join(str(last).split())
    return (
        f"{type(last).__name__}: {text or 'no text'}; the epoch is not committed: see the "
        "traceback with --debug"
    )


def _chain(error: BaseException) -> Iterable[BaseException]:
    """An error and what it was raised from: the engine wraps what a step raises."""
    at: BaseException | None = error
    while at is not None:
        yield at
        at = at.__cause__


def is_panic(error: BaseException) -> bool:
    """Whether it is the engine's own, which has no public class."""
    return type(error).__name__ == "PanicException"

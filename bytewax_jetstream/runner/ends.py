"""What a run's end means: the exit code, and one sentence for the log."""

import re
import traceback
from collections.abc import Iterable
from pathlib import Path

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
)
from ..exit_codes import ExitCode
from .cluster import Cluster
from .wrong_settings import is_of_settings, settings_error

__all__ = ["code_of", "is_panic", "sentence"]

PASSING = {
    *(10005, 10008, 10009, 10118, 10194),  # JetStream
    *(5, 6, 7, 8, 9, 13, 14, 15, 16, 19, 41, 56),  # Kafka
}
"""The brokers' own codes while they choose a leader, or too few of them are there. JetStream's have
five digits, so the two do not meet.
"""
STEP = re.compile(r'in step "([^"]+)"').search


def code_of(error: BaseException, cluster: Cluster) -> ExitCode:
    """The exit code for what ended a run: what it was raised from decides."""
    for each in _chain(error):
        code = _code_of_one(each)
        if code is not None:
            return code
    if cluster.addresses and is_panic(error):
        return ExitCode.UNKNOWN
    return ExitCode.FAILED


def _code_of_one(error: BaseException) -> ExitCode | None:
    if isinstance(error, JetStreamPipelineError) and getattr(error, "code", None) in PASSING:
        return ExitCode.UNKNOWN
    match error:
        case RunError():
            return error.exit_code
        case PublishError():
            return _again(error.outcome == Outcome.UNKNOWN)
        case ConnectError():
            return _again(error.seconds is not None)
        case SettleTimeoutError() | PoolClosedError():
            return ExitCode.UNKNOWN
        case SourceError():
            return _again(bool(error.run_again))
        case JetStreamPipelineError():
            return ExitCode.REFUSED
        case SettingsError() | NoPartitionsError():
            return ExitCode.USAGE
        case ValidationError() if is_of_settings(error):
            return ExitCode.USAGE
        case MissingPartitionsError() | InconsistentPartitionsError():
            return ExitCode.USAGE
        case KeyboardInterrupt():
            # Python's own handler gives no reason: there was nothing to drain.
            return ExitCode.UNKNOWN if error.args else ExitCode.INTERRUPTED
    return None


def _again(may_help: bool) -> ExitCode:
    return ExitCode.UNKNOWN if may_help else ExitCode.REFUSED


def sentence(error: BaseException, cluster: Cluster) -> str:
    """What happened and what to do, without a traceback."""
    chain = list(_chain(error))
    for each in chain:
        match each:
            case JetStreamPipelineError():
                return each.message
            case SettingsError():
                return settings_error(each)
            case ValidationError() if is_of_settings(each):
                return settings_error(each)
            case NoPartitionsError() | MissingPartitionsError() | InconsistentPartitionsError():
                return (
                    f"the recovery store cannot be used ({_text(each)}): check that the recovery "
                    "directories of all processes are those of one dataflow, and complete"
                )
            case KeyboardInterrupt():
                return str(each) or "SIGINT before there was anything to drain"
    if cluster.addresses and is_panic(error):
        return (
            f"the connection to another process of the dataflow is lost ({_text(error)}): run all "
            "of them again; the epoch is replayed"
        )
    step = next(filter(None, (STEP(str(each)) for each in chain)), None)
    where = f"step {step[1]}" if step is not None else "the dataflow"
    return (
        f"{where} raised {type(chain[-1]).__name__}: {_text(chain[-1])}{_line(chain[-1])}; the "
        "epoch is not committed: correct the cause and run again; --debug shows the traceback"
    )


def _text(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no text"


def _line(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _chain(error: BaseException) -> Iterable[BaseException]:
    """An error and what it was raised from: the engine wraps what a step raises."""
    at: BaseException | None = error
    seen: set[int] = set()
    while at is not None and id(at) not in seen:  # an error can be raised from itself
        seen.add(id(at))
        yield at
        at = at.__cause__


def is_panic(error: BaseException) -> bool:
    """Whether it is the engine's own, which has no public class."""
    return type(error).__name__ == "PanicException"

"""What an error means for the exit code."""

import pytest

from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.errors import (
    ConnectError,
    PoolClosedError,
    PublishError,
    RunError,
    SettleTimeoutError,
    SourceError,
    StreamError,
    TopicError,
)
from bytewax_jetstream.exit_codes import ExitCode
from bytewax_jetstream.runner.cluster import Cluster
from bytewax_jetstream.runner.ends import code_of, sentence

CLUSTER = Cluster(0, ("a:1", "b:1"))


class PanicException(BaseException):  # the engine's name
    pass


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PublishError("it", outcome=Outcome.UNKNOWN), ExitCode.UNKNOWN),
        (PublishError("it", outcome=Outcome.REJECTED), ExitCode.REFUSED),
        (ConnectError("it", seconds=10.0), ExitCode.UNKNOWN),
        (ConnectError("it", reason="authorization violation"), ExitCode.REFUSED),
        (SettleTimeoutError("it"), ExitCode.UNKNOWN),
        (PoolClosedError("it"), ExitCode.UNKNOWN),
        (StreamError("it"), ExitCode.REFUSED),
        (TopicError("it"), ExitCode.REFUSED),
        (SourceError("it"), ExitCode.REFUSED),
        (RunError("it", exit_code=ExitCode.LOCKED), ExitCode.LOCKED),
        (KeyboardInterrupt("it"), ExitCode.UNKNOWN),
        (ValueError("it"), ExitCode.FAILED),
    ],
)
def test_each_error_has_an_exit_code_also_when_the_engine_wraps_it(
    error: BaseException, code: ExitCode
) -> None:
    wrapped = RuntimeError("while building a step")
    wrapped.__cause__ = error

    assert code_of(error, Cluster()) is code
    assert code_of(wrapped, Cluster()) is code
    assert "it" in sentence(wrapped, Cluster())


def test_a_panic_of_the_engine_means_another_process_is_gone_only_in_a_cluster() -> None:
    panic = PanicException("Send thread panic")

    assert code_of(panic, CLUSTER) is ExitCode.UNKNOWN
    assert "another process" in sentence(panic, CLUSTER)
    assert code_of(panic, Cluster()) is ExitCode.FAILED


def test_the_sentence_has_one_line() -> None:
    assert "\n" not in sentence(ValueError("first\nsecond"), Cluster())

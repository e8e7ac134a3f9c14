"""What an error means for the exit code."""

import pytest
from pydantic import BaseModel, ValidationError

from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.errors import (
    ConnectError,
    EnvelopeError,
    PoolClosedError,
    PublishError,
    RunError,
    SettleTimeoutError,
    SourceError,
    StreamError,
    TopicError,
)
from bytewax_jetstream.exit_codes import ExitCode
from bytewax_jetstream.jetstream.connection.failures import JetStreamApiError
from bytewax_jetstream.runner.cluster import Cluster
from bytewax_jetstream.runner.ends import code_of, sentence
from bytewax_jetstream.settings import StreamSettings

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
        (StreamError("it", code=10008), ExitCode.UNKNOWN),
        (StreamError("it", code=10118), ExitCode.UNKNOWN),
        (TopicError("it", code=5), ExitCode.UNKNOWN),  # LEADER_NOT_AVAILABLE
        (TopicError("it", code=41), ExitCode.UNKNOWN),  # NOT_CONTROLLER
        (TopicError("it", code=29), ExitCode.REFUSED),  # TOPIC_AUTHORIZATION_FAILED
        (ConnectError("it", seconds=0.0), ExitCode.UNKNOWN),
        (EnvelopeError("it"), ExitCode.REFUSED),
        (SourceError("it"), ExitCode.REFUSED),
        (SourceError("it", run_again=True), ExitCode.UNKNOWN),
        (SourceError("it", code=10008), ExitCode.UNKNOWN),
        (JetStreamApiError(10008, "it"), ExitCode.UNKNOWN),
        (RunError("it", exit_code=ExitCode.LOCKED), ExitCode.LOCKED),
        (KeyboardInterrupt("it"), ExitCode.UNKNOWN),
        (SystemExit("it"), ExitCode.FAILED),
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


def test_an_error_that_was_raised_from_itself_is_one_sentence() -> None:
    error = ConnectError("it")
    error.__cause__ = error

    assert sentence(error, Cluster()) == "it"
    assert code_of(error, Cluster()) is ExitCode.REFUSED


def test_the_sentence_names_the_step_and_the_line() -> None:
    try:
        try:
            raise ValueError("odd")
        except ValueError as error:
            raise RuntimeError('(src/operators.rs:1:2): error in step "orders.parse"') from error
    except RuntimeError as error:
        said = sentence(error, Cluster())

    assert said.startswith("step orders.parse raised ValueError: odd (test_ends.py, line ")


class Order(BaseModel):
    amount: int


def test_a_message_that_is_no_model_of_the_flow_is_no_wrong_setting() -> None:
    with pytest.raises(ValidationError) as order:
        Order.model_validate({})
    with pytest.raises(ValidationError) as stream:
        StreamSettings.model_validate({"name": "ORDERS"})

    assert code_of(order.value, Cluster()) is ExitCode.FAILED
    assert "set it" not in sentence(order.value, Cluster())
    assert code_of(stream.value, Cluster()) is ExitCode.USAGE
    assert "subjects" in sentence(stream.value, Cluster()).lower()

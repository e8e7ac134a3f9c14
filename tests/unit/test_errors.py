"""Errors: one base class, a message that can be shown, and fields that survive pickling."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import bytewax_jetstream
from bytewax_jetstream import (
    BenchError,
    ConnectError,
    Envelope,
    EnvelopeError,
    JetStreamPipelineError,
    Outcome,
    PoolClosedError,
    PublishError,
    PublishResult,
    RunError,
    SettleTimeoutError,
    SourceError,
    StreamError,
    TopicError,
    errors,
)
from bytewax_jetstream.dataflow.outlet import not_stored
from bytewax_jetstream.exit_codes import ExitCode
from bytewax_jetstream.jetstream.connection import JetStreamApiError
from bytewax_jetstream.jetstream.publisher import encoding as jetstream_encoding
from bytewax_jetstream.kafka import encoding as kafka_encoding
from bytewax_jetstream.testing import KafkaServerError, KafkaUnavailableError, NatsServerError

FULL: list[JetStreamPipelineError] = [
    JetStreamPipelineError("it failed: try again"),
    EnvelopeError("bad", field="topic", topic="orders", event_id="e-1", size=2, limit=1),
    ConnectError(
        "lost",
        broker="jetstream",
        servers=("nats://a:4222", "nats://b:4222"),
        seconds=1.5,
        reason="refused",
        subject="$JS.API.INFO",
    ),
    StreamError(
        "weak",
        stream="ORDERS",
        topic="orders.new",
        consumer="reader",
        shortcomings=("storage is memory", "num_replicas is 1"),
        code=10059,
    ),
    TopicError("weak", topic="orders", shortcomings=("it has 1 partitions",), code=3),
    PublishError(
        "unknown",
        step="flow.publish",
        lane="worker-0",
        broker="kafka",
        topic="orders",
        event_id="e-1",
        outcome=Outcome.UNKNOWN,
        code=-192,
        reason="no answer",
    ),
    SettleTimeoutError(
        "late", step="flow.publish", lane="worker-0", unsettled=3, seconds=66.0, limit=16_000
    ),
    PoolClosedError("closed", state="closed", lane="worker-0", process=7, thread="pool"),
    SourceError(
        "gone",
        step="flow.in",
        stream="ORDERS",
        subject="orders.*",
        consumer="reader",
        sequence=41,
        seconds=3.2,
        limit=3.0,
        shortcomings=("its ack_policy is none",),
        code=10014,
        topic="orders",
        partition=3,
        offset=41,
        run_again=True,
    ),
    RunError(
        "no flow",
        exit_code=ExitCode.LOCKED,
        flow="flows.orders",
        directory="store",
        port=8081,
        process=1,
    ),
    BenchError(
        "failed",
        broker="kafka",
        strategy="sync",
        url="127.0.0.1:9092",
        file="results.json",
        package="psutil",
    ),
    JetStreamApiError(10059, "stream not found"),
    NatsServerError("no server", seconds=30.0, log="the end"),
    KafkaServerError("no broker", seconds=60.0, log="the end"),
    KafkaUnavailableError("no java", seconds=60.0, log="the end", program="java"),
]
each_error = pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
dataclass_errors = pytest.mark.parametrize(
    "kind",
    [type(error) for error in FULL if type(error) is not JetStreamApiError],
    ids=lambda kind: kind.__name__,
)


def fields_of(error: JetStreamPipelineError) -> dict[str, Any]:
    return dict(vars(error))


@each_error
def test_every_error_is_caught_by_the_base_class(error: JetStreamPipelineError) -> None:
    with pytest.raises(JetStreamPipelineError) as caught:
        raise error

    assert str(caught.value) == caught.value.message == error.args[0]


def test_every_class_of_the_module_is_public_and_tested_here() -> None:
    own = {
        name
        for name, value in vars(errors).items()
        if getattr(value, "__module__", "") == errors.__name__
    }

    assert own == set(errors.__all__)
    assert own <= {type(error).__name__ for error in FULL}


def test_the_packages_root_exports_every_error_in_order() -> None:
    names = bytewax_jetstream.__all__

    assert set(errors.__all__) <= set(names)
    assert names == sorted(names)
    for name in errors.__all__:
        assert getattr(bytewax_jetstream, name) is getattr(errors, name)


def test_topic_error_is_not_a_stream_error() -> None:
    assert not issubclass(TopicError, StreamError)
    assert not issubclass(StreamError, TopicError)


@each_error
@pytest.mark.parametrize(
    "copied", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy],
    ids=["pickled", "copied", "copied deep"],
)  # fmt: skip
def test_an_error_keeps_message_and_fields_when_it_is_copied(
    error: JetStreamPipelineError,
    copied: Callable[[JetStreamPipelineError], JetStreamPipelineError],
) -> None:
    again = copied(error)

    assert again is not error
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert fields_of(again) == fields_of(error)
    assert again.args == error.args


@each_error
def test_the_samples_fill_every_field(error: JetStreamPipelineError) -> None:
    empty = [name for name, value in fields_of(error).items() if value in (None, ())]

    assert not empty, "the copies above would prove nothing about these"


@dataclass_errors
def test_an_error_needs_nothing_but_its_message(kind: type[JetStreamPipelineError]) -> None:
    error = kind("what happened: what to do")

    assert str(error) == "what happened: what to do"
    fields = fields_of(error)
    assert fields.pop("message") == "what happened: what to do"
    assert all(value in (None, (), ExitCode.USAGE) for value in fields.values()), fields
    assert repr(error) == f"{kind.__name__}('what happened: what to do')"


@dataclass_errors
def test_fields_are_given_by_name_only(kind: type[JetStreamPipelineError]) -> None:
    make: Callable[..., JetStreamPipelineError] = kind

    with pytest.raises(TypeError, match="positional argument"):
        make("message", "a field")
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        make("message", misspelt=1)


@dataclass_errors
def test_every_field_is_documented(kind: type[JetStreamPipelineError]) -> None:
    inherited = {
        field.name for base in kind.__mro__[1:] if dataclasses.is_dataclass(base)
        for field in dataclasses.fields(base)
    }  # fmt: skip
    own = [field.name for field in dataclasses.fields(kind) if field.name not in inherited]

    missing = [name for name in own if f":ivar {name}:" not in str(kind.__doc__)]
    assert own
    assert not missing


def test_errors_with_the_same_message_are_not_equal() -> None:
    one, other = StreamError("weak", stream="A"), StreamError("weak", stream="A")

    assert one != other
    assert len({one, other}) == 2


def test_an_error_takes_a_note_and_a_traceback() -> None:
    error = StreamError("weak", stream="A")
    error.add_note("seen by the test")

    with pytest.raises(StreamError) as caught:
        raise error from ValueError("the cause")

    assert caught.value.__notes__ == ["seen by the test"]
    assert caught.value.__traceback__ is not None


def test_an_api_error_shows_description_and_code() -> None:
    error = JetStreamApiError(10059, "stream not found")

    assert str(error) == "stream not found (10059)"
    assert (error.code, error.description) == (10059, "stream not found")


# What the raised errors carry


def bad(encode: Callable[[Envelope], object], **fields: Any) -> EnvelopeError:
    envelope = Envelope("orders", b"payload", "e-1")._replace(**fields)
    with pytest.raises(EnvelopeError) as caught:
        encode(envelope)
    return caught.value


def jetstream(envelope: Envelope) -> object:
    jetstream_encoding.check_topic(envelope.topic)
    return jetstream_encoding.encode(envelope, 1_000)


def kafka(envelope: Envelope) -> object:
    kafka_encoding.check_topic(envelope.topic)
    return kafka_encoding.encode(envelope)


@pytest.mark.parametrize("encode", [jetstream, kafka])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("topic", ""),
        ("topic", 7),
        ("topic", "a b"),
        ("topic", "x" * 5_000),
        ("event_id", ""),
        ("event_id", 7),
        ("payload", "text"),
        ("aggregate_id", ["a"]),
        ("headers", ["a"]),
        ("headers", {"": "x"}),
        ("headers", {"Event-Id": "x"}),
        ("headers", {"a": 7}),
    ],
)
def test_a_refused_envelope_names_the_field_at_fault(
    encode: Callable[[Envelope], object], field: str, value: Any
) -> None:
    assert bad(encode, **{field: value}).field == field


def test_refused_envelope_names_its_size_and_the_limit() -> None:
    header = len(b"NATS/1.0\r\nNats-Msg-Id: e-1\r\n\r\n")
    error = bad(jetstream, payload=b"x" * 1_000)

    assert (error.topic, error.event_id) == ("orders", "e-1")
    assert (error.field, error.size, error.limit) == ("payload", 1_000 + header, 1_000)
    error = bad(jetstream, topic="x" * 1_025)
    assert (error.topic, error.size, error.limit) == ("x" * 1_025, 1_025, 1_024)
    error = bad(kafka, topic="x" * 250)
    assert (error.topic, error.size, error.limit) == ("x" * 250, 250, 249)


def test_error_of_a_step_says_all_that_is_known_of_the_envelope() -> None:
    result = PublishResult(
        outcome=Outcome.REJECTED,
        event_id="e-1",
        topic="orders",
        aggregate_id=None,
        event_type=None,
        broker="jetstream",
        stream=None,
        partition=None,
        sequence=None,
        duplicate=None,
        attempts=1,
        ack_seconds=0.1,
        reason="the server refused it",
        code=10054,
        envelope=None,
        worker=0,
        epoch=3,
    )

    error = not_stored(result, step="flow.out", lane="worker-0")

    assert str(error) == "envelope e-1 on orders is rejected: the server refused it"
    fields = fields_of(error)
    del fields["message"]
    assert fields == {
        "step": "flow.out",
        "lane": "worker-0",
        "broker": "jetstream",
        "topic": "orders",
        "event_id": "e-1",
        "outcome": "rejected",
        "code": 10054,
        "reason": "the server refused it",
    }

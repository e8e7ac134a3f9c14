import logging
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from http import HTTPMethod
from types import MappingProxyType
from typing import Any

import pytest

from bytewax_jetstream import operators
from bytewax_jetstream.envelope import (
    Checkpoint,
    Envelope,
    Headers,
    Outcome,
    PublishOptions,
    PublishResult,
)
from bytewax_jetstream.errors import JetStreamPipelineError, SourceError
from bytewax_jetstream.recovery_state import (
    DurableState,
    Report,
    SequenceState,
    durable_state,
    publish_state,
    read_publish_state,
    read_source_state,
    sequence_state,
)
from tests.support.recovery.plain import plain

STORED = PublishResult(
    outcome=Outcome.STORED,
    event_id="order-1",
    topic="orders.new",
    aggregate_id="customer-1",
    event_type=None,
    broker="jetstream",
    stream="ORDERS",
    partition=None,
    sequence=42,
    duplicate=False,
    attempts=1,
    ack_seconds=0.25,
    reason=None,
    code=None,
    envelope=None,
    worker=1,
    epoch=7,
)
ENVELOPE = Envelope(
    "orders.new",
    b"\x00\xff",
    "order-2",
    "customer-1",
    "OrderPlaced",
    {"Trace": "1"},
    3,
    PublishOptions(timedelta(seconds=90), expected_last_sequence=5),
)
REJECTED = STORED._replace(
    outcome=Outcome.REJECTED,
    event_id="order-2",
    stream=None,
    sequence=None,
    duplicate=None,
    reason="too large",
    code=10054,
    envelope=ENVELOPE,
)
CHECKPOINT = Checkpoint(
    "flow.publish", 1, "worker-1", 7, stored=3, duplicates=1, rejected=1, last_event_id="order-2"
)
REPORT = Report([STORED, STORED], [REJECTED], [CHECKPOINT])
RANGES = ((1, 5, 100), (7, 7, 100))
BY_SEQUENCE = SequenceState(7, "2026-01-01T00:00:00Z", 100)
DURABLE = DurableState(RANGES, "reader", "2026-01-01T00:00:00Z")


def _resumed(report: Report) -> Report:
    return read_publish_state(plain(pickle.dumps(publish_state(report))), "flow.publish")


def _rejected(**fields: Any) -> Report:
    return Report([], [REJECTED._replace(envelope=ENVELOPE._replace(**fields))], [])


def _envelope_after(report: Report) -> Envelope:
    (result,) = _resumed(report).errs
    assert type(result.envelope) is Envelope
    return result.envelope


def test_a_report_comes_back_as_it_was() -> None:
    resumed = _resumed(REPORT)

    assert resumed == REPORT
    assert [type(result) for result in resumed.oks + resumed.errs] == [PublishResult] * 3
    assert [type(one) for one in resumed.checkpoints] == [Checkpoint]
    assert resumed.errs[0].outcome is Outcome.REJECTED
    assert _envelope_after(REPORT) == ENVELOPE
    assert type(_envelope_after(REPORT).options) is PublishOptions


def test_the_state_of_a_publish_step_is_tuples_of_plain_values() -> None:
    stored = ("stored", "order-1", "orders.new", "customer-1", None, "jetstream", "ORDERS")
    rejected = ("rejected", "order-2", "orders.new", "customer-1", None, "jetstream", None)
    options = ("options", timedelta(seconds=90), 5, None, None, None, None, None)
    envelope = (
        *("envelope", "orders.new", b"\x00\xff", "order-2", "customer-1", "OrderPlaced"),
        *({"Trace": "1"}, 3, options, None),
    )

    assert publish_state(Report([STORED], [REJECTED], [CHECKPOINT])) == (
        "publish",
        1,
        ((*stored, None, 42, False, 1, 0.25, None, None, None, 1, 7),),
        ((*rejected, None, None, None, 1, 0.25, "too large", 10054, envelope, 1, 7),),
        (("flow.publish", 1, "worker-1", 7, 3, 1, 1, "order-2"),),
    )


def test_repeated_headers_and_a_timestamp_are_plain_values_in_the_state() -> None:
    headers = Headers([("a", "1"), ("a", None)])
    report = _rejected(headers=headers, timestamp=datetime(2026, 11, 30, tzinfo=UTC))

    envelope = publish_state(report)[3][0][14]

    assert envelope[6] == ("headers", ("a", "1"), ("a", None))
    assert envelope[9] == ("time", "2026-11-30T00:00:00+00:00")


def test_a_report_may_change_after_its_state_was_made() -> None:
    headers = {"Trace": "1"}
    report = Report([STORED], _rejected(headers=headers).errs, [])
    state = publish_state(report)

    report.oks.clear()
    headers["Trace"] = "2"

    assert read_publish_state(state, "flow.publish") == Report(
        [STORED], _rejected(headers={"Trace": "1"}).errs, []
    )


@pytest.mark.parametrize(
    "value",
    [
        HTTPMethod.POST,
        Decimal("1.5"),
        bytearray(b"abc"),
        {"Trace": 1},
        {1: "Trace"},
        {"Method": HTTPMethod.POST},
        ["a"],
        ("envelope", "a tuple of the user's"),
        ("pickled", b"", "another"),
        PublishOptions(),
        ENVELOPE,
        timedelta(days=999_999_999),
    ],
    ids=repr,
)
@pytest.mark.parametrize("field", Envelope._fields)
def test_envelope_comes_back_with_any_value_in_its_fields(field: str, value: Any) -> None:
    envelope = _envelope_after(_rejected(**{field: value}))

    assert envelope == ENVELOPE._replace(**{field: value})
    assert type(getattr(envelope, field)) is type(value)


@pytest.mark.parametrize(
    "fields",
    [
        {"payload": None},
        {"timestamp": datetime(2026, 11, 30, tzinfo=UTC)},
        {"timestamp": datetime(2026, 11, 30, tzinfo=timezone(timedelta(hours=2)))},
        {"headers": {"a": b"\xff", "b": None}},
        {"headers": Headers([("a", "1"), ("a", b"\xff"), ("a", None), ("b", HTTPMethod.POST)])},
        {"headers": [("a", "1"), ("a", "2")]},
        {"headers": (("headers", "1"), ("a", None))},
    ],
    ids=repr,
)
def test_envelope_comes_back_with_its_new_fields(fields: dict[str, Any]) -> None:
    envelope = _envelope_after(_rejected(**fields))

    assert envelope == ENVELOPE._replace(**fields)
    assert type(envelope.headers) is type(fields.get("headers", {}))


def test_envelope_of_a_store_from_before_timestamps_is_read() -> None:
    kind, version, oks, (row,), checkpoints = publish_state(_rejected())
    envelope = row[14]
    assert (envelope[0], envelope[-1]) == ("envelope", None)
    before = (*row[:14], envelope[:-1], *row[15:])

    (result,) = read_publish_state((kind, version, oks, (before,), checkpoints), "flow.out").errs

    assert result.envelope == ENVELOPE


def test_options_come_back_with_any_value_in_their_fields() -> None:
    odd = PublishOptions(ttl=HTTPMethod.POST, expected_last_sequence=("options",))  # type: ignore[arg-type]  # as users do

    assert _envelope_after(_rejected(options=odd)).options == odd


def test_a_str_of_a_users_own_type_comes_back_in_a_stored_result() -> None:
    event_type = _resumed(Report([STORED._replace(event_type=HTTPMethod.POST)], [], [])).oks[0][4]

    assert event_type is HTTPMethod.POST


def test_a_value_that_cannot_be_pickled_comes_back_as_text() -> None:
    class Local(str):
        pass

    def function() -> None: ...

    headers: Any = _envelope_after(_rejected(headers=MappingProxyType({"a": "b"}))).headers
    assert isinstance(headers, str)
    assert headers.startswith("<mappingproxy object at ")
    payload: Any = _envelope_after(_rejected(payload=function)).payload
    assert payload == object.__repr__(function)
    topic = _envelope_after(_rejected(topic=Local("orders.new"))).topic
    assert topic == "orders.new"
    assert type(topic) is str


class _Gone(str):
    pass


def test_a_value_whose_class_is_gone_comes_back_as_text(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = publish_state(_rejected(event_type=_Gone("OrderPlaced")))
    monkeypatch.delitem(globals(), "_Gone")

    with caplog.at_level(logging.WARNING):
        (result,) = read_publish_state(state, "flow.publish").errs

    assert result.envelope is not None
    assert type(result.envelope.event_type) is str
    assert result.envelope.event_type == "OrderPlaced"
    assert "a value in the recovery store cannot be unpickled, OrderPlaced stays" in caplog.text


@pytest.mark.parametrize(
    ("state", "held"),
    [(sequence_state(BY_SEQUENCE), BY_SEQUENCE), (durable_state(DURABLE), DURABLE)],
)
def test_a_sources_state_comes_back_as_it_was(state: object, held: object) -> None:
    resumed = read_source_state(plain(pickle.dumps(state)), "flow.in")

    assert resumed == held
    assert type(resumed) is type(held)


def test_the_state_of_a_source_is_its_kind_its_version_and_plain_values() -> None:
    assert sequence_state(BY_SEQUENCE) == ("sequence", 2, 7, "2026-01-01T00:00:00Z", 100)
    ranges = ((1, 5, 100), (7, 7, 100))
    assert durable_state(DURABLE) == ("durable", 2, ranges, "reader", "2026-01-01T00:00:00Z")


# From before states had a version


def test_a_pickled_report_is_found_by_its_former_name() -> None:
    # As pickle writes it: the class by its path, its fields, a new object of them.
    pickled = b"\x80\x04\x8c\x1bbytewax_jetstream.operators\x8c\x07_Report\x93]]]\x87\x81."

    assert pickle.loads(pickled) == Report([], [], [])
    assert operators._Report is Report


def test_a_report_without_a_version_is_read() -> None:
    old = pickle.loads(pickle.dumps(REPORT))

    assert read_publish_state(old, "flow.publish") == REPORT


def test_a_report_without_a_version_is_written_again_with_one() -> None:
    resumed = read_publish_state(REPORT, "flow.publish")

    assert _resumed(resumed) == REPORT


@pytest.mark.parametrize(
    ("state", "resumed"),
    [
        (7, SequenceState(7, None, 0)),
        (("sequence", 1, 7), SequenceState(7, None, 0)),
        ((), DurableState((), None, None)),
        (RANGES, DurableState(RANGES, None, None)),
        (("durable", 1, RANGES), DurableState(RANGES, None, None)),
    ],
)
def test_a_sources_older_state_is_read_without_its_stream_or_consumer(
    state: object, resumed: object
) -> None:
    assert read_source_state(state, "flow.in") == resumed


# What is not understood

Read = Callable[[object, str], object]


@pytest.mark.parametrize(
    ("read", "state", "understood"),
    [
        (read_publish_state, ("publish", 2, (), (), (), "more"), 1),
        (read_publish_state, ("publish", 2), 1),
        (read_source_state, ("sequence", 3, 7), 2),
        (read_source_state, ("durable", 3, ()), 2),
    ],
)
def test_a_newer_state_is_refused_with_both_versions(
    read: Read, state: tuple[Any, ...], understood: int
) -> None:
    with pytest.raises(JetStreamPipelineError) as caught:
        read(state, "flow.step")

    assert str(caught.value) == (
        f"step flow.step found recovery state of version {state[1]}, and this version of "
        f"bytewax_jetstream understands version {understood}: run the version that wrote it, or a "
        "newer one"
    )


@pytest.mark.parametrize(
    ("read", "state", "found", "understood"),
    [
        (read_publish_state, ("durable", 1, ()), "of kind durable", "publish"),
        (read_publish_state, ("window", 2, ()), "of kind window", "publish"),
        (read_publish_state, {"count": 1}, "of type dict", "publish"),
        (read_publish_state, 7, "of type int", "publish"),
        (read_publish_state, (), "of type tuple", "publish"),
        (read_publish_state, ("publish", 1, 2), "of type tuple", "publish"),
        (read_source_state, ("publish", 1, (), (), ()), "of kind publish", "sequence or durable"),
        (read_source_state, ("sequence", 1, "7"), "of type tuple", "sequence or durable"),
        (read_source_state, "7", "of type str", "sequence or durable"),
        (read_source_state, {"count": 1}, "of type dict", "sequence or durable"),
    ],
)
def test_the_state_of_another_step_is_refused(
    read: Read, state: object, found: str, understood: str
) -> None:
    with pytest.raises(JetStreamPipelineError) as caught:
        read(state, "flow.step")

    assert str(caught.value) == (
        f"step flow.step found recovery state {found}, and understands {understood}: it is another "
        "step's, so give this one another step id"
    )


def test_a_source_that_cannot_resume_says_so_as_a_source_error() -> None:
    with pytest.raises(SourceError):
        read_source_state(("sequence", 3, 7), "flow.in")


@pytest.mark.parametrize(
    "state",
    [
        ("publish", 1, ((),), (), ()),
        ("publish", 1, (("x",),), (), ()),
        ("publish", 1, (), (), (("step", 0),)),
    ],
)
def test_damaged_state_of_a_publish_step_is_refused_by_name(state: object) -> None:
    with pytest.raises(JetStreamPipelineError, match=r"^step flow\.out found recovery state"):
        read_publish_state(state, "flow.out")


@pytest.mark.parametrize(
    "state",
    [
        ("sequence", 1, True),
        ("sequence", 1, -5),
        ("sequence", 1, 2**80),
        ("sequence", 2, 7),
        ("sequence", 2, 7, None, 100),
        ("sequence", 2, 7, "2026-01-01T00:00:00Z", -1),
        ("durable", 2, ()),
        ("durable", 2, RANGES, "reader", 7),
        ("durable", 2, ((1, 2),), "reader", "2026-01-01T00:00:00Z"),
        ("durable", 1, ((1, 2),)),
        ("durable", 1, (1, 2)),
        ((),),
        True,
        -5,
    ],
)
def test_damaged_state_of_a_source_is_refused_by_name(state: object) -> None:
    with pytest.raises(SourceError, match=r"^step flow\.in found recovery state"):
        read_source_state(state, "flow.in")

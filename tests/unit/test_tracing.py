"""Spans of batches: for sampled traces only, with few links, ended with their results."""

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bytewax_jetstream import tracing
from bytewax_jetstream.envelope import Envelope, Headers
from bytewax_jetstream.errors import RunError
from bytewax_jetstream.tracing import BatchSpans, check_tracing


def _parent(trace: int, *, flags: str = "01") -> str:
    return f"00-{trace:032x}-{trace:016x}-{flags}"


def _envelopes(*headers: Any) -> list[Envelope]:
    return [Envelope("t", b"", f"e-{n}", headers=each) for n, each in enumerate(headers)]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What is exported."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", lambda: provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


def _traces(span: ReadableSpan) -> list[int]:
    """The traces that a span belongs to, its own first."""
    assert span.context is not None
    return [span.context.trace_id] + [link.context.trace_id for link in span.links]


@pytest.mark.parametrize(
    "headers",
    [
        None,
        {},
        {"other": "x"},
        {"traceparent": _parent(1, flags="00")},
        {"traceparent": _parent(1, flags="02")},
        {"traceparent": _parent(0)},
        {"traceparent": "00-abc"},
        {"traceparent": ""},
        {"traceparent": None},
        {"traceparent": 7},
        [("traceparent",)],
        [("traceparent", b"\xff")],
        7,
    ],
)
def test_a_batch_without_a_sampled_trace_leaves_no_span(
    spans: InMemorySpanExporter, headers: Any
) -> None:
    batches = BatchSpans("flow.publish", 0, "kafka")

    batches.submitted(_envelopes(headers), 1)
    batches.settled(1)

    assert not spans.get_finished_spans()


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": _parent(7)},
        {"Traceparent": _parent(7)},
        {"traceparent": _parent(7).encode()},
        {"traceparent": _parent(7, flags="03")},
        {"traceparent": "cc" + _parent(7)[2:] + "-and-more"},
        [("a", "b"), ("traceparent", _parent(7))],
        Headers((("traceparent", _parent(7)),)),
    ],
)
def test_a_batch_continues_the_trace_of_a_message(
    spans: InMemorySpanExporter, headers: Any
) -> None:
    batches = BatchSpans("flow.publish", 3, "jetstream")

    batches.submitted(_envelopes(None, headers), 5)
    batches.settled(2)

    (span,) = spans.get_finished_spans()
    assert _traces(span) == [7]
    assert span.parent is not None
    assert span.parent.span_id == 7
    assert span.name == "publish flow.publish"
    assert dict(span.attributes or {}) == {
        "messaging.system": "nats",
        "messaging.operation.type": "send",
        "messaging.batch.message_count": 2,
        "bytewax.step": "flow.publish",
        "bytewax.worker": 3,
        "bytewax.epoch": 5,
    }


def test_links_are_few_and_each_trace_comes_once(spans: InMemorySpanExporter) -> None:
    batches = BatchSpans("flow.publish", 0, "kafka")
    headers = [{"traceparent": _parent(1 + n // 2)} for n in range(1000)]

    batches.submitted(_envelopes(*headers), 1)
    batches.settled(1000)

    (span,) = spans.get_finished_spans()
    assert _traces(span) == list(range(1, 33))


def test_a_span_ends_when_its_batch_has_its_results(spans: InMemorySpanExporter) -> None:
    batches = BatchSpans("flow.publish", 0, "kafka")
    batches.submitted(_envelopes({"traceparent": _parent(1)}, None), 1)
    batches.submitted(_envelopes(None, None), 1)
    batches.submitted(_envelopes({"traceparent": _parent(2)}), 1)

    ended = []
    for count in (1, 1, 2, 1):
        batches.settled(count)
        ended.append(len(spans.get_finished_spans()))

    assert ended == [0, 1, 1, 2]


def test_a_run_that_stops_marks_what_is_open(spans: InMemorySpanExporter) -> None:
    batches = BatchSpans("flow.publish", 0, "kafka")
    batches.submitted(_envelopes({"traceparent": _parent(1)}), 1)

    batches.failed(ValueError("e-1 is unknown"))

    (span,) = spans.get_finished_spans()
    assert not span.status.is_ok
    assert span.status.description == "e-1 is unknown"


def test_tracing_is_off_by_default() -> None:
    assert not check_tracing()


@pytest.mark.parametrize(
    ("module", "exporter", "said"),
    [
        (None, "", r"pip install 'bytewax-jetstream\[otel\]'"),
        ("there", "jaeger", "OTEL_TRACES_EXPORTER is jaeger: set otlp or none"),
    ],
)
def test_tracing_that_cannot_be_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, module: object, exporter: str, said: str
) -> None:
    monkeypatch.setenv("BYTEWAX_JETSTREAM_TRACING", "1")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", exporter)

    def find(name: str) -> object:
        if module is None:
            raise ModuleNotFoundError(name)
        return module

    monkeypatch.setattr("importlib.util.find_spec", find)

    with pytest.raises(RunError, match=said):
        check_tracing()

"""Spans of batches, for messages that come with a sampled `traceparent` (extra `otel`).

What a message brings along is published as it came: `traceparent` and `tracestate` are headers like
any other. A span costs about as much as publishing a hundred messages, so there is one for a batch,
and only if a message in it belongs to a sampled trace. It continues the first such trace, and has
links to the others, at most 32 in all.

It begins when the batch is handed to the pool, and ends when as many envelopes of its lane have
their results as had been handed over with it.
"""

import atexit
import importlib.util
import os
import re
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from .envelope import Envelope
from .errors import RunError
from .exit_codes import before_exit_now
from .settings import TracingSettings

if TYPE_CHECKING:  # an extra
    from opentelemetry.trace import Span, SpanContext, Tracer

__all__ = ["BatchSpans", "check_tracing"]

MOST_LINKS = 32
FLUSH_SECONDS = 3.0
"""For the last spans, at the end of the process: a collector that is away must not keep it."""
NAMES = ("traceparent", "Traceparent")
"""As W3C writes it, and as HTTP libraries do that capitalize names."""
SAMPLED = re.compile(
    r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f][13579bdf](-.*)?"
).fullmatch
ZERO = re.compile("0+").fullmatch


def check_tracing() -> bool:
    """Whether tracing is switched on.

    :raises RunError: when it is, and cannot be.
    """
    if not TracingSettings().tracing:
        return False
    if not _is_installed():
        raise RunError(
            "tracing is on, and OpenTelemetry is not installed: pip install "
            "'bytewax-jetstream[otel]', or leave BYTEWAX_JETSTREAM_TRACING out"
        )
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if exporter not in ("otlp", "none"):
        raise RunError(
            f"OTEL_TRACES_EXPORTER is {exporter}: set otlp or none, or set up a tracer provider in "
            "the program that defines the dataflow"
        )
    return True


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:  # of one of the packages around it
        return False


class BatchSpans:
    """The spans of one lane's batches; used by one thread.

    :arg step: The publish step.
    :arg broker: `jetstream` or `kafka`.
    """

    def __init__(self, step: str, worker: int, broker: str) -> None:
        self._step, self._worker, self._broker = step, worker, broker
        self._tracer = _tracer()
        self._open: deque[tuple[int, Span]] = deque()
        """Each with how many envelopes had been submitted by its end."""
        self._submitted = self._settled = 0

    def submitted(self, envelopes: list[Envelope], epoch: int) -> None:
        """A batch is handed over."""
        self._submitted += len(envelopes)
        sampled = _sampled(envelopes)
        if sampled:
            self._open.append((self._submitted, self._start(sampled, envelopes, epoch)))

    def settled(self, count: int) -> None:
        """So many envelopes have their results."""
        self._settled += count
        while self._open and self._open[0][0] <= self._settled:
            self._open.popleft()[1].end()

    def failed(self, error: Exception) -> None:
        """The run stops: what is open has no result, or a bad one."""
        from opentelemetry.trace import StatusCode

        while self._open:
            _, span = self._open.popleft()
            span.set_status(StatusCode.ERROR, str(error))
            span.end()

    def _start(self, sampled: list[str], envelopes: list[Envelope], epoch: int) -> "Span":
        from opentelemetry.trace import Link, NonRecordingSpan, SpanKind, set_span_in_context

        first, *others = map(_context, sampled)
        return self._tracer.start_span(
            f"publish {self._step}",
            set_span_in_context(NonRecordingSpan(first)),
            SpanKind.PRODUCER,
            {
                "messaging.system": "kafka" if self._broker == "kafka" else "nats",
                "messaging.operation.type": "send",
                "messaging.batch.message_count": len(envelopes),
                "bytewax.step": self._step,
                "bytewax.worker": self._worker,
                "bytewax.epoch": epoch,
            },
            [Link(context) for context in others],
        )


def _sampled(envelopes: Iterable[Envelope]) -> list[str]:
    """The `traceparent` of messages that belong to a sampled trace, each once."""
    found: dict[str, None] = {}
    for envelope in envelopes:
        value = None if envelope.headers is None else _parent(envelope.headers)
        if value is None or value in found:
            continue
        match = SAMPLED(value)
        if match is not None and not ZERO(match[1]) and not ZERO(match[2]):
            found[value] = None
            if len(found) == MOST_LINKS:
                break
    return list(found)


def _parent(headers: Any) -> str | None:
    """The header as text; None where there is none, or something else in its place."""
    try:
        if isinstance(headers, Mapping):
            named = next((headers[name] for name in NAMES if name in headers), None)
        else:
            named = next((value for name, value in headers if name in NAMES), None)
    except Exception:  # code of the user's type; the publisher rejects such an envelope
        return None
    if isinstance(named, bytes):
        return named.decode("ascii", "replace")
    return named if isinstance(named, str) else None


def _context(parent: str) -> "SpanContext":
    from opentelemetry.trace import SpanContext, TraceFlags

    _, trace, span, *_ = parent.split("-")
    return SpanContext(int(trace, 16), int(span, 16), True, TraceFlags(TraceFlags.SAMPLED))


@cache
def _tracer() -> "Tracer":
    """The program's own tracer provider, or else one that exports as the variables say."""
    from opentelemetry import trace

    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        _set_up()
    return trace.get_tracer("bytewax_jetstream")


def _set_up() -> None:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # What the variables name goes before a default of ours.
    resource = Resource.create()
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    if not named:
        resource = resource.merge(Resource({"service.name": "bytewax-jetstream"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    if os.environ.get("OTEL_TRACES_EXPORTER", "").strip() != "none":
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)

    def shut_down() -> None:
        flushing = threading.Thread(target=provider.shutdown, daemon=True)
        flushing.start()
        flushing.join(FLUSH_SECONDS)

    atexit.register(shut_down)
    before_exit_now.append(provider.shutdown)

"""Traces of a real run: headers go on as they came, batches leave spans at a collector."""

import socket
import textwrap
from contextlib import AbstractContextManager
from pathlib import Path

from bytewax_jetstream.envelope import Envelope
from bytewax_jetstream.exit_codes import ExitCode
from bytewax_jetstream.testing import NatsServer
from tests.support.collector import Collector
from tests.support.lanes import jetstream, publish
from tests.support.processes import Process, start_run
from tests.support.streams import make_stream, stored

COUNT = 500
STATE = "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"
FLOW = """
    import os
    import bytewax.operators as op
    from bytewax.dataflow import Dataflow
    import bytewax_jetstream.operators as jop
    from bytewax_jetstream.bridge import from_jetstream
    from bytewax_jetstream.settings import JetStreamSettings

    settings = JetStreamSettings()
    flow = Dataflow("copy")
    read = jop.input("in", flow, settings, stream="IN", tail=False, batch_size=100)
    made = op.map("made", read.oks, lambda message: from_jetstream(message, "out.all"))
    jop.output("out", made, settings)
"""


CUT_OFF = """
    from itertools import count
    from bytewax_jetstream.exit_codes import exit_now
    numbers, results = count(1), jop.publish("out", made, settings)
    op.inspect("end", results.oks, lambda *_: next(numbers) < 500 or exit_now(3))
"""


def _parent(number: int) -> str:
    """Every tenth message belongs to a sampled trace; the others to one that is not."""
    return f"00-{number + 1:032x}-{number + 1:016x}-{'00' if number % 10 else '01'}"


def _run(
    server: NatsServer, folder: Path, *, flow: str = FLOW, **environment: str
) -> AbstractContextManager[Process]:
    make_stream(server.url, "IN", "in")
    make_stream(server.url, "OUT", "out.*")
    publish(
        jetstream(server.url),
        *[
            Envelope("in", b"x", f"e-{n}", headers={"traceparent": _parent(n), "tracestate": STATE})
            for n in range(COUNT)
        ],
    )
    (folder / "copying.py").write_text(textwrap.dedent(flow))
    return start_run(
        "copying",
        log=folder / "log",
        environment={"BYTEWAX_JETSTREAM_SERVERS": server.url, **environment},
        cwd=folder,
    )


def _published(server: NatsServer) -> list[tuple[str, str]]:
    """The trace headers of what was published, as they lie in the stream."""
    headers = [message.headers for message in stored(server.url, "OUT")]
    return [(each["traceparent"], each["tracestate"]) for each in headers]


def test_trace_headers_go_on_and_sampled_batches_leave_spans(
    own_nats_server: NatsServer, tmp_path: Path
) -> None:
    with (
        Collector() as collector,
        _run(
            own_nats_server,
            tmp_path,
            BYTEWAX_JETSTREAM_TRACING="1",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_SERVICE_NAME="copies",
        ) as run,
    ):
        assert run.end() == ExitCode.STORED, run.log

    assert _published(own_nats_server) == [(_parent(n), STATE) for n in range(COUNT)]
    assert collector.services == {"copies"}
    assert 1 <= len(collector.spans) <= COUNT / 10
    ids = [[span.trace_id, *(link.trace_id for link in span.links)] for span in collector.spans]
    linked = {int.from_bytes(each) for every in ids for each in every}
    assert linked <= {n + 1 for n in range(0, COUNT, 10)}
    assert max(map(len, ids)) <= 32
    assert {span.name for span in collector.spans} == {"publish copy.out"}
    assert all(span.end_time_unix_nano > span.start_time_unix_nano for span in collector.spans)


def test_a_process_that_is_cut_off_still_exports_the_spans_that_have_ended(
    own_nats_server: NatsServer, tmp_path: Path
) -> None:
    with (
        Collector() as collector,
        _run(
            own_nats_server,
            tmp_path,
            flow=FLOW[: FLOW.index("jop.output")] + CUT_OFF.lstrip(),
            BYTEWAX_JETSTREAM_TRACING="1",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        ) as run,
    ):
        assert run.end() == ExitCode.UNKNOWN, run.log

    assert collector.spans


def test_without_the_switch_nothing_is_exported_or_loaded(
    own_nats_server: NatsServer, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, sys\n"
        "atexit.register(lambda: print('loaded', 'opentelemetry' in sys.modules))\n"
    )
    with (
        Collector() as collector,
        _run(
            own_nats_server,
            tmp_path,
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[2]}",
        ) as run,
    ):
        assert run.end() == ExitCode.STORED, run.log

    assert "loaded False" in run.log
    assert not collector.spans
    assert _published(own_nats_server) == [(_parent(n), STATE) for n in range(COUNT)]


def test_a_collector_that_is_away_does_not_keep_the_run(
    own_nats_server: NatsServer, tmp_path: Path
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        _run(
            own_nats_server,
            tmp_path,
            BYTEWAX_JETSTREAM_TRACING="1",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}",
        ) as run,
    ):
        run.says("ACK pool closed")
        # Three seconds for the last spans.
        assert run.end(25) == ExitCode.STORED, run.log
    assert len(_published(own_nats_server)) == COUNT

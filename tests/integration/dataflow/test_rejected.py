"""Envelopes that are rejected, items that are no envelopes, and values that cannot be pickled, in
dataflows: nothing is lost in silence, and no run fails for the value of one envelope.
"""

import logging
import pickle
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.errors import BytewaxRuntimeError
from bytewax.testing import TestingSink

import bytewax_jetstream.operators as jop
from bytewax_jetstream.envelope import Envelope, PublishResult
from bytewax_jetstream.errors import PublishError
from bytewax_jetstream.settings import JetStreamSettings
from bytewax_jetstream.sinks import JetStreamSink
from bytewax_jetstream.testing import NatsServer
from tests.support.dataflows import Envelopes, publishing, recovery_store, root_cause, run
from tests.support.lanes import jetstream
from tests.support.streams import FLAWLESS, Names, audit, envelopes, make_stream
from tests.support.ways import workers_1_2

EVERY_BATCH = timedelta(0)
"""An epoch for each batch of the source."""


@pytest.fixture
def stream(nats_server: NatsServer, names: Names) -> str:
    """A stream for the test's own messages, on the subject of its name."""
    name = names()
    make_stream(nats_server.url, name, name)
    return name


# Nobody reads `errs`


def _oks_only(source: Envelopes, settings: JetStreamSettings) -> tuple[Dataflow, list[Any]]:
    flow = Dataflow("flow")
    oks: list[PublishResult] = []
    out = jop.publish("publish", op.input("in", flow, source), settings)
    op.output("oks", out.oks, TestingSink(oks))
    return flow, oks


@workers_1_2
def test_flow_that_reads_oks_only_stops_when_no_stream_covers_its_subject(
    nats_server: NatsServer, workers: int
) -> None:
    source = Envelopes(envelopes(1_000, "nobodys"), envelopes(1_000, "nobodys"))
    flow, oks = _oks_only(source, jetstream(nats_server.url))

    with pytest.raises(BytewaxRuntimeError) as stopped:
        run(flow, workers=workers)

    cause = root_cause(stopped.value)
    assert isinstance(cause, PublishError)
    assert cause.topic == "nobodys"
    assert "is rejected: no stream covers" in str(cause)
    assert str(cause).endswith(
        "; the run stops, because no step reads the errs of flow.publish: read "
        "them to go on without such envelopes"
    )
    assert oks == []


def test_epoch_of_a_rejected_envelope_that_nobody_reads_is_replayed(
    nats_server: NatsServer, stream: str, tmp_path: Path
) -> None:
    batch = envelopes(300, stream)
    bad = [each._replace(topic="") if each.event_id == "e-155" else each for each in batch]
    store = recovery_store(tmp_path / "store")
    settings = jetstream(nats_server.url)
    flow, _ = _oks_only(Envelopes(bad), settings)
    with pytest.raises(BytewaxRuntimeError):
        run(flow, store=store, epoch=EVERY_BATCH)

    asked: list[int] = []
    flow, _ = _oks_only(Envelopes(batch, before=asked.append), settings)
    run(flow, store=store, epoch=EVERY_BATCH)

    assert asked[0] == 150
    assert audit(nats_server.url, stream, batch) == FLAWLESS


@workers_1_2
def test_reasons_of_rejected_envelopes_are_logged_once_with_a_count(
    nats_server: NatsServer, stream: str, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    bad = [Envelope("", b"", event_id=f"bad-{number}") for number in range(500)]
    made = publishing(
        Envelopes(bad[:250], bad[250:], envelopes(100, stream)), jetstream(nats_server.url)
    )
    with caplog.at_level(logging.WARNING):
        run(made.flow, workers=workers)

    assert len(made.errs) == 500
    logged = [line for line in caplog.messages if "rejected" in line]
    assert len(logged) == 2
    assert "is rejected: the topic is empty: give the envelope a subject; further" in logged[0]
    assert logged[1] == (
        "flow.publish: 500 envelopes were rejected: the topic is empty: give the envelope a subject"
    )


@pytest.mark.parametrize("read", ["oks", "everything"])
def test_unknown_envelopes_are_not_called_rejected(
    own_nats_server: NatsServer, caplog: pytest.LogCaptureFixture, read: str
) -> None:
    server = own_nats_server
    make_stream(server.url, "GONE", "gone")

    def kill_first(index: int) -> None:
        if index == 100:
            server.kill()

    source = Envelopes(envelopes(200, "gone"), before=kill_first)
    settings = jetstream(server.url, ack_timeout=0.2, delivery_timeout=0.5)
    flow = (
        publishing(source, settings).flow
        if read == "everything"
        else _oks_only(source, settings)[0]
    )
    with pytest.raises(BytewaxRuntimeError) as stopped:
        run(flow)

    reason = str(root_cause(stopped.value))
    assert reason.startswith("flow.publish stops without committing its epoch: envelope e-")
    assert " is unknown: " in reason
    assert "no step reads" not in reason
    assert not [line for line in caplog.messages if "rejected" in line]


# Items that are no envelopes


class _Silent:
    def __repr__(self) -> str:
        raise RuntimeError("it has no text")


def _to_publish(flow: Dataflow, up: Any, settings: JetStreamSettings) -> None:
    op.output("errs", jop.publish("step", up, settings).errs, TestingSink([]))


def _to_output(flow: Dataflow, up: Any, settings: JetStreamSettings) -> None:
    jop.output("step", up, settings)


def _to_sink(flow: Dataflow, up: Any, settings: JetStreamSettings) -> None:
    op.output("step", up, JetStreamSink(settings))


@pytest.mark.parametrize("to", [_to_publish, _to_output, _to_sink])
@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"order": 1}, "got dict {'order': 1}: make an Envelope of each item before this step"),
        ([1] * 1000, "got list [" + "1, " * 25 + "1...: make an Envelope"),
        (("key", Envelope("a", b"", "1")), "remove the key with op.key_rm before this step"),
        (None, "got NoneType None: make an Envelope"),
        (_Silent(), "got _Silent <tests."),
        (("topic", b"payload", "id", None, None, None, None, None), "got tuple ('topic', b'payl"),
    ],
    ids=["a dict", "a long list", "a key and an envelope", "None", "no repr", "a bare tuple"],
)
def test_an_item_that_is_no_envelope_is_named_and_its_epoch_is_not_committed(
    nats_server: NatsServer,
    stream: str,
    tmp_path: Path,
    to: Callable[[Dataflow, Any, JetStreamSettings], None],
    item: Any,
    says: str,
) -> None:
    batch = envelopes(40, stream)
    store = recovery_store(tmp_path / "store")
    settings = jetstream(nats_server.url)

    def flow_of(items: list[Any], before: Callable[[int], object]) -> Dataflow:
        flow = Dataflow("flow")
        to(flow, op.input("in", flow, Envelopes(items, before=before)), settings)
        return flow

    flow = flow_of([*batch[:25], item, *batch[26:]], lambda index: None)
    with pytest.raises(BytewaxRuntimeError) as stopped:
        run(flow, store=store, epoch=EVERY_BATCH)

    cause = root_cause(stopped.value)
    assert type(cause) is TypeError
    assert str(cause).startswith("step flow.step publishes Envelopes, and got ")
    assert says in str(cause)
    assert len(str(cause)) < 220
    asked: list[int] = []
    run(flow_of(batch, asked.append), store=store, epoch=EVERY_BATCH)
    assert asked[0] == 20
    assert audit(nats_server.url, stream, batch) == FLAWLESS


# Values that cannot be pickled


class _Unpicklable(str):
    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> Any:
        raise RuntimeError("not to be pickled")


class _Unprintable(_Unpicklable):
    __slots__ = ()

    def __format__(self, spec: str) -> str:
        raise RuntimeError("not to be formatted")

    def __str__(self) -> str:
        raise RuntimeError("not to be shown")

    __repr__ = __str__


VALUES: dict[str, Any] = {
    "a memoryview": memoryview(b"value"),
    "a function": lambda: None,
    "a str that cannot be pickled": _Unpicklable("value"),
    "a str that cannot be shown": _Unprintable("value"),
    "headers that cannot be pickled": {"name": _Unprintable("value")},
}


@pytest.mark.parametrize("field", Envelope._fields)
@pytest.mark.parametrize("value", VALUES)
def test_a_value_that_cannot_be_pickled_fails_no_run_with_recovery(
    nats_server: NatsServer, stream: str, tmp_path: Path, field: str, value: str
) -> None:
    good = envelopes(1, stream)[0]
    odd = good._replace(**{"event_id": "odd", field: VALUES[value]})
    made = publishing(Envelopes([good, odd], batch_size=1), jetstream(nats_server.url))
    store = recovery_store(tmp_path / "store")

    run(made.flow, store=store, epoch=EVERY_BATCH)
    run(made.flow, store=store, epoch=EVERY_BATCH)

    assert [each.stored + each.rejected for each in made.checkpoints] == [1, 1]
    assert {type(each.last_event_id) for each in made.checkpoints} == {str}
    assert len(made.oks) + len(made.errs) == 2
    pickle.dumps((made.errs, made.checkpoints))


@pytest.mark.parametrize("value", VALUES)
def test_an_output_names_the_envelope_it_stops_at_whatever_its_id_is(
    nats_server: NatsServer, stream: str, value: str
) -> None:
    flow = Dataflow("flow")
    odd = envelopes(1, stream)[0]._replace(event_id=VALUES[value], topic="*")
    jop.output("out", op.input("in", flow, Envelopes([odd])), jetstream(nats_server.url))

    with pytest.raises(BytewaxRuntimeError) as stopped:
        run(flow)

    cause = root_cause(stopped.value)
    assert isinstance(cause, PublishError)
    assert " on * is rejected: " in str(cause)
    assert len(cause.event_id or "") <= 80

"""Dataflows that publish to the broker in memory: results, stops and replays as with a real one."""

from pathlib import Path
from typing import Literal

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.errors import BytewaxRuntimeError
from bytewax.testing import TestingSource

import bytewax_jetstream.operators as jop
from bytewax_jetstream.envelope import Envelope, Outcome
from bytewax_jetstream.errors import PublishError
from bytewax_jetstream.publishing import Refusal, Verdict
from bytewax_jetstream.settings import PoolSettings
from bytewax_jetstream.testing.memory import MemoryBroker
from tests.support.dataflows import (
    CrashError,
    Envelopes,
    by_aggregate,
    publishing,
    recovery_store,
    root_cause,
    run,
)
from tests.support.streams import envelopes
from tests.support.ways import workers_1_2

LARGE = Refusal(Verdict.REJECT, "too large", 10054)


def _large(envelope: Envelope) -> Refusal | None:
    return LARGE if envelope.event_id == "e-70" else None


@workers_1_2
@pytest.mark.parametrize("like", ["jetstream", "kafka"])
def test_every_envelope_comes_back_as_a_result_and_epochs_as_checkpoints(
    like: Literal["jetstream", "kafka"], workers: int
) -> None:
    broker = MemoryBroker(like)
    broker.refuses = _large
    batch = envelopes(400, "orders", aggregates=40)
    made = publishing(Envelopes(*by_aggregate(batch)), broker.settings)

    run(made.flow, workers=workers)

    assert [result.event_id for result in made.errs] == ["e-70"]
    assert made.errs[0].envelope == batch[70]
    stored = sorted(message.event_id for message in broker.stored)
    assert stored == sorted(result.event_id for result in made.oks)
    assert len(stored) == 399
    assert {result.broker for result in made.oks} == {like}
    assert sum(checkpoint.stored for checkpoint in made.checkpoints) == 399
    assert sum(checkpoint.rejected for checkpoint in made.checkpoints) == 1


def test_an_output_step_stops_at_a_refused_envelope() -> None:
    broker = MemoryBroker()
    broker.refuses = _large
    flow = Dataflow("flow")
    source = TestingSource(envelopes(100, "orders"))
    jop.output("store", op.input("in", flow, source), broker.settings)

    with pytest.raises(BytewaxRuntimeError) as stopped:
        run(flow)

    cause = root_cause(stopped.value)
    assert isinstance(cause, PublishError)
    assert "e-70" in str(cause)
    assert "too large" in str(cause)


@pytest.mark.parametrize("like", ["jetstream", "kafka"])
def test_a_silent_broker_stops_the_run_and_its_epoch_is_published_again(
    like: Literal["jetstream", "kafka"], tmp_path: Path
) -> None:
    quick = PoolSettings(ack_timeout=0.1, delivery_timeout=1)
    broker = MemoryBroker(like, pool=quick)
    batch = envelopes(100, "orders")
    store = recovery_store(tmp_path / "store")

    def silence(index: int) -> None:
        if index == 50 and not broker.lost_answers:
            broker.loses_answers = 1.0

    made = publishing(Envelopes(batch, before=silence), broker.settings)
    with pytest.raises(BytewaxRuntimeError) as stopped:
        run(made.flow, store=store)

    assert "is unknown" in str(root_cause(stopped.value))
    assert not made.errs
    broker.loses_answers = 0.0
    run(made.flow, store=store)
    assert {result.event_id for result in made.oks} == {each.event_id for each in batch}
    stored = [message.event_id for message in broker.stored]
    assert set(stored) == {each.event_id for each in batch}
    assert (len(stored) == 100) is (like == "jetstream"), "Kafka stores a replay again"


def test_one_dataflow_publishes_to_two_brokers() -> None:
    one, other = MemoryBroker(), MemoryBroker("kafka")
    flow = Dataflow("flow")
    up = op.input("in", flow, TestingSource(envelopes(100, "orders")))
    jop.output("one", up, one.settings)
    jop.output("other", up, other.settings)

    run(flow)

    ids = {each.event_id for each in one.stored}
    assert len(ids) == 100
    assert {each.event_id for each in other.stored} == ids


def test_a_crash_replays_its_epoch_to_the_same_broker(tmp_path: Path) -> None:
    broker = MemoryBroker()
    batch = envelopes(200, "orders")
    store = recovery_store(tmp_path / "store")
    crashes = [CrashError("on purpose")]

    def crash(index: int) -> None:
        if index == 150 and crashes:
            raise crashes.pop()

    made = publishing(Envelopes(batch, before=crash), broker.settings)
    with pytest.raises(BytewaxRuntimeError):
        run(made.flow, store=store)
    run(made.flow, store=store)

    assert {result.outcome for result in made.oks} == {Outcome.STORED}
    assert {result.event_id for result in made.oks} == {each.event_id for each in batch}
    ids = sorted(message.event_id for message in broker.stored)
    assert ids == sorted(each.event_id for each in batch)

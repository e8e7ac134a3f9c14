"""Whether a step of a finished dataflow reads the `errs` of a publish step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow, Stream, operator
from bytewax.testing import TestingSink, TestingSource

import bytewax_jetstream.operators as jop
from bytewax_jetstream.dataflow.graph import is_read
from bytewax_jetstream.envelope import Envelope, PublishResult
from bytewax_jetstream.operators import PublishOut
from bytewax_jetstream.settings import JetStreamSettings


@dataclass(frozen=True)
class _Both:
    first: Stream[Any]
    second: Stream[Any]


@operator
def _hands_on(step_id: str, oks: Stream[Any], errs: Stream[Any]) -> _Both:
    """Takes both streams, reads neither, and gives both back."""
    return _Both(first=oks, second=errs)


@operator
def _writes_down(step_id: str, up: Stream[Any]) -> None:
    op.output("out", op.map("text", up, str), TestingSink([]))


@operator
def _publishes(step_id: str, up: Stream[Envelope]) -> PublishOut:
    return jop.publish("inner", up, JetStreamSettings())


def _out(name: str, stream: Stream[Any]) -> None:
    op.output(name, stream, TestingSink([]))


def _any(stream: Stream[Any]) -> Stream[Any]:
    return stream


def _merged(out: PublishOut) -> None:
    both: Stream[PublishResult] = op.merge("all", out.oks, out.errs)
    _out("out", both)


def _filtered_from_both(out: PublishOut) -> None:
    both: Stream[PublishResult] = op.merge("all", out.checkpoints, out.oks, out.errs)
    _out("out", op.filter("stored", both, lambda result: True))


READING: dict[str, Callable[[PublishOut], object]] = {
    "an output": lambda out: _out("out", out.errs),
    "a map": lambda out: op.map("map", out.errs, str),
    "an inspection": lambda out: op.inspect("look", out.errs),
    "a merge with oks": _merged,
    "a merge and a filter": _filtered_from_both,
    "a key": lambda out: op.key_on("key", out.errs, lambda result: result.topic),
    "a step of the user's own": lambda out: _writes_down("own", out.errs),
    "a step after one that only hands it on": lambda out: _out(
        "out", _hands_on("own", out.oks, out.errs).second
    ),
    "a publish step": lambda out: jop.publish("dead", _any(out.errs), JetStreamSettings()),
}
NOT_READING: dict[str, Callable[[PublishOut], object]] = {
    "no step": lambda out: None,
    "an output of oks": lambda out: _out("out", out.oks),
    "steps for oks and checkpoints": lambda out: op.merge("all", out.oks, out.checkpoints),
    "a step that only hands it on": lambda out: _out(
        "out", _hands_on("own", out.oks, out.errs).first
    ),
    "an attribute that is looked at": lambda out: out.errs.stream_id,
}


def _read(use: Callable[[PublishOut], object], *, inside: bool) -> bool:
    flow = Dataflow("flow")
    up: Stream[Envelope] = op.input("in", flow, TestingSource([]))
    make = _publishes if inside else jop.publish
    out = make("publish", up, *(() if inside else (JetStreamSettings(),)))
    assert not is_read(out.errs), "nothing reads it yet"
    use(out)
    return is_read(out.errs)


@pytest.mark.parametrize("inside", [False, True], ids=["of the flow", "inside a user's operator"])
@pytest.mark.parametrize("use", READING)
def test_errs_are_read_by(use: str, inside: bool) -> None:
    assert _read(READING[use], inside=inside)


@pytest.mark.parametrize("inside", [False, True], ids=["of the flow", "inside a user's operator"])
@pytest.mark.parametrize("use", NOT_READING)
def test_errs_are_not_read_by(use: str, inside: bool) -> None:
    assert not _read(NOT_READING[use], inside=inside)

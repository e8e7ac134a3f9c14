"""The pool on an event loop of uvloop, for programs that install it for all loops."""

import asyncio

import pytest
import uvloop

from bytewax_jetstream.dispatch import Dispatch
from bytewax_jetstream.envelope import Outcome
from tests.support.fake_publisher import FakePublisher
from tests.support.pooling import envelopes, pooled


def test_timer_that_is_due_at_once_can_be_set_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a timer is a plain handle there, which does not say when it is due."""
    monkeypatch.setattr(asyncio, "new_event_loop", uvloop.new_event_loop)
    monkeypatch.setattr(Dispatch, "next_tick", lambda self: 0.0)
    with pooled() as pool:
        lane = pool.lane(FakePublisher(), name="lane")
        for _ in range(3):
            lane.submit(envelopes(5))
            assert {result.outcome for result in lane.flush()} == {Outcome.STORED}

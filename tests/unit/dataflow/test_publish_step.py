import pickle

import pytest

from bytewax_jetstream.dataflow.lanes import Lanes
from bytewax_jetstream.dataflow.publish_step import EpochTally, PublishLogic, Readers, _Pack
from bytewax_jetstream.envelope import Checkpoint, Envelope
from bytewax_jetstream.errors import JetStreamPipelineError, PoolClosedError
from bytewax_jetstream.pool import AckPool
from bytewax_jetstream.pool.results import Delivery
from bytewax_jetstream.recovery_state import Report, publish_state
from bytewax_jetstream.settings import JetStreamSettings
from tests.support.fake_publisher import FakePublisher, stored

PENDING = Report([], [], [Checkpoint("flow.publish", 0, "worker-0", 3, 1, 0, 0, "order-1")])


def _logic(state: object | None) -> PublishLogic:
    """Before any envelope came, so that it needs no lane."""
    return PublishLogic(Lanes("flow.publish", JetStreamSettings()), state, Readers.OF_ALL)


def test_resumed_step_soon_passes_on_its_pending_results() -> None:
    logic = _logic(publish_state(PENDING))

    assert logic.notify_at() is not None
    assert list(logic.on_notify()[0]) == [PENDING]
    assert logic.notify_at() is None
    assert list(logic.on_notify()[0]) == []


@pytest.mark.parametrize("state", [publish_state(PENDING), PENDING], ids=["version 1", "before"])
def test_pending_results_of_a_resumed_step_are_in_its_next_state(state: object) -> None:
    logic = _logic(pickle.loads(pickle.dumps(state)))

    assert logic.snapshot() == publish_state(PENDING)
    logic.on_notify()
    assert logic.snapshot() == publish_state(Report([], [], []))


def test_a_step_that_finds_a_newer_state_does_not_start() -> None:
    with pytest.raises(JetStreamPipelineError, match=r"step flow\.publish found .* version 2"):
        _logic(("publish", 2))


class OpenSpans:
    """Spans of batches that have no results yet."""

    error: Exception | None = None

    def submitted(self, envelopes: list[Envelope], epoch: int) -> None:
        """As `BatchSpans`."""

    def failed(self, error: Exception) -> None:
        self.error = error


def test_spans_end_with_the_error_when_the_pool_takes_no_envelopes() -> None:
    publisher, spans, pack = FakePublisher(stored), OpenSpans(), _Pack([Envelope("t", b"", "e-1")])
    with AckPool() as pool:
        lane = pool.lane(publisher, name="worker-0")
        lane.close()
        logic = _logic(None)
        logic._lane, logic._spans = lane, spans  # type: ignore[assignment]
        with pytest.raises(PoolClosedError) as raised:
            logic.on_batch([pack])

    assert spans.error is raised.value


def test_epoch_becomes_long_once_after_half_of_its_shortest_duplicate_window() -> None:
    tally = EpochTally("flow.publish", 0, "worker-0", 3, began=100.0)
    assert not tally.became_long(1_000.0), "nothing is stored yet"
    for remembered in (float("inf"), 120.0, 20.0, 60.0):
        tally.add(Delivery([], [], 0, "order-1", remembered))

    assert not tally.became_long(110.0)
    assert tally.became_long(110.1)
    assert not tally.became_long(110.2)
    assert not tally.became_long(500.0)

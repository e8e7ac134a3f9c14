"""A lane: submit, collect, flush and close."""

import pytest

from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.errors import PoolClosedError, SettleTimeoutError
from tests.support.fake_publisher import FakePublisher, silent, stored
from tests.support.pooling import envelopes, pooled
from tests.support.waiting import until


def test_collect_returns_the_results_that_are_there_without_waiting() -> None:
    publisher = FakePublisher(
        lambda envelope: stored(envelope) if envelope.event_id != "e1" else None
    )
    with pooled() as pool:
        lane = pool.lane(publisher, name="lane")
        lane.submit(envelopes(3))
        until(lambda: lane.unsettled == 1)

        assert [result.event_id for result in lane.collect()] == ["e0", "e2"]
        assert lane.collect() == []
        publisher.release()
        assert [result.event_id for result in lane.flush()] == ["e1"]


def test_flush_raises_when_nothing_is_settled_in_time() -> None:
    with pooled() as pool:
        lane = pool.lane(FakePublisher(silent), name="lane")
        lane.submit(envelopes(3))
        with pytest.raises(
            SettleTimeoutError, match=r"^3 envelopes of lane lane are not settled after 0\.05 s: "
        ):
            lane.flush(0.05)


def test_closed_lane_settles_its_envelopes_as_unknown_and_frees_the_budget() -> None:
    publisher = FakePublisher(silent)
    with pooled(budget_messages=100) as pool:
        lane = pool.lane(publisher, name="lane")
        lane.submit(envelopes(100, aggregates=5))
        lane.close()
        results = lane.flush(10)

        assert {result.outcome for result in results} == {Outcome.UNKNOWN}
        assert {result.reason for result in results} == {
            "its lane was closed before it was answered"
        }
        assert len(results) == 100
        until(lambda: pool.unsettled == 0)


def test_closed_lane_takes_no_envelopes() -> None:
    with pooled() as pool:
        lane = pool.lane(FakePublisher(), name="lane")
        lane.close()
        with pytest.raises(PoolClosedError, match=r"^lane lane is closed: open another$"):
            lane.submit(envelopes(1))

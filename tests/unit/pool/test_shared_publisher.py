"""Publishers in the pool: shared by lanes, and independent of each other."""

import pytest

from bytewax_jetstream.envelope import Outcome
from tests.support.fake_publisher import FakePublisher, silent, stored
from tests.support.pooling import envelopes, pooled
from tests.support.waiting import until


def test_lane_without_a_connection_does_not_delay_another_broker() -> None:
    """A look that accepts for both brokers also sends for both, without waiting for an event."""
    with pooled() as pool:
        connected = pool.lane(FakePublisher(), name="connected")
        cut_off = pool.lane(FakePublisher(connects=False), name="cut off")
        for number in range(5):
            cut_off.submit(envelopes(3_000, prefix=f"{number}-"))
            connected.submit(envelopes(3))
            assert len(connected.flush(10)) == 3


def test_equal_publishers_share_a_connection_until_their_last_lane_closes() -> None:
    first, second = FakePublisher(identity="same"), FakePublisher(identity="same")
    with pooled() as pool:
        lanes = [pool.lane(publisher, name="lane") for publisher in (first, second)]
        for lane in lanes:
            lane.submit(envelopes(5))
            lane.flush()
        assert (first.starts, second.starts) == (1, 0)
        assert len(first.sent) == 10

        lanes[0].close()
        lanes[0].close()
        lanes[1].submit(envelopes(5))
        assert len(lanes[1].flush()) == 5
        assert first.closes == 0
        lanes[1].close()
        until(lambda: first.closes == 1)

        again = pool.lane(FakePublisher(identity="same"), name="again")
        again.submit(envelopes(5))
        assert len(again.flush()) == 5


def test_failed_start_is_raised_to_its_caller_and_may_be_tried_again() -> None:
    publisher = FakePublisher()
    publisher.fail_start = ConnectionRefusedError("no server there")
    with pooled() as pool:
        for _ in range(2):
            with pytest.raises(ConnectionRefusedError, match="no server there"):
                pool.lane(publisher, name="lane")
        assert publisher.closes == 2
        assert pool.statistics()["brokers"] == []

        publisher.fail_start = None
        lane = pool.lane(publisher, name="lane")
        lane.submit(envelopes(1))
        assert len(lane.flush()) == 1


def test_lost_connection_is_logged_and_unanswered_envelopes_go_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    publisher = FakePublisher(silent)
    with pooled() as pool:
        lane = pool.lane(publisher, name="lane")
        lane.submit(envelopes(5, aggregates=5))
        until(lambda: len(publisher.unanswered) == 5)
        publisher.tell(lambda events: events.disconnected("the server is gone"))
        publisher.answer = stored
        publisher.tell(lambda events: events.connected())
        results = lane.flush()

    assert "fake: the server is gone; 5 envelopes are sent again" in caplog.messages
    assert {(result.outcome, result.attempts) for result in results} == {(Outcome.STORED, 2)}


def test_failed_publisher_settles_everything_as_unknown() -> None:
    publisher = FakePublisher(silent)
    with pooled() as pool:
        lane, other = pool.lane(publisher, name="lane"), pool.lane(FakePublisher(), name="other")
        lane.submit(envelopes(5))
        publisher.tell(lambda events: events.failed("banned for life"))
        before = lane.flush(10)
        lane.submit(envelopes(5))
        after = lane.flush(10)
        other.submit(envelopes(5))

        assert {(result.outcome, result.reason) for result in before + after} == {
            (Outcome.UNKNOWN, "banned for life")
        }
        assert len(other.flush()) == 5

"""Replicated streams: which are in doubt, and which ids may be in process."""

from bytewax_jetstream.publishing import Refusal, Route, Verdict
from tests.support.dispatching import Driver, numbered


def test_batch_of_a_closed_lane_leaves_its_stream_in_doubt() -> None:
    driver = Driver(route=lambda topic: Route("R3", replicated=True, fresh=True), flow_interval=3)
    other = driver.new_lane()
    driver.submit(*numbered(1, 2))
    driver.append()
    driver.dispatch.remove_lane(driver.lane)
    driver.submit(*numbered(1, 2), lane=other)

    assert driver.counted("streams_in_doubt") == 1
    assert driver.sends() == [["1", "2"]]
    assert not driver.dispatch._batches.sent


def test_messages_behind_a_refused_one_go_as_a_batch_on_a_replicated_stream() -> None:
    driver = Driver(route=lambda topic: Route("R3", replicated=True, fresh=True), flow_interval=3)
    driver.submit(*numbered(1, 2, 3, 4))
    sent = driver.append()
    driver.dispatch.refused(sent.number, 1, Refusal(Verdict.REJECT, "no", 1), 0.0)
    driver.dispatch.batch_ended(sent.number, 1, 0.0)

    assert driver.sends() == [[], ["3", "4"]]  # the end of the first batch, and the second
    assert len(driver.dispatch._batches.sent) == 1

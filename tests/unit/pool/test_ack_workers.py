"""ACK workers: few are enough, whatever is in flight and whichever broker is silent."""

import asyncio

from tests.support.fake_publisher import POLICY, FakePublisher, silent, stored
from tests.support.pooling import envelopes, pooled
from tests.support.waiting import until


def test_more_silent_sends_than_ack_workers_hold_nothing_up() -> None:
    quiet = FakePublisher(silent, policy=POLICY._replace(max_send=1))
    half = FakePublisher(
        lambda envelope: stored(envelope) if envelope.event_id.startswith("good") else None
    )
    with pooled(ack_workers=2) as pool:
        silent_lanes = [pool.lane(quiet, name=f"silent-{number}") for number in range(4)]
        for number, lane in enumerate(silent_lanes):
            lane.submit(envelopes(25, prefix=f"silent-{number}-"))
        until(lambda: quiet.sends == 100)

        other = pool.lane(FakePublisher(), name="other broker")
        same = pool.lane(half, name="same broker")
        mute = pool.lane(half, name="same broker, silent")
        mute.submit(envelopes(50))
        for round_ in range(20):
            other.submit(envelopes(50, aggregates=3))
            same.submit(envelopes(50, prefix=f"good-{round_}-"))
            assert len(other.flush(10)) == 50
            assert len(same.flush(10)) == 50

        assert pool.statistics()["ack_workers"] == 2
        assert sum(lane.unsettled for lane in silent_lanes) == 100
        assert mute.unsettled == 50


def test_messages_in_flight_need_no_task_each() -> None:
    publisher = FakePublisher(silent)
    with pooled(ack_workers=2) as pool:
        lane = pool.lane(publisher, name="lane")
        before = {task.get_name() for task in asyncio.all_tasks(publisher.loop)}
        lane.submit(envelopes(10_000))
        until(lambda: len(publisher.unanswered) == 10_000)

        assert {task.get_name() for task in asyncio.all_tasks(publisher.loop)} == before == {
            "ack-worker-0", "ack-worker-1",
        }  # fmt: skip

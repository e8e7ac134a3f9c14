"""What a pool tells: envelopes, results, waits, budget; and what stays when it has closed."""

import time
from bisect import bisect_left
from collections import Counter

import pytest

from bytewax_jetstream.dispatch import SegmentStored, Settled, SinglesStored, Submission
from bytewax_jetstream.envelope import Envelope, Outcome
from bytewax_jetstream.metrics import table
from bytewax_jetstream.pool.results import waits
from bytewax_jetstream.publishing import Receipt, Refusal, Verdict
from tests.support.dispatching import entry, envelope, segment
from tests.support.fake_publisher import FakePublisher, silent, stored
from tests.support.metrics import Scrape, scrape
from tests.support.pooling import InThread, envelopes, held_up, pooled
from tests.support.waiting import until

RESULTS = ("stored_total", "rejected_total", "unknown_total")


def _grown(before: Scrape, after: Scrape, name: str, **labels: str) -> float:
    return after.sum(name, **labels) - before.sum(name, **labels)


def test_every_envelope_is_counted_as_submitted_and_once_as_its_result() -> None:
    publisher = FakePublisher(
        lambda each: (
            Refusal(Verdict.REJECT, "too large")
            if each.event_id == "e7"
            else Receipt("FAKE", None, 1, duplicate=each.event_id in ("e1", "e2"))
        )
    )
    before = scrape()
    with pooled() as pool:
        lane = pool.lane(publisher, name="lane", step="flow.counted", worker=3)
        lane.submit([*envelopes(1_500), Envelope("bad", b"", "bad")])
        lane.flush()
        lane.submit([Envelope("topic", b"", "late")])
        lane.flush()
        publisher.answer = silent
        lane.submit([Envelope("topic", b"", "lost")])
        until(lambda: scrape().sum("submitted_total", step_id="flow.counted") == 1_503)
    after = scrape()

    labels = {"broker": "fake", "step_id": "flow.counted", "worker_index": "3"}
    assert after.each("submitted_total", **labels) == [1_503]
    assert after.each("stored_total", **labels) == [1_500]
    assert after.each("duplicates_total", **labels) == [2]
    assert after.each("rejected_total", **labels) == [2]
    assert after.each("unknown_total", **labels) == [1], "the pool was closed before its answer"
    assert _grown(before, after, "result_latency_seconds_count", step_id="flow.counted") == 1_503


def test_each_wait_counts_from_its_own_submission_to_the_result() -> None:
    early, late = Submission(2.0, 1, 0, 1.0), Submission(2.0, 1, 0, 1.75)
    group = segment(*map(envelope, ("a", "b", "c")))
    group.submission = early
    singles = [entry(str(number)) for number in range(4)]
    for single, submission in zip(singles, (early, late, late, early), strict=True):
        single.submission = submission
    alone = entry("alone")
    alone.submission = Submission(1.5, 1)

    found = waits(
        [
            SegmentStored(group, Receipt()),
            SinglesStored(singles, [Receipt()] * 4),
            Settled(alone, Outcome.UNKNOWN, None, Refusal(Verdict.GIVE_UP, "silent")),
        ],
        3.0,
    )

    counted: Counter[float] = Counter()
    for seconds, count in found:
        counted[seconds] += count
    assert counted == {2.0: 3 + 2, 1.25: 2, 1.5: 1}


def test_latency_has_every_message_in_its_bucket_also_before_and_after_the_broker() -> None:
    step = "flow.honest"
    publisher = FakePublisher(stored)
    with pooled() as pool:
        lane = pool.lane(publisher, name="lane", step=step)
        lane.submit(envelopes(10))
        lane.flush()
        with held_up(pool):  # what waits for the pool's thread waits, too
            lane.submit(envelopes(5, prefix="held"))
            began = time.monotonic()
            until(lambda: time.monotonic() - began > 1.0)
        lane.flush()
        publisher.answer = silent
        lane.submit(envelopes(3, prefix="silent"))
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 0.5)
        publisher.release()
        lane.flush()
    seen = scrape()

    def up_to(seconds: float) -> float:
        (count,) = seen.each("result_latency_seconds_bucket", step_id=step, le=str(seconds))
        return count

    assert up_to(0.5) <= 10, "8 waited longer"
    assert up_to(1.0) <= 13, "5 waited longer"
    assert seen.sum("result_latency_seconds_count", step_id=step) == 18
    assert seen.sum("result_latency_seconds_sum", step_id=step) >= 5 * 1.0 + 3 * 0.5


def test_gathered_submissions_have_waited_since_the_first_of_them() -> None:
    publisher = FakePublisher()
    with pooled() as pool:
        lane = pool.lane(publisher, name="lane", step="flow.gathered")
        with held_up(pool):
            lane.submit(envelopes(1))
            began = time.monotonic()
            until(lambda: time.monotonic() - began > 0.5)
            lane.submit(envelopes(1, prefix="later"))
        lane.flush()
    assert publisher.prepared == [2], "they were accepted together"
    assert scrape().sum("result_latency_seconds_sum", step_id="flow.gathered") >= 2 * 0.5


def test_buckets_agree_with_the_results_of_the_same_envelopes() -> None:
    step = "flow.buckets"
    with pooled() as pool:
        lane = pool.lane(FakePublisher(), name="lane", step=step)
        lane.submit(envelopes(5_000, aggregates=13))
        results = lane.flush()
    seen = scrape()

    # A wait is at least as long as the time from acceptance to the answer.
    bounds = table.RESULT_LATENCY.buckets
    least = Counter(bisect_left(bounds, result.ack_seconds) for result in results)
    for index, bound in enumerate(bounds):
        (count,) = seen.each("result_latency_seconds_bucket", step_id=step, le=str(bound))
        assert count <= sum(least[each] for each in range(index + 1))
    assert seen.sum("result_latency_seconds_sum", step_id=step) >= sum(
        result.ack_seconds for result in results
    )


def test_budget_and_flight_show_what_is_unsettled() -> None:
    publisher = FakePublisher(silent)
    before = scrape()
    with pooled(budget_messages=10, budget_bytes=1_000) as pool:
        lane = pool.lane(publisher, name="lane", step="flow.budget")
        lane.submit(envelopes(10, size=7))
        blocked = InThread(lambda: lane.submit(envelopes(5, prefix="more")))
        until(lambda: _grown(before, scrape(), "budget_stalls_total") == 1)
        until(lambda: scrape().each("in_flight_messages", broker="fake") == [10])
        seen = scrape()
        assert _grown(before, seen, "budget_messages") == 10
        assert _grown(before, seen, "budget_bytes") == 1_000
        assert _grown(before, seen, "unsettled_messages") == 10
        assert _grown(before, seen, "unsettled_bytes") == 70
        assert seen.each("in_flight_bytes", broker="fake") == [70]
        assert seen.each("lanes", broker="fake") == [1]
        assert seen.each("connected", broker="fake") == [1]
        until(lambda: scrape().sum("oldest_unsettled_seconds", broker="fake") > 0.2)
        until(lambda: scrape().sum("last_progress_seconds", broker="fake") > 0.2)
        publisher.answer = stored
        publisher.release()
        lane.flush()
        blocked.end()
        lane.flush()
        assert scrape().each("oldest_unsettled_seconds", broker="fake") == [0]
        assert scrape().each("last_progress_seconds", broker="fake") == [0]


def test_oldest_counts_what_the_pools_thread_has_not_taken() -> None:
    with pooled() as pool:
        lane = pool.lane(FakePublisher(), name="lane", step="flow.not-taken")
        with held_up(pool):
            lane.submit(envelopes(1))
            until(lambda: scrape().sum("oldest_unsettled_seconds", broker="fake") > 0.2)


def test_retries_are_counted_by_their_reason() -> None:
    before = scrape()
    publisher = FakePublisher(lambda each: Refusal(Verdict.RETRY, "no leader"))
    with pooled() as pool:
        lane = pool.lane(publisher, name="lane", step="flow.retries")
        lane.submit(envelopes(1))
        until(lambda: _grown(before, scrape(), "retries_total", reason="refused") >= 2)
        publisher.answer = silent
        until(lambda: len(publisher.unanswered) == 1)
        refused = _grown(before, scrape(), "retries_total", reason="refused")
        publisher.loop.call_soon_threadsafe(publisher.events.disconnected, "the server was killed")
        until(lambda: _grown(before, scrape(), "retries_total", reason="disconnected") == 1)
        assert scrape().each("connected", broker="fake") == [0]
        assert _grown(before, scrape(), "retries_total") == refused + 1


@pytest.mark.parametrize("closes", ["pool", "lane"])
def test_counters_never_go_down_when_a_pool_or_its_last_lane_closes(closes: str) -> None:
    before = scrape()
    for _ in range(3):
        after = _retried_then_closed(closes, before)
        for name in ("submitted_total", *RESULTS, "retries_total", "batches_total"):
            assert after.sum(name) >= before.sum(name), name
        assert _grown(before, after, "submitted_total") == 4
        assert _grown(before, after, "unknown_total") == 4
        assert _grown(before, after, "retries_total") >= 4
        assert after.each("lanes", broker="fake") == []
        before = after


def _retried_then_closed(closes: str, before: Scrape) -> Scrape:
    publisher = FakePublisher(lambda each: Refusal(Verdict.RETRY, "no leader"))
    with pooled() as pool:
        lane = pool.lane(publisher, name="lane", step="flow.closes")
        lane.submit(envelopes(4))
        until(lambda: _grown(before, scrape(), "retries_total") >= 4)
        if closes == "lane":
            lane.close()
            until(lambda: publisher.closes == 1)
    return scrape()

"""One result for each envelope, and what it says."""

import pickle

import pytest

from bytewax_jetstream.dispatch import SegmentStored, Settled, Settlement, SinglesStored
from bytewax_jetstream.envelope import Envelope, Outcome, PublishResult
from bytewax_jetstream.pool.results import results_of
from bytewax_jetstream.publishing import Receipt, Refusal, Verdict
from tests.support.dispatching import entry, envelope, numbered, segment
from tests.support.fake_publisher import FakePublisher
from tests.support.pooling import envelopes, pooled


def test_every_envelope_gets_exactly_one_result() -> None:
    with pooled() as pool:
        lane = pool.lane(FakePublisher(), name="lane")
        lane.submit(envelopes(2_500, aggregates=7))
        results = lane.flush()

    assert sorted(result.event_id for result in results) == sorted(
        one.event_id for one in envelopes(2_500)
    )
    assert {result.outcome for result in results} == {Outcome.STORED}
    assert lane.unsettled == 0
    assert lane.collect() == []


def test_stored_result_says_where_it_is_and_which_worker_and_epoch_sent_it() -> None:
    publisher = FakePublisher(lambda envelope: Receipt("ORDERS", 4, 17, duplicate=True))
    with pooled() as pool:
        lane = pool.lane(publisher, name="lane", worker=3)
        lane.submit(
            [Envelope("orders.new", b"{}", "order-1", "customer-1", "OrderPlaced")], epoch=9
        )
        (result,) = lane.flush()

    assert type(result) is PublishResult
    assert result.ack_seconds > 0
    assert result == PublishResult(
        outcome=Outcome.STORED,
        event_id="order-1",
        topic="orders.new",
        aggregate_id="customer-1",
        event_type="OrderPlaced",
        broker="fake",
        stream="ORDERS",
        partition=4,
        sequence=17,
        duplicate=True,
        attempts=1,
        ack_seconds=result.ack_seconds,
        reason=None,
        code=None,
        envelope=None,
        worker=3,
        epoch=9,
    )
    assert pickle.loads(pickle.dumps(result)) == result


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        (Verdict.REJECT, Outcome.REJECTED),
        (Verdict.STOP, Outcome.REJECTED),
        (Verdict.GIVE_UP, Outcome.UNKNOWN),
    ],
)
def test_failed_result_has_a_reason_and_its_envelope(verdict: Verdict, outcome: Outcome) -> None:
    publisher = FakePublisher(lambda envelope: Refusal(verdict, "no room", 10077))
    (envelope,) = envelopes(1, aggregates=1)
    with pooled() as pool:
        lane = pool.lane(publisher, name="lane", worker=3)
        lane.submit([envelope], epoch=9)
        (result,) = lane.flush()

    assert result._replace(ack_seconds=0.0) == PublishResult(
        outcome=outcome,
        event_id="e0",
        topic="topic",
        aggregate_id="a0",
        event_type=None,
        broker="fake",
        stream=None,
        partition=None,
        sequence=None,
        duplicate=None,
        attempts=1,
        ack_seconds=0.0,
        reason="no room",
        code=10077,
        envelope=envelope,
        worker=3,
        epoch=9,
    )


def test_bad_envelope_is_rejected_and_the_others_are_stored() -> None:
    with pooled() as pool:
        lane = pool.lane(FakePublisher(), name="lane")
        lane.submit([*envelopes(2), Envelope("bad", b"", "bad"), *envelopes(2, prefix="f")])
        results = {result.event_id: result for result in lane.flush()}

    assert results.pop("bad").outcome is Outcome.REJECTED
    assert {result.outcome for result in results.values()} == {Outcome.STORED}
    assert len(results) == 4


def test_only_stop_verdicts_and_unknown_results_give_a_stop_reason() -> None:
    verdicts = {"e0": Verdict.REJECT, "e1": Verdict.STOP, "e2": Verdict.GIVE_UP}
    publisher = FakePublisher(
        lambda envelope: Refusal(verdicts[envelope.event_id], "no permission")
    )
    with pooled() as pool:
        lanes = [pool.lane(publisher, name=f"lane-{number}") for number in range(3)]
        for lane, envelope in zip(lanes, envelopes(3), strict=True):
            lane.submit([envelope])
            lane.flush()

    assert [lane.stop_reason for lane in lanes] == [
        None,
        "envelope e1 on topic is rejected: no permission",
        "envelope e2 on topic is unknown: no permission",
    ]


# `results_of` by itself


def test_results_count_results_bytes_duplicates_and_unknown_ones() -> None:
    stored = SegmentStored(
        segment(envelope("1", size=1), envelope("2", size=2)), Receipt("S", duplicate=True)
    )
    singles = SinglesStored(
        [entry("3", size=10), entry("4", size=20)],
        [Receipt("S", None, 7, duplicate=True), Receipt("S", None, 8, duplicate=False)],
    )
    refusal = Refusal(Verdict.REJECT, "too large")
    rejected = Settled(entry("5", size=100), Outcome.REJECTED, None, refusal)
    unknown = Settled(entry("6", size=200), Outcome.UNKNOWN, None, refusal)
    stopped = Settled(entry("8"), Outcome.REJECTED, None, Refusal(Verdict.STOP, "no permission"))
    alone = Settled(entry("7", size=1_000), Outcome.STORED, Receipt("S", duplicate=True), None)
    settled: list[Settlement] = [rejected, stored, singles, unknown, stopped, alone]
    delivery, stop, unknowns, size = results_of(settled, "fake", at=3.0, worker=2)

    assert [result.event_id for result in delivery.oks] == ["1", "2", "3", "4", "7"]
    assert [result.event_id for result in delivery.errs] == ["5", "6", "8"]
    assert [result.sequence for result in delivery.oks] == [None, None, 7, 8, None]
    assert {(result.ack_seconds, result.worker) for result in delivery.oks} == {(3.0, 2)}
    assert (delivery.duplicates, unknowns, size) == (4, 1, 1334)
    assert stop == delivery.errs[1]


@pytest.mark.parametrize(
    ("last", "event_id"),
    [
        (SegmentStored(segment(*numbered(1, 2)), Receipt()), "2"),
        (SinglesStored([entry("3"), entry("4")], [Receipt(), Receipt()]), "4"),
        (Settled(entry("5"), Outcome.STORED, Receipt(), None), "5"),
    ],
)
def test_delivery_names_the_event_id_that_was_settled_last(last: Settlement, event_id: str) -> None:
    first = Settled(entry("0"), Outcome.STORED, Receipt(), None)
    delivery = results_of([first, last], "fake", at=0.0, worker=0).delivery

    assert delivery.last_event_id == event_id


def test_delivery_has_the_shortest_duplicate_window_of_the_streams_that_stored_it() -> None:
    windows = {"orders": 120.0, "other": 20.0, "third": 60.0, "unknown": None, "bad": 1.0}

    def remembered(*settled: Settlement) -> float:
        results = results_of(list(settled), "fake", 0.0, 0, windows.__getitem__)
        return results.delivery.remembered

    def single(topic: str) -> SinglesStored:
        stored = entry("1")
        stored.envelope = envelope("1", topic=topic)
        return SinglesStored([stored, entry("2")], [Receipt(topic.upper()), Receipt("ORDERS")])

    refused = Settled(entry("3"), Outcome.REJECTED, None, Refusal(Verdict.REJECT, "too large"))
    refused.entry.envelope = envelope("3", topic="bad")
    alone = Settled(single("third").entries[0], Outcome.STORED, Receipt("THIRD"), None)
    batch = SegmentStored(segment(envelope("4", topic="other")), Receipt("OTHER"))
    assert remembered(SegmentStored(segment(envelope("1")), Receipt("ORDERS"))) == 120.0
    assert remembered(SegmentStored(segment(envelope("1")), Receipt("ORDERS")), batch) == 20.0
    assert remembered(single("other")) == 20.0
    assert remembered(single("orders"), alone) == 60.0
    assert remembered(single("unknown"), refused) == 120.0
    assert remembered(refused) == float("inf")
    assert remembered(SinglesStored([entry("1")], [Receipt(partition=1)])) == float("inf")

"""A lane: submit, collect, flush and close."""

import pytest

from bytewax_jetstream.envelope import Envelope, Outcome, payload_size
from bytewax_jetstream.errors import PoolClosedError, SettleTimeoutError
from bytewax_jetstream.pool.lane import _groups_whole, _pieces
from tests.support.fake_publisher import FakePublisher, silent, stored
from tests.support.pooling import InThread, envelopes, pooled
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
            SettleTimeoutError, match=r"^3 envelopes of lane lane are not settled after [0-9.]+ s: "
        ):
            lane.flush(0.05)


def test_closed_lane_settles_its_submittedas_unknown_and_frees_the_budget() -> None:
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


# Cutting a submission into what is handed over at once


def sized(*sizes: str) -> list[Envelope]:
    """Envelopes `0`, `1` and so on: `30` has that many bytes, `30a` is also of aggregate `a`."""
    return [
        Envelope(
            "topic", b"." * int(size.rstrip("ab")), str(number), size.lstrip("0123456789") or None
        )
        for number, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(
    ("sizes", "pieces", "groups_whole"),
    [
        ([], [], []),
        (["1", "1", "1"], ["012"], ["012"]),
        (["1", "1", "1", "1", "1"], ["0123", "4"], ["0123", "4"]),
        (["50", "50", "50"], ["0", "12"], ["01", "2"]),
        (["200", "1"], ["0", "1"], ["0", "1"]),
        (["1a", "1", "1a", "1", "1a"], ["0123", "4"], ["0241", "3"]),
        (["1a", "1a", "1a", "1a", "1a", "1b"], ["0123", "45"], ["01234", "5"]),
        (["60a", "60a", "1"], ["0", "12"], ["01", "2"]),
    ],
    ids=["none", "fitting", "many", "bytes", "one large", "a group", "a large group", "its bytes"],
)
def test_submission_is_cut_to_pieces_of_4_messages_and_100_bytes(
    sizes: list[str], pieces: list[str], groups_whole: list[str]
) -> None:
    submitted = sized(*sizes)
    for cut, expected in ((_pieces, pieces), (_groups_whole, groups_whole)):
        made = list(cut(submitted, 4, 100))

        assert ["".join(each.event_id for each in piece) for piece, _ in made] == expected
        assert [sum(map(payload_size, piece)) for piece, _ in made] == [size for _, size in made]


@pytest.mark.parametrize("closes", ["lane", "pool"])
def test_submit_that_waits_for_room_raises_when_it_is_closed_meanwhile(closes: str) -> None:
    publisher = FakePublisher(silent)
    with pooled(budget_messages=2) as pool:
        lane = pool.lane(publisher, name="lane")
        submitter = InThread(lambda: lane.submit(envelopes(3)))
        until(lambda: pool.statistics()["budget_stalls"] == 1)
        if closes == "lane":
            lane.close()
        else:
            pool.close(0.0)

        assert isinstance(submitter.end(), PoolClosedError)
        until(lambda: pool.unsettled == 0)
        results = lane.collect()
        assert {result.outcome for result in results} == {Outcome.UNKNOWN}
        assert len(results) == 2


def test_submission_with_something_else_among_its_envelopes_is_refused_whole() -> None:
    with pooled() as pool:
        lane = pool.lane(FakePublisher(), name="lane")
        with pytest.raises(TypeError, match="publishes Envelopes, and got dict: make an Envelope"):
            lane.submit([*envelopes(2), {"topic": "t"}])  # type: ignore[list-item]

        assert lane.unsettled == 0

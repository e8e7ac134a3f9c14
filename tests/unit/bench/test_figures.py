import re
import time
from array import array
from pathlib import Path
from typing import Any

import pytest

from bytewax_jetstream.bench.brokers import Figures, Stored, tally_ids
from bytewax_jetstream.bench.cases import Case
from bytewax_jetstream.bench.figures import Spread, ratios, select, series, spread, values
from bytewax_jetstream.bench.load import Load
from bytewax_jetstream.bench.meter import Tally, latencies, percentile
from bytewax_jetstream.bench.results import check, commit
from bytewax_jetstream.errors import BenchError


def entry(strategy: str, number: int, speed: float, **more: Any) -> dict[str, Any]:
    return {
        "scenario": "low",
        "broker": "jetstream",
        "strategy": strategy,
        "round": number,
        "msgs_per_s": speed,
    } | more


def test_a_percentile_is_a_value_that_was_measured() -> None:
    ordered = array("d", range(1, 101))

    assert percentile(ordered, 0.5) == 50
    assert percentile(ordered, 0.99) == 99
    assert percentile(array("d", [7.0]), 0.99) == 7


def test_latencies_are_in_milliseconds_whatever_their_order() -> None:
    assert latencies(array("d", [0.003, 0.001, 0.002])) == {
        "ack_ms_mean": 2,
        "ack_ms_p50": 2,
        "ack_ms_p99": 3,
        "ack_ms_max": 3,
    }


def test_an_answer_that_comes_twice_is_counted_apart() -> None:
    tally = Tally()

    tally.answered([0, 2, 1], 4)
    tally.answered([2, 3, 0], 4)

    assert (tally.acked, tally.repeated) == (4, 2)


@pytest.mark.parametrize(
    ("flaw", "says"),
    [
        ({}, None),
        ({"repeated": 0}, None),
        ({"repeated": 500}, "500 acknowledged again"),
        ({"acked": 499, "success": 0.998}, "499 of 500 acknowledged"),
        ({"found": 501}, "501 found"),
        ({"duplicates": 1}, "1 twice"),
    ],
)
def test_check_names_rounds_that_lost_or_repeated_a_message_or_a_result(
    flaw: dict[str, Any], says: str | None
) -> None:
    good = {"storage": "file", "ids": "msgid", "messages": 500, "acked": 500, "found": 500}
    whole = entry("flow", 1, 100, duplicates=0, success=1.0, **good) | flaw

    found = check([whole])

    assert (says in found[0]) if says else not found


def test_time_to_a_result_counts_from_the_batchs_hand_over() -> None:
    load = Load(Case("low", "jetstream", "file", "msgid", "flow", 30, 8, 10), "run", "bench")
    before = time.perf_counter()
    batches = load.batches()
    next(batches)
    between = time.perf_counter()
    last = list(batches)[-1][-1]

    assert load.number_of(last.event_id) == 29
    assert before <= load.given_at(9) <= between <= load.given_at(10) <= load.given_at(29)


def test_commit_of_the_package_is_known_in_a_checkout_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert re.fullmatch(r"[0-9a-f]{12}\+?", commit() or "")
    monkeypatch.setattr("bytewax_jetstream.bench.results.PACKAGE", tmp_path)
    assert commit() is None


def test_round_without_acks_has_no_latencies() -> None:
    assert set(latencies(array("d")).values()) == {None}


def test_spread_is_the_median_with_the_least_and_the_most() -> None:
    assert spread([3, 1, 10]) == Spread(3, 1, 10)
    assert spread([]) is None


def test_a_ratio_is_taken_within_each_round() -> None:
    fast = [entry("flow", 1, 100), entry("flow", 2, 10)]
    slow = [entry("sync", 2, 1), entry("sync", 1, 50)]

    assert ratios(fast, slow) == [2, 10]


def test_ratio_of_two_series_at_once_asks_for_conditions() -> None:
    both = [entry("flow", 1, 100, ids="msgid"), entry("flow", 1, 10, ids="header")]

    with pytest.raises(BenchError, match="name conditions until it is one series"):
        ratios(both, [entry("sync", 1, 1)])
    with pytest.raises(BenchError, match="below the line has 0 rounds"):
        ratios(both[:1], [])


def test_rounds_are_selected_and_grouped_by_their_conditions() -> None:
    rounds = [
        entry("flow", 1, 1),
        entry("sync", 1, 2),
        entry("flow", 2, 3),
        entry("pull", 1, 4, ack_ms_p50=None),
    ]

    assert values(select(rounds, {"strategy": "flow"}), "msgs_per_s") == [1, 3]
    assert [len(own) for own in series(rounds).values()] == [2, 1, 1]
    assert values(rounds, "ack_ms_p50") == []


def test_stored_ids_are_counted_apart_from_warm_up_and_duplicates() -> None:
    assert tally_ids(["wr-0", "wr-1", "r-0", "r-1", "r-1", "other-2"], "r") == Stored(
        found=2, duplicates=1
    )
    assert tally_ids(["wr-0", "wr-0", "r-0"], "r") == Stored(found=1, duplicates=1)


def test_figures_of_a_broker_are_differences_and_unknown_ones_stay_unknown() -> None:
    assert Figures(2.0, 10, None).since(Figures(1.0, 10, None), 1_000) == {
        "server_cpu_us_per_msg": 1000,
        "mgmt_requests_per_msg": 0,
        "ack_frames_per_msg": None,
    }

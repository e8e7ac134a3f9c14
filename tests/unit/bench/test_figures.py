from array import array
from typing import Any

import pytest

from bytewax_jetstream.bench.brokers import Figures, Stored, tally_ids
from bytewax_jetstream.bench.figures import Spread, ratios, select, series, spread, values
from bytewax_jetstream.bench.meter import latencies, percentile
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

"""The log of `make soak`: what was good is not played again, whatever else is in the file."""

from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from tests.support.recovery.cycle import LINKS, Cycle, Played
from tests.support.recovery.faults import possible
from tests.support.recovery.setup import Broker
from tests.support.soak import Line, Log, chosen, table

GOOD = Played(["run_killed 0.0"], 2, 7.25, [])
BAD = Played(["server_killed 1.3"], 3, 9.0, ["3 duplicates", "1 missing"])


def _line(seed: int, played: Played = GOOD, version: str = "now") -> Line:
    return Line.of(version, Cycle.of("jetstream", seed), played)


def test_good_cycle_of_this_version_is_not_played_again(tmp_path: Path) -> None:
    log = Log(tmp_path / "folder" / "log")
    assert log.good("now") == {}

    for line in (_line(1), _line(2, BAD), _line(3, version="before"), _line(2, BAD)):
        log.append(line)

    assert log.good("now") == {("jetstream", 1): _line(1)}
    assert log.good("before") == {("jetstream", 3): _line(3, version="before")}


def test_line_that_was_cut_off_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(path)
    log.append(_line(1))
    path.write_text(path.read_text() + '{"version": "now", "bro\n')
    log.append(_line(2))

    assert sorted(log.good("now")) == [("jetstream", 1), ("jetstream", 2)]


def test_line_says_what_happened_and_what_was_wrong() -> None:
    assert str(_line(1, BAD)) == (
        "jetstream 1, 2 MB/s, timeout 60 s: server_killed 1.3: 3 runs, 9 s, 3 duplicates; 1 missing"
    )
    assert str(_line(0)).endswith(": run_killed 0.0: 2 runs, 7 s, good")


def test_chosen_cycles_take_turns_and_are_the_same_each_time() -> None:
    cycles = chosen("jetstream:4, kafka:2,cluster:7-7")

    assert Counter(cycle.broker for cycle in cycles) == {"jetstream": 4, "kafka": 2, "cluster": 1}
    assert [cycle.seed for cycle in cycles if cycle.broker == "cluster"] == [7]
    assert {cycle.broker for cycle in cycles[:4]} == {"jetstream", "kafka", "cluster"}
    assert chosen("jetstream:4,kafka:2,cluster:7-7") == cycles


@pytest.mark.parametrize("words", ["rabbit:3", "jetstream", "kafka:many", "jetstream:1-"])
def test_choice_of_another_form_is_an_error(words: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        chosen(words)


@pytest.mark.parametrize("broker", get_args(Broker))
def test_seeds_in_a_row_have_every_fault_on_every_link(broker: Broker) -> None:
    cycles = chosen(f"{broker}:{len(LINKS) * len(possible(broker, linked=True))}")

    assert {(cycle.link, cycle.faults[0]) for cycle in cycles} == {
        (link, fault) for link in LINKS for fault in possible(broker, linked=link is not None)
    }


def test_table_counts_each_broker_and_link() -> None:
    lines = [_line(0), _line(3, BAD), _line(1)]

    assert [row.split() for row in table(lines).splitlines()[1:]] == [
        ["jetstream", "no", "proxy", "2", "1", "5", "8.1"],
        ["jetstream", "2", "MB/s", "1", "1", "2", "7.2"],
    ]

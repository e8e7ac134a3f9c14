"""Thousands of simulated runs: each is one seed, and a seed that fails fails again."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import pytest

from bytewax_jetstream.dispatch import Dispatch, Entry, LaneQueue, dispatch
from bytewax_jetstream.dispatch.singles import Singles
from bytewax_jetstream.envelope import Envelope, Outcome
from bytewax_jetstream.publishing import Receipt, Refusal, Verdict
from tests.support.simulation.believing import Believing
from tests.support.simulation.faults import NO_FAULTS
from tests.support.simulation.world import World

SEEDS = 2_000
CHUNK = 200


class Played(NamedTuple):
    problems: dict[int, list[str]]
    """What was broken, by seed."""
    happened: Counter[str]


def _play(seeds: range, **harm: object) -> Played:
    problems, happened = {}, Counter[str]()
    for seed in seeds:
        world = World(seed, **harm)  # type: ignore[arg-type]
        if broken := world.run():
            problems[seed] = broken[:5]
        happened.update({str(outcome): count for outcome, count in world.outcomes.items()})
        counts = world.dispatch.statistics()
        happened.update({name: counts[name] for name in ("retries", "late_acks", "batches")})
        happened.update(disconnections=world.disconnections)
        happened.update(dropped=world.dropped, later_appends=world.later_appends)
    return Played(problems, happened)


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_promise_holds_whatever_the_broker_does(first: int) -> None:
    played = _play(range(first, first + CHUNK))

    assert played.problems == {}
    # A run without faults proves nothing, so every kind of them must have happened.
    assert set(played.happened) > {"stored", "rejected", "unknown"}
    assert all(played.happened.values()), played.happened


@pytest.mark.soak
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("first", range(SEEDS, 50 * SEEDS, SEEDS))
def test_every_promise_holds_for_many_more_seeds(first: int) -> None:
    assert _play(range(first, first + SEEDS)).problems == {}


def test_seed_plays_the_same_run_again() -> None:
    first, again = World(7), World(7)

    assert first.run() == again.run()
    assert first.now == again.now
    assert first.outcomes == again.outcomes
    assert first.dispatch.statistics() == again.dispatch.statistics()


# The simulation is worth what it notices: each test breaks a rule and sees it turn red.


def _noticed(**harm: object) -> str:
    return "\n".join(
        problem for problems in _play(range(60), **harm).problems.values() for problem in problems
    )


def test_simulation_notices_a_second_envelope_of_an_aggregate_in_flight() -> None:
    assert "which its lane was given first" in _noticed(one_per_aggregate=False)


def test_simulation_notices_a_broker_that_does_not_know_event_ids() -> None:
    assert "is stored 2 times" in _noticed(dedupe=False)


def test_simulation_notices_a_group_that_is_split() -> None:
    class Splitting(Dispatch):
        def submit(
            self,
            lane: LaneQueue,
            envelopes: Sequence[Envelope],
            epoch: int,
            now: float,
            seen: int = 0,
        ) -> None:
            self._policy = self._policy._replace(atomic=False)
            super().submit(lane, envelopes, epoch, now, seen)

    assert "did not end as one" in _noticed(dispatch=Splitting, atomic=True)
    assert _noticed(atomic=True) == ""


def test_simulation_notices_a_timeout_that_is_called_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Hasty(Singles):
        def _end(
            self,
            lane: LaneQueue,
            entry: Entry,
            outcome: Outcome,
            receipt: Receipt | None = None,
            refusal: Refusal | None = None,
        ) -> None:
            given_up = outcome is Outcome.UNKNOWN
            super()._end(lane, entry, Outcome.REJECTED if given_up else outcome, receipt, refusal)

        def _give_up(self, lane: LaneQueue, entries: list[Entry]) -> None:
            for entry in entries:
                self._end(lane, entry, Outcome.UNKNOWN, None, Refusal(Verdict.GIVE_UP, "late"))

    monkeypatch.setattr(dispatch, "Singles", Hasty)
    assert "is called rejected, and is stored" in _noticed()


def test_simulation_notices_a_refusal_believed_after_an_unanswered_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Forgetful(Singles):
        def refused(self, number: int, index: int, refusal: Refusal, now: float) -> None:
            sent = self._sent.get(number)
            entry = sent.at(index) if sent is not None else None
            if entry is not None:
                entry.in_doubt = 0
            super().refused(number, index, refusal, now)

    unsteady = NO_FAULTS._replace(reject=0.2, mean_uptime=0.2)
    assert _noticed(faults=unsteady) == ""
    monkeypatch.setattr(dispatch, "Singles", Forgetful)
    assert "is called rejected, and is stored" in _noticed(faults=unsteady)


def test_simulation_notices_envelopes_lost_with_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Losing(Singles):
        def disconnected(self, refusal: Refusal, now: float) -> None:
            self._sent.clear()

    monkeypatch.setattr(dispatch, "Singles", Losing)
    assert "nothing was answered for" in _noticed()


def test_simulation_notices_two_results_for_one_envelope(monkeypatch: pytest.MonkeyPatch) -> None:
    class Repeating(Singles):
        def acked_late(self, lane: LaneQueue, entry: Entry, receipt: Receipt) -> None:
            self._settlements.settle(lane, entry, Outcome.STORED, receipt)

    monkeypatch.setattr(dispatch, "Singles", Repeating)
    assert "has 2 results" in _noticed()


def test_simulation_notices_a_tick_that_comes_too_late() -> None:
    class Sleeping(Dispatch):
        def next_tick(self) -> float:
            return self._no_progress_at()

    noticed = _noticed(dispatch=Sleeping)
    assert "is unknown although" in noticed or "nothing was answered for" in noticed


def test_simulation_notices_what_is_sent_behind_an_unknown_envelope() -> None:
    class Careless(LaneQueue):
        def take_broken(self) -> list[Entry]:
            return []

    class Sending(Dispatch):
        def add_lane(self) -> LaneQueue:
            lane = Careless(self._changed, one_per_aggregate=True)
            self._lanes[lane] = None
            return lane

    giving_up = NO_FAULTS._replace(give_up=0.1)
    assert _noticed(faults=giving_up, batches=False, atomic=False) == ""
    noticed = _noticed(faults=giving_up, batches=False, atomic=False, dispatch=Sending)
    assert "which its lane was given first" in noticed


def test_simulation_notices_a_connection_that_is_never_given_up() -> None:
    class Waiting(Dispatch):
        def _no_progress_at(self) -> float:
            return float("inf")

    dead = NO_FAULTS._replace(drop_request=1.0)
    assert _noticed(faults=dead) == ""
    assert "nothing was answered for" in _noticed(faults=dead, dispatch=Waiting)


@pytest.mark.parametrize("without", ["doubt", None])
def test_simulation_notices_a_batch_of_ids_that_may_be_in_process(
    without: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker acknowledges ids that are in process, and loses them with its leader.

    Without the doubts the run must turn red; with them, under the same faults, it must not.
    """
    torn = NO_FAULTS._replace(delay=0.05, mean_quorum=0.5)
    if without:
        monkeypatch.setattr(dispatch, "Batches", Believing)
    noticed = _noticed(faults=torn, batches=True, replicated=True)
    if without:
        assert "is called stored, and is not" in noticed
    else:
        assert noticed == ""

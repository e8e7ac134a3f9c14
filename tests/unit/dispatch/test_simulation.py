"""Thousands of simulated runs: each is one seed, and a seed that fails fails again."""

from collections import Counter
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import pytest

from bytewax_jetstream.dispatch import Dispatch, Entry, LaneQueue, dispatch
from bytewax_jetstream.dispatch.clocks import Answers
from bytewax_jetstream.dispatch.segment import Past
from bytewax_jetstream.dispatch.singles import Singles
from bytewax_jetstream.envelope import Envelope, Outcome
from bytewax_jetstream.publishing import Receipt, Refusal, Verdict
from tests.support.simulation.believing import Believing
from tests.support.simulation.faults import NO_FAULTS
from tests.support.simulation.kinds import (
    anything,
    hot_aggregate,
    large_messages,
    short_memory,
    stuck_subject,
)
from tests.support.simulation.link import Link, Speed
from tests.support.simulation.world import World

SEEDS = 2_000
CHUNK = 200
MUTATED = 60
"""How many runs of a mutation are played at most until one shows it."""


class Played(NamedTuple):
    problems: dict[int, list[str]]
    """What was broken, by seed."""
    happened: Counter[str]


def _play(seeds: range, **run: object) -> Played:
    problems, happened = {}, Counter[str]()
    for seed in seeds:
        world = World(seed, **run)  # type: ignore[arg-type]
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


def test_link_takes_as_long_for_its_bytes_as_it_can_carry_also_while_it_trickles() -> None:
    link = Link(Speed(bandwidth=1000.0, round_trip=0.0, trickles_at=1.0, recovers_at=3.0))

    # One second at 1,000 B/s, two at 1 B/s, and one at 1,000 B/s again.
    assert link.write(500, 0.0) == 0.5
    assert link.write(1502, 0.0) == pytest.approx(4.0)
    assert [link.unsent(now) for now in (0.0, 0.5, 1.0, 3.0, 3.5, 4.0)] == [
        2002, 1502, 1002, 1000, 500, 0,
    ]  # fmt: skip


# The simulation is worth what it notices. Each test breaks a rule and sees a run turn red; the same
# runs are green without that.


def _noticed(problem: str, **run: object) -> range:
    """The seeds up to the first whose run shows a problem."""
    for seed in range(MUTATED):
        world = World(seed, **run)  # type: ignore[arg-type]
        if any(problem in each for each in world.run()):
            return range(seed + 1)
    pytest.fail(f"none of the runs says: {problem}")


def test_simulation_notices_a_second_envelope_of_an_aggregate_in_flight() -> None:
    seeds = _noticed("which its lane was given first", kind=anything, one_per_aggregate=False)
    assert _play(seeds, kind=anything).problems == {}


def test_simulation_notices_a_broker_that_does_not_know_event_ids() -> None:
    seeds = _noticed("is stored 2 times", kind=anything, dedupe=False)
    assert _play(seeds, kind=anything).problems == {}


def test_simulation_notices_a_group_that_is_split() -> None:
    class Splitting(Dispatch):
        def submit(
            self,
            lane: LaneQueue,
            envelopes: Sequence[Envelope],
            epoch: int,
            now: float,
            seen: int = 0,
            handed_over: float | None = None,
        ) -> None:
            self._policy = self._policy._replace(atomic=False)
            super().submit(lane, envelopes, epoch, now, seen, handed_over)

    seeds = _noticed("did not end as one", kind=anything, atomic=True, dispatch=Splitting)
    assert _play(seeds, kind=anything, atomic=True).problems == {}


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

    with monkeypatch.context() as mutation:
        mutation.setattr(dispatch, "Singles", Hasty)
        seeds = _noticed("is called rejected, and is stored", kind=anything)
    assert _play(seeds, kind=anything).problems == {}


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
    with monkeypatch.context() as mutation:
        mutation.setattr(dispatch, "Singles", Forgetful)
        seeds = _noticed("is called rejected, and is stored", kind=anything, faults=unsteady)
    assert _play(seeds, kind=anything, faults=unsteady).problems == {}


def test_simulation_notices_envelopes_lost_with_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Losing(Singles):
        def disconnected(self, refusal: Refusal, now: float) -> None:
            self._sent.clear()

    with monkeypatch.context() as mutation:
        mutation.setattr(dispatch, "Singles", Losing)
        seeds = _noticed("nothing was answered for", kind=anything)
    assert _play(seeds, kind=anything).problems == {}


def test_simulation_notices_two_results_for_one_envelope(monkeypatch: pytest.MonkeyPatch) -> None:
    class Repeating(Singles):
        def acked_late(self, lane: LaneQueue, entry: Entry, receipt: Receipt) -> None:
            self._settlements.settle(lane, entry, Outcome.STORED, receipt)

    with monkeypatch.context() as mutation:
        mutation.setattr(dispatch, "Singles", Repeating)
        seeds = _noticed("has 2 results", kind=anything)
    assert _play(seeds, kind=anything).problems == {}


def test_simulation_notices_a_batch_of_ids_that_may_be_in_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker acknowledges ids that are in process, and loses them with its leader."""
    run = {
        "kind": anything,
        "faults": NO_FAULTS._replace(delay=0.05, mean_quorum=0.5),
        "batches": True,
        "replicated": True,
    }
    with monkeypatch.context() as mutation:
        mutation.setattr(dispatch, "Batches", Believing)
        _noticed("is called stored, and is not", **run)
    assert _play(range(MUTATED), **run).problems == {}


# The rules of the clocks


def test_simulation_notices_later_answers_that_renew_an_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Renewing(Answers):
        latest = 0.0

        def add(self, position: int, now: float) -> None:
            self.latest = now
            super().add(position, now)

        def since(self, position: int, written: float) -> float:
            return max(written, self.latest)

    with monkeypatch.context() as mutation:
        mutation.setattr(dispatch, "Answers", Renewing)
        seeds = _noticed("longer than the delivery timeout", kind=stuck_subject)
    assert _play(seeds, kind=stuck_subject).problems == {}


def test_simulation_notices_an_attempt_that_fails_while_its_bytes_are_taken() -> None:
    class Impatient(Dispatch):
        def taken(self, position: int, now: float) -> None:
            pass

    seeds = _noticed("and had time until", kind=large_messages, dispatch=Impatient)
    assert _play(seeds, kind=large_messages).problems == {}


def test_simulation_notices_a_clock_that_runs_while_an_envelope_waits_for_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = {"kind": hot_aggregate, "batches": True, "replicated": False}
    with monkeypatch.context() as mutation:
        mutation.setattr(Past, "stop_clock", lambda past, now: None)
        seeds = _noticed("although the broker answered in time", **run)
    assert _play(seeds, **run).problems == {}


def _renew_clocks(broken: Dispatch, now: float) -> None:
    for _, entry in broken._singles.unsettled(broken._lanes.keys()):
        if entry.expires < inf:
            entry.expires = now + broken._policy.delivery_timeout


class Reconnecting(Dispatch):
    """Another connection gives an envelope another delivery timeout."""

    def connected(self, now: float) -> None:
        _renew_clocks(self, now)
        super().connected(now)


class Carrying(Dispatch):
    """So does a link that carries something."""

    def taken(self, position: int, now: float) -> None:
        _renew_clocks(self, now)
        super().taken(position, now)


@pytest.mark.parametrize("renewing", [Reconnecting, Carrying])
def test_simulation_notices_a_link_that_renews_the_clock_of_an_envelope(
    renewing: type[Dispatch],
) -> None:
    seeds = _noticed("longer than the delivery timeout", kind=stuck_subject, dispatch=renewing)
    assert _play(seeds, kind=stuck_subject).problems == {}


def test_simulation_notices_an_id_sent_again_when_the_broker_may_have_forgotten_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Trusting(Singles):
        def resend_until(self, topic: str, written: float) -> float:
            return inf

    with monkeypatch.context() as mutation:
        mutation.setattr(dispatch, "Singles", Trusting)
        seeds = _noticed("is stored 2 times", kind=short_memory)
    assert _play(seeds, kind=short_memory).problems == {}


def test_simulation_notices_what_is_sent_behind_an_unknown_envelope() -> None:
    class Careless(LaneQueue):
        def take_broken(self) -> list[Entry]:
            return []

    class Sending(Dispatch):
        def add_lane(self) -> LaneQueue:
            lane = Careless(self._changed, one_per_aggregate=True)
            self._lanes[lane] = None
            return lane

    run = {
        "kind": anything,
        "faults": NO_FAULTS._replace(give_up=0.1),
        "batches": False,
        "atomic": False,
    }
    seeds = _noticed("which its lane was given first", dispatch=Sending, **run)
    assert _play(seeds, **run).problems == {}


def test_simulation_notices_a_connection_that_is_never_given_up() -> None:
    class Waiting(Dispatch):
        def _no_progress_at(self) -> float:
            return inf

    dead = NO_FAULTS._replace(drop_request=1.0)
    seeds = _noticed("nothing was answered for", kind=anything, faults=dead, dispatch=Waiting)
    assert _play(seeds, kind=anything, faults=dead).problems == {}


def test_simulation_notices_a_tick_that_comes_too_late() -> None:
    class Sleeping(Dispatch):
        def next_tick(self) -> float:
            return self._no_progress_at()

    seeds = _noticed("longer than the delivery timeout", kind=stuck_subject, dispatch=Sleeping)
    assert _play(seeds, kind=stuck_subject).problems == {}

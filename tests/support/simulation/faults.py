"""How unreliable the simulated broker and its network are."""

from math import inf
from random import Random
from typing import NamedTuple

__all__ = ["NO_FAULTS", "Faults", "Silence", "some_faults"]

NEVER = 1e9
"""Seconds of which no run takes a part worth mentioning."""


class Silence(NamedTuple):
    """For some time the broker answers nothing, or nothing about one topic."""

    begin: float
    end: float = inf
    topic: str | None = None
    stores: bool = False
    """Whether it stores all the same what reaches it then."""

    def covers(self, topic: str, now: float) -> bool:
        """Whether the broker is silent about a topic."""
        return self.begin <= now < self.end and self.topic in (None, topic)


class Faults(NamedTuple):
    """Probabilities, drawn for each run so that runs differ in kind."""

    drop_request: float
    repeat_request: float
    drop_answer: float
    repeat_answer: float
    retry: float
    reject: float
    give_up: float
    delay: float
    """The longest of a request or an answer, in seconds, besides what the link takes."""
    mean_uptime: float
    restart: float
    """That a connection was lost because the broker ended: what it had received and not stored is
    gone."""
    mean_quorum: float = NEVER
    """Seconds until a replicated broker loses its quorum for some time."""
    outages: tuple[float, ...] = (0.01, 0.5, 3.0)
    """Seconds from the end of a connection to the next."""
    stalls: tuple[float, ...] = (0.0, 1.0, 5.0)
    """Seconds by which what was under way on a lost connection may arrive later."""
    silence: Silence = Silence(begin=inf)
    no_return_after: float = inf
    """A connection that is lost after this is the last."""


NO_FAULTS = Faults(
    drop_request=0.0,
    repeat_request=0.0,
    drop_answer=0.0,
    repeat_answer=0.0,
    retry=0.0,
    reject=0.0,
    give_up=0.0,
    delay=0.1,
    mean_uptime=NEVER,
    restart=0.0,
)
"""To be replaced in part, for a run with one kind of fault."""


def some_faults(random: Random) -> Faults:
    """Some of all that is a matter of chance."""

    def some(most: float) -> float:
        return random.choice((0.0, 0.0, most / 4, most))

    return Faults(
        drop_request=some(0.3),
        repeat_request=some(0.2),
        drop_answer=some(0.3),
        repeat_answer=some(0.2),
        retry=some(0.3),
        reject=some(0.2),
        give_up=some(0.02),
        delay=random.choice((0.001, 0.05, 0.5, 3.0)),
        mean_uptime=random.choice((0.3, 2.0, 5.0, 1000.0)),
        restart=random.random(),
        mean_quorum=random.choice((0.5, 2.0, 1000.0)),
    )

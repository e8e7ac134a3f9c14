"""How unreliable the simulated broker and its network are."""

from random import Random
from typing import NamedTuple

__all__ = ["NO_FAULTS", "Faults", "some_faults"]


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
    """The longest of a request or an answer, in seconds."""
    mean_uptime: float
    restart: float
    """That a connection was lost because the broker ended: what it had received and not stored is
    gone."""
    mean_quorum: float = 1000.0
    """Seconds until a replicated broker loses its quorum for some time."""


NO_FAULTS = Faults(
    drop_request=0.0,
    repeat_request=0.0,
    drop_answer=0.0,
    repeat_answer=0.0,
    retry=0.0,
    reject=0.0,
    give_up=0.0,
    delay=0.1,
    mean_uptime=1000.0,
    restart=0.0,
)
"""To be replaced in part, for a run with one kind of fault."""


def some_faults(random: Random) -> Faults:
    """The faults of one run."""

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

"""The kinds of runs: what is published over which link, and what goes wrong.

Each kind is one thing that real use met. In all of them, `checks` hold; of some kinds more can be
said, see `Kind.patient` and `Kind.transit`.
"""

from collections.abc import Callable
from math import inf
from random import Random
from typing import Any, NamedTuple

from bytewax_jetstream.publishing import Policy
from tests.support.simulation.clock import HEALED
from tests.support.simulation.faults import NO_FAULTS, Faults, Silence, some_faults
from tests.support.simulation.link import Speed, some_speed

__all__ = ["KINDS", "LARGEST_SUBMISSION", "LAST_SUBMISSION", "Kind"]

LAST_SUBMISSION = 6.0
LARGEST_SUBMISSION = 30
SMALL = (0, 10, 90, 300)
NONE_HOT = (None,)
ONE_HOT = ("a",)
SOME = (None, "a", "b", "c")


class Kind(NamedTuple):
    """What one run is like."""

    policy: Policy
    faults: Faults
    speed: Speed
    aggregates: tuple[str | None, ...]
    topics: tuple[str, ...] = ("good", "good", "good", "other")
    sizes: tuple[int, ...] = SMALL
    duplicate_window: float | None = None
    patient: bool = False
    """Whether everything is answered once the faults are over, and the delivery timeout is long
    enough for that: then nothing may be unknown."""
    transit: float | None = None
    """If there is always room: within how many seconds each answer comes, if it comes. Then what
    has no aggregate to wait for must end not much later than the delivery timeout."""
    submissions: tuple[int, int] = (1, 5)
    """How many a lane is given, at least and at most."""
    submission_sizes: tuple[int, ...] = (1, 5, LARGEST_SUBMISSION)
    submitted: tuple[float, float] = (0.0, LAST_SUBMISSION)
    """From when to when."""


def _policy(random: Random, **fixed: Any) -> Policy:
    drawn = Policy(
        delivery_timeout=random.choice((1.0, 4.0, 10.0)),
        ack_timeout=random.choice((0.2, 1.0)),
        one_per_aggregate=True,
        window=random.choice((1, 4, 16, 1000)),
        window_bytes=random.choice((100, 1000, 1_000_000)),
        max_send=random.choice((1, 3, 64)),
        flow_interval=random.choice((1, 3)),
        atomic=random.random() < 0.3,
        first_window_bytes=random.choice((1000, 256 * 1024)),
    )
    return drawn._replace(**fixed)


def _aggregates(random: Random) -> tuple[str | None, ...]:
    return random.choice((NONE_HOT, ONE_HOT, SOME, SOME))


def anything(random: Random) -> Kind:
    """All that is a matter of chance, and some of it at once."""
    patient = random.random() < 0.5
    policy = _policy(random)
    if patient:
        policy = policy._replace(delivery_timeout=60.0)
    return Kind(
        policy,
        some_faults(random),
        some_speed(random),
        _aggregates(random),
        sizes=random.choice((SMALL, SMALL, (0, 100, 10_000, 100_000))),
        patient=patient,
    )


def healthy(random: Random) -> Kind:
    """A slow link, long round trips, one hot aggregate, some resets: the broker answers all."""
    speed = some_speed(random)
    policy = _policy(random, delivery_timeout=random.choice((8.0, 20.0)))
    largest = int(min(1_000_000, 0.3 * speed.bandwidth))
    if policy.atomic:
        largest //= LARGEST_SUBMISSION
    return Kind(
        policy._replace(window_bytes=min(policy.window_bytes, largest)),
        NO_FAULTS._replace(
            delay=0.0,
            mean_uptime=random.choice((2.0, 5.0, 1000.0)),
            restart=random.random(),
            outages=(0.01, 0.5),
        ),
        speed,
        _aggregates(random),
        sizes=random.choice((SMALL, (0, 300, largest // 10, largest))),
        patient=True,
    )


def hot_aggregate(random: Random) -> Kind:
    """One aggregate, long round trips, a short silence: then most of it waits for long."""
    begin = random.uniform(2, 3)
    policy = _policy(random, delivery_timeout=4.0, ack_timeout=1.0, window=1000, max_send=64)
    return Kind(
        policy._replace(window_bytes=1_000_000, atomic=False),
        NO_FAULTS._replace(delay=0.0, silence=Silence(begin, begin + 1.2)),
        some_speed(random)._replace(round_trip=random.uniform(0.1, 0.3)),
        ONE_HOT,
        topics=("good",),
        patient=True,
        submissions=(1, 2),
        submission_sizes=(LARGEST_SUBMISSION,),
        submitted=(2.0, 3.0),
    )


def large_messages(random: Random) -> Kind:
    """One message takes many ack timeouts on the link: only bytes that are taken show it moves."""
    speed = some_speed(random)._replace(bandwidth=10 ** random.uniform(5.3, 6.0))
    return Kind(
        _policy(random, delivery_timeout=20.0, ack_timeout=1.0, window_bytes=10**6, atomic=False),
        NO_FAULTS._replace(delay=0.0),
        speed,
        _aggregates(random),
        sizes=(0, 0, 0, 0, 0, 1000, 1_000_000),
        patient=True,
    )


def stuck_subject(random: Random) -> Kind:
    """One subject is not answered, beside traffic that is."""
    speed, begin = some_speed(random), random.uniform(0, 2)
    end = random.choice((begin + random.uniform(1, 10), inf))
    silence = Silence(begin, end, "stuck", stores=random.random() < 0.5)
    return Kind(
        _policy(
            random,
            delivery_timeout=random.choice((1.0, 4.0)),
            ack_timeout=0.5,
            window=1000,
            window_bytes=1_000_000,
            first_window_bytes=256 * 1024,
            max_send=64,
        ),
        NO_FAULTS._replace(
            delay=0.0,
            silence=silence,
            mean_uptime=random.choice((0.5, 5.0, 1000.0)),
            outages=(0.01, 0.1),
        ),
        speed,
        _aggregates(random),
        topics=("good", "good", "other", "stuck"),
        transit=speed.round_trip + 100_000 / speed.bandwidth,
        submissions=(4, 12),
        submission_sizes=(1, 2, 8),
    )


def trickling_peer(random: Random) -> Kind:
    """For some time the peer takes hardly any bytes."""
    at = random.uniform(0, LAST_SUBMISSION)
    speed = some_speed(random)
    return Kind(
        _policy(random),
        NO_FAULTS._replace(delay=0.0),
        speed._replace(trickles_at=at, recovers_at=at + random.uniform(1, 20)),
        _aggregates(random),
        sizes=random.choice((SMALL, (0, 300, int(0.3 * speed.bandwidth)))),
    )


def unsettling_peer(random: Random) -> Kind:
    """For some time it takes all bytes, and settles nothing: it is silent, or says "retry"."""
    begin, stores = random.uniform(0, LAST_SUBMISSION), random.random() < 0.5
    silence = Silence(begin, begin + random.uniform(1, 20), stores=stores)
    refusing = random.random() < 0.5
    return Kind(
        _policy(random, first_backoff=0.3),
        NO_FAULTS._replace(delay=0.0, retry=1.0)
        if refusing
        else NO_FAULTS._replace(delay=0.0, silence=silence),
        some_speed(random),
        _aggregates(random),
    )


def dead_broker(random: Random) -> Kind:
    """It dies, idle or busy, and nobody notices, or it cannot be reached any more."""
    dies = random.uniform(0, HEALED)
    return Kind(
        _policy(random),
        NO_FAULTS._replace(
            delay=0.0,
            silence=Silence(dies),
            mean_uptime=random.choice((5.0, 1000.0)),
            no_return_after=dies,
        ),
        some_speed(random),
        _aggregates(random),
    )


def short_memory(random: Random) -> Kind:
    """The broker soon forgets event ids, and answers get lost.

    As the settings require, whatever is sent arrives within the ack timeout.
    """
    silent, delivery_timeout = random.uniform(0, LAST_SUBMISSION), random.choice((4.0, 60.0))
    return Kind(
        _policy(random, delivery_timeout=delivery_timeout, ack_timeout=1.0),
        NO_FAULTS._replace(
            delay=0.1,
            drop_answer=random.choice((0.0, 0.3, 0.9)),
            drop_request=random.choice((0.0, 0.1)),
            silence=Silence(silent, silent + random.choice((0, 2, 6)), stores=True),
            mean_uptime=random.choice((1.0, 1000.0)),
            mean_quorum=random.choice((2.0, 1000.0)),
            stalls=(0.0, 0.5),
        ),
        some_speed(random),
        _aggregates(random),
        duplicate_window=random.choice((2.0, 5.0, 10.0)),
        patient=delivery_timeout == 60.0,
    )


KINDS: tuple[Callable[[Random], Kind], ...] = (
    anything,
    anything,
    anything,
    healthy,
    healthy,
    hot_aggregate,
    large_messages,
    stuck_subject,
    trickling_peer,
    unsettling_peer,
    dead_broker,
    short_memory,
)
"""Each as often as it stands here."""

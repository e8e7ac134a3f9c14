"""`KnownTopics`: which topics may be published to; messages wait here while a topic is looked up.

A topic is looked up, away from the pool's thread,

- when it is first seen after the start;
- when a message names a partition that it did not have: partitions may have been added;
- when librdkafka no longer finds the topic or a partition: it may have been deleted and made again,
  or be about to be made; for the time of an ack timeout that is waited for.

librdkafka looks for changes every five minutes only, so it is told to look, too. What waits for a
topic is sent in the order in which it was sent first.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from math import inf
from typing import NamedTuple

from ..envelope import Envelope
from ..errors import ConnectError, TopicError
from ..publishing import PublisherEvents, Refusal, Verdict
from ..settings import KafkaSettings
from .encoding import check_topic
from .topics import CLEANUP, REMEDY, Topic, TopicAdmin, ensure_topics
from .waiting import Waiting, still_awaited

__all__ = ["KnownTopics"]

log = logging.getLogger(__name__)

LOOK_UP_SECONDS = 2.0
"""How long to wait for a broker's answer about a topic, until it is asked again."""
PAUSE_SHARE = 20
LONGEST_PAUSE = 1.0
"""After a round of look-ups comes a pause, this many times as long as the round, but no longer."""


class _Parked(NamedTuple):
    """A message that waits for its topic's look-up."""

    waiting: Waiting
    refusal: Refusal | None
    """What becomes of it if the topic is gone; None if it was not sent yet."""


class KnownTopics:
    """Topics that were looked up, and the messages that wait for a look-up; for the pool's thread.

    :arg send: Called with a message whose topic was found.
    :arg refresh: Has the producer look at a topic, by a deadline; returns how many partitions it
        sees, 0 without the topic, None if no broker answered. Blocks; called on other threads.
    :arg on_looked_up: Called after each round of look-ups.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        send: Callable[[Waiting], None],
        refresh: Callable[[str, float], int | None],
        on_looked_up: Callable[[], None],
    ) -> None:
        self.found: dict[str, Topic] = {}
        """Topics that may be published to."""
        self.compacted: set[str] = set()
        """Topics that refuse a whole request if one message in it has no key."""
        self.look_ups = 0
        self._settings = settings
        self._send = send
        self._refresh = refresh
        self._on_looked_up = on_looked_up
        self._events: PublisherEvents
        self._admin: TopicAdmin | None = None
        self._parked: dict[str, list[_Parked]] = {}
        """By topic."""
        self._stale: set[str] = set()
        """Topics that the producer has to look at, too."""
        self._missing_since: dict[str, float] = {}
        """Topics that were there and are not: they may be about to be made again."""
        self._look_up: asyncio.Task[None] | None = None
        self._next_round = 0.0

    @property
    def are_checked(self) -> bool:
        """Whether topics are looked up before they are published to."""
        return self._admin is not None

    async def open(self, events: PublisherEvents, deadline: float) -> None:
        """Make or check the topics, unless the settings say to skip that.

        :raises ConnectError: when the brokers do not answer before the deadline.
        :raises TopicError: when a declared topic is missing, or keeps less than declared.
        """
        self._events = events
        if self._settings.topic_strategy != "skip":
            self._admin = admin = await asyncio.to_thread(TopicAdmin, self._settings)
            found = await asyncio.to_thread(ensure_topics, admin, self._settings, deadline)
            for name, topic in found.items():
                self._add(name, topic)

    def close(self) -> None:
        """Look up nothing more."""
        if self._look_up is not None:
            self._look_up.cancel()

    def release_admin(self) -> None:
        """Let the admin client end its threads now, not when it is garbage collected. Blocks."""
        self._admin = None

    def check(self, topic: str) -> None:
        """Check the form of a topic that is not among `found`.

        :raises EnvelopeError: when nothing can be published to it.
        """
        check_topic(topic)
        if self._admin is None:
            self.found[_plain(topic)] = Topic(None)

    def refusal_of(self, envelope: Envelope) -> str | None:
        """Why its topic refuses an envelope that is valid elsewhere, or None."""
        if envelope.aggregate_id is None and envelope.topic in self.compacted:
            return f"topic {envelope.topic} is compacted and needs a key: give it an aggregate id"
        return None

    def needs_keys(self, topic: str) -> None:
        """A message was refused that went alone and had no key.

        If the topic's configuration may not be read, it is taken for compacted.
        """
        found = self.found.get(topic)
        if found is not None and not found.config:
            self.compacted.add(topic)

    def park(self, waiting: Waiting) -> None:
        """Keep a message until its topic is looked up."""
        self._park(_Parked(waiting, None))

    def park_for_partition(self, waiting: Waiting) -> None:
        """Keep a message for a partition that its topic did not have when it was last looked up."""
        self._stale.add(_plain(waiting.envelope.topic))
        self._park(_Parked(waiting, None))

    def park_failed(self, waiting: Waiting, refusal: Refusal) -> None:
        """Keep a message that failed because its topic, or partition, was not there any more; and
        everything that comes behind it on that topic.

        :arg refusal: What becomes of it if there is no such topic.
        """
        topic = waiting.envelope.topic
        self.found.pop(topic, None)
        self._missing_since.setdefault(_plain(topic), time.monotonic())
        self._stale.add(_plain(topic))
        self._park(_Parked(waiting, refusal))

    def _park(self, parked: _Parked) -> None:
        self._parked.setdefault(_plain(parked.waiting.envelope.topic), []).append(parked)
        if self._look_up is None or self._look_up.done():
            self._look_up = asyncio.get_running_loop().create_task(self._look_up_parked())

    async def _look_up_parked(self) -> None:
        while self._parked:
            await asyncio.sleep(max(0.0, self._next_round - time.monotonic()))
            rounds, self._parked = self._parked, {}
            self.look_ups += 1
            began = time.monotonic()
            # One request a topic, so that one that this user may not ask about harms no other.
            for name, parked in rounds.items():
                found: Topic | str | None
                try:
                    found = await self._look(name)
                except Exception as error:  # no message may wait for good
                    log.exception("looking up topic %s failed", name)
                    found = f"topic {name} cannot be looked up ({type(error).__name__}): report it"
                self._decide(name, parked, found)
            took = time.monotonic() - began
            self._next_round = time.monotonic() + min(LONGEST_PAUSE, PAUSE_SHARE * took)
            self._on_looked_up()

    async def _look(self, name: str) -> Topic | str | None:
        """The topic, or why nothing may be published to it; None if no broker has answered."""
        deadline = time.monotonic() + min(LOOK_UP_SECONDS, self._settings.connect_timeout)
        topic: Topic | None = None
        if self._admin is not None:
            try:
                topic = (await asyncio.to_thread(self._admin.describe, [name], deadline)).get(name)
            except TopicError as error:
                return str(error)
            except ConnectError as error:
                log.warning("a topic could not be looked up, and will be asked again: %s", error)
                return None
        if name in self._stale and (topic is not None or self._admin is None):
            partitions = await asyncio.to_thread(self._refresh, name, deadline)
            if partitions is None:
                return None
            if self._admin is None:
                topic = Topic(partitions) if partitions else None
            elif topic is not None and partitions != topic.partitions:
                return None  # the brokers do not agree yet
        if topic is None:
            since = self._missing_since.get(name, -inf)
            if time.monotonic() - since < self._settings.pool.ack_timeout:
                return None
            return f"there is no topic {name}: {REMEDY}"
        return topic.danger(name) or topic

    def _decide(self, name: str, parked: list[_Parked], found: Topic | str | None) -> None:
        if found is None:
            # Asked again; except for what is settled, because its delivery timeout is over.
            awaited = self._awaited(parked)
            if awaited:
                self._parked[name] = awaited + self._parked.get(name, [])
            return
        self._stale.discard(name)
        self._missing_since.pop(name, None)
        if isinstance(found, str):
            for waiting, refusal in parked:
                refused = refusal or Refusal(Verdict.REJECT, found)
                self._events.refused(*waiting.place, refused)
            return
        self._add(name, found if self._admin is not None else Topic(None))
        # What was parked meanwhile goes too, or what is sent from now on would overtake it.
        late = {each.waiting.place for each in self._parked.get(name, ())}
        for each in self._awaited(parked + self._parked.pop(name, [])):
            waiting = each.waiting
            self._send_or_reject(waiting, found.partitions, is_late=waiting.place in late)

    def _add(self, name: str, topic: Topic) -> None:
        self.found[name] = topic
        if self._admin is None:
            return  # nobody was asked for its configuration
        if "compact" in topic.config.get(CLEANUP, ""):
            self.compacted.add(name)
        else:
            self.compacted.discard(name)

    def _awaited(self, parked: list[_Parked]) -> list[_Parked]:
        """Those that are still to be sent, in order."""
        by_place = {each.waiting.place: each for each in parked}
        in_order = [by_place[place].waiting for place in sorted(by_place)]
        awaited = still_awaited(self._events, in_order, set())
        return [by_place[waiting.place] for waiting in awaited]

    def _send_or_reject(self, waiting: Waiting, partitions: int | None, *, is_late: bool) -> None:
        topic, partition = waiting.envelope.topic, waiting.envelope.partition
        if partitions is None or partition is None or partition < partitions:
            self._send(waiting)
        elif is_late:
            self.park_for_partition(waiting)
        else:
            reason = (
                f"topic {topic} has no partition {partition}: give 0 to {partitions - 1}, or None"
            )
            self._events.refused(*waiting.place, Refusal(Verdict.REJECT, reason))


def _plain(topic: str) -> str:
    """The topic as a bare str: librdkafka takes no subclass, such as a member of a `StrEnum`."""
    return str.__str__(topic)

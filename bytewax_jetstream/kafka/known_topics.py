"""`KnownTopics`: which topics may be published to; messages wait here while a topic is looked up.

A topic that is first seen after the start is looked up away from the pool's thread.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from ..envelope import Envelope
from ..errors import ConnectError, EnvelopeError, TopicError
from ..publishing import PublisherEvents, Refusal, Verdict
from ..settings import KafkaSettings
from .encoding import check_topic
from .topics import CLEANUP, REMEDY, Topic, TopicAdmin, ensure_topics

__all__ = ["KnownTopics"]

log = logging.getLogger(__name__)

FORGET_SECONDS = 1.0
"""After how long a refused topic may be looked up again."""
LOOK_UP_SECONDS = 2.0
"""How long to wait for a broker's answer about a topic, until it is asked again."""


class KnownTopics:
    """Topics that were looked up, and the messages that wait for a look-up; for the pool's thread.

    :arg send: Called with number, index and envelope of a message whose topic was found.
    :arg on_looked_up: Called after each round of look-ups.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        send: Callable[[int, int, Envelope], None],
        on_looked_up: Callable[[], None],
    ) -> None:
        self.found: dict[str, Topic] = {}
        """Topics that may be published to."""
        self.compacted: set[str] = set()
        """Topics that refuse a whole request if one message in it has no key."""
        self.look_ups = 0
        self._settings = settings
        self._send = send
        self._on_looked_up = on_looked_up
        self._events: PublisherEvents
        self._admin: TopicAdmin | None = None
        self._refused: dict[str, tuple[float, str]] = {}
        """Topics that may not be published to: until when this is believed, and why."""
        self._parked: dict[str, list[tuple[int, int]]] = {}
        """Number and index of the messages that wait for their topic's look-up, in order."""
        self._look_up: asyncio.Task[None] | None = None

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
        """Check a topic that is not among `found`: its form, and whether it was refused just now.

        :raises EnvelopeError: when nothing may be published to it.
        """
        check_topic(topic)
        if self._admin is None:
            self.found[topic] = Topic(None)
            return
        until, reason = self._refused.get(topic, (0.0, ""))
        if reason and time.monotonic() < until:
            raise EnvelopeError(reason, field="topic", topic=topic)

    def refusal_of(self, envelope: Envelope) -> str | None:
        """Why its topic refuses an envelope that is valid elsewhere, or None."""
        if envelope.aggregate_id is None and envelope.topic in self.compacted:
            return f"topic {envelope.topic} is compacted and needs a key: give it an aggregate id"
        return None

    def park(self, topic: str, number: int, index: int) -> None:
        """Keep a message until its topic is looked up."""
        self._parked.setdefault(topic, []).append((number, index))
        if self._look_up is None or self._look_up.done():
            self._look_up = asyncio.get_running_loop().create_task(self._look_up_parked())

    def look_up_again(self, topic: str) -> None:
        """Forget a found topic, which may have more partitions by now; at most once a second."""
        until, _ = self._refused.get(topic, (0.0, ""))
        if until < time.monotonic():
            self._refused[topic] = (time.monotonic() + FORGET_SECONDS, "")
            del self.found[topic]

    async def _look_up_parked(self) -> None:
        while self._parked and self._admin is not None:
            names = list(self._parked)
            self.look_ups += 1
            deadline = time.monotonic() + min(LOOK_UP_SECONDS, self._settings.connect_timeout)
            reasons: dict[str, str] = {}
            found: dict[str, Topic] = {}
            # One request a topic, so that one that this user may not ask about harms no other.
            for name in names:
                try:
                    found |= await asyncio.to_thread(self._admin.describe, [name], deadline)
                    reasons[name] = f"there is no topic {name}: {REMEDY}"
                except TopicError as error:
                    reasons[name] = str(error)
                except ConnectError as error:
                    log.warning(
                        "a topic could not be looked up, and will be asked again: %s", error
                    )
                    self._forget_settled(name)
            for name in names:
                topic = found.get(name)
                weakness = (
                    topic.weakness(name, self._settings.batch_bytes) if topic is not None else None
                )
                if topic is not None and weakness is None:
                    self._add(name, topic)
                    self._send_parked(name)
                elif name in reasons:
                    self._reject_parked(name, weakness or reasons[name])
            self._on_looked_up()

    def _add(self, name: str, topic: Topic) -> None:
        self.found[name] = topic
        if "compact" in topic.config.get(CLEANUP, ""):
            self.compacted.add(name)
        else:
            self.compacted.discard(name)

    def _send_parked(self, name: str) -> None:
        for number, index in self._parked.pop(name):
            for envelope in self._events.in_flight(number, index):
                self._send(number, index, envelope)

    def _reject_parked(self, name: str, reason: str) -> None:
        self._refused[name] = (time.monotonic() + FORGET_SECONDS, reason)
        for number, index in self._parked.pop(name):
            self._events.refused(number, index, Refusal(Verdict.REJECT, reason))

    def _forget_settled(self, name: str) -> None:
        """Drop messages whose delivery timeout passed before a broker answered."""
        self._parked[name] = [
            parked for parked in self._parked[name] if self._events.in_flight(*parked)
        ]
        if not self._parked[name]:
            del self._parked[name]

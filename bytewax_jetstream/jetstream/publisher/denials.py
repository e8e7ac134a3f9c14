"""`Denials`: what becomes of messages that the server does not let this user publish.

The server drops such a message and names only its subject.

A subject on which nothing was ever stored is rejected: this user has never had the permission. That
is certain once as many frames were dropped on it as were written on this connection. While that is
not clear, what is tried again on it waits, and is not written.

A subject that worked before has lost the permission, perhaps for a moment, and a dataflow must not
dead-letter the rest of its input for that. So there messages are tried again until their delivery
timeout, and are unknown then. Which messages were denied follows from their number, because the
server takes messages in order: once as many were denied as are awaited on that subject, all of them
were. The others were let through before, and are answered.

That something was stored on a subject is known by an ack of one of the first messages that went
there. Which messages those are is remembered only until the first ack, and messages are counted
only until then, so the usual message costs nothing here.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import repeat

from ...publishing import PublisherEvents, Refusal, Verdict

__all__ = ["Denials"]

MOST_TOPICS = 100_000
MOST_TRIED = 10_000
"""Sends whose first messages are remembered until they are answered. The oldest is forgotten: a
later send on its topics is remembered in its place.
"""


class Denials:
    """The denials of one connection that are not acted on yet, and on which topics was sent."""

    def __init__(self, events: PublisherEvents) -> None:
        self._events = events
        self._counts: dict[str, int] = {}
        """How often each topic was denied since it was last acted on."""
        self._written: Counter[str] = Counter()
        """Frames that were written on this connection, on topics on which nothing was stored."""
        self._denied: Counter[str] = Counter()
        """Frames that were dropped on this connection, by topic."""
        self._unclear: set[str] = set()
        """Topics of messages that an earlier connection may have taken."""
        self._parked: dict[str, list[bytes]] = {}
        """Frames that wait, because it is not clear yet what was denied on their topic."""
        self._parked_at: set[tuple[int, int]] = set()
        """Their number and index."""
        self._stored_on: set[str] = set()
        """Topics on which something was stored."""
        self.tried: dict[int, dict[int, list[str]]] = {}
        """For each send, its first messages on topics on which nothing was stored yet: index, and
        topics. They are not answered."""
        self.forbidden: set[str] = set()
        """Topics that were denied on this connection: they would end every batch."""

    def __bool__(self) -> bool:
        """Whether something waits to be acted on."""
        return bool(self._counts)

    def connected(self) -> None:
        """There is a new connection, perhaps with other permissions."""
        self.forbidden.clear()
        self._counts.clear()
        self._parked.clear()
        self._parked_at.clear()
        self.tried.clear()  # an answer to what was sent before will never come
        dropped = self._denied
        self._unclear.update(t for t, count in self._written.items() if dropped[t] < count)
        self._written.clear()
        self._denied.clear()

    def sent(self, number: int, first: int, topics: Sequence[str]) -> bool:
        """Messages on these topics are sent, one each; the first has this number and index.

        :returns: Whether something was stored on all of the topics.
        """
        new = set(topics).difference(self._stored_on)
        if not new:
            return True
        firsts = []
        for index, topic in enumerate(topics, first):
            if topic in new:
                new.remove(topic)
                firsts.append((index, topic))
        self._try(number, firsts)
        return False

    def sent_as_group(self, number: int, index: int, topics: Sequence[str]) -> None:
        """A group is sent and written; it gets one answer."""
        new = set(topics).difference(self._stored_on)
        if new:
            self._try(number, zip(repeat(index), new))
            self.written(topics)

    def all_open(self, topics: Iterable[str]) -> bool:
        """Whether something was stored on all of these topics, so that nothing is counted there."""
        return self._stored_on.issuperset(topics)

    def written(self, topics: Sequence[str]) -> None:
        """Frames on these topics are written, one each."""
        for topic in set(topics).difference(self._stored_on):
            self._written[topic] += topics.count(topic)

    def _try(self, number: int, places: Iterable[tuple[int, str]]) -> None:
        tried = self.tried.setdefault(number, {})
        for index, topic in places:
            tried.setdefault(index, []).append(topic)
        if len(self.tried) > MOST_TRIED:
            del self.tried[next(iter(self.tried))]

    def acked(self, number: int, index: int) -> None:
        """The server has stored a single or a group."""
        tried = self.tried.get(number)
        if tried is not None:
            self._stored(tried.pop(index, ()))
            if not tried:
                del self.tried[number]

    def stored_in_batch(self, number: int, count: int) -> None:
        """The server has stored the first messages of a batch."""
        tried = self.tried.get(number, {})
        while tried and (index := next(iter(tried))) < count:  # the first is the smallest
            self._stored(tried.pop(index))

    def _stored(self, topics: Iterable[str]) -> None:
        if len(self._stored_on) > MOST_TOPICS:
            self._stored_on.clear()
        for topic in topics:
            self._stored_on.add(topic)
            self._written.pop(topic, None)
            self._unclear.discard(topic)

    def dropped(self, topic: str) -> None:
        """The server has dropped something on this topic, be it a message or a question."""
        self._denied[topic] += 1

    def denied(self, topic: str) -> None:
        """What was dropped on this topic was a message."""
        self._counts[topic] = self._counts.get(topic, 0) + 1
        self.forbidden.add(topic)

    def all_denied(self, topic: str) -> None:
        """Refuse all that is awaited on a topic: one message was sent to try it, and denied."""
        self.forbidden.add(topic)
        refusal = self._refusal(topic)
        for number, index in self._events.in_flight_on(topic):
            self._events.refused(number, index, refusal)

    def lets_out(self, topic: str, number: int, index: int, frame: bytes) -> bool:
        """Whether a single may be written; if not, it is kept until it is clear what was denied on
        its topic.
        """
        if topic not in self._counts:
            if topic not in self._stored_on:
                self._written[topic] += 1
            return True
        self._parked.setdefault(topic, []).append(frame)
        self._parked_at.add((number, index))
        return False

    def act(self) -> bytes:
        """Refuse what was denied, where that is clear by now; returns parked frames to write."""
        frames: list[bytes] = []
        for topic, count in list(self._counts.items()):
            awaited = self._events.in_flight_on(topic)
            if topic in self._stored_on:
                awaited = [at for at in awaited if at not in self._parked_at]
                if count < len(awaited):
                    continue  # some were let through, and are answered
                frames += self._parked.pop(topic, [])
            elif self._denied[topic] < self._written[topic]:
                continue  # some are not answered yet, or were let through
            else:
                self._parked.pop(topic, None)  # to be refused, as those before them
            del self._counts[topic]
            refusal = self._refusal(topic, all_dropped=topic not in self._unclear)
            for number, index in awaited:
                self._events.refused(number, index, refusal)
        if not self._parked:
            self._parked_at.clear()
        return b"".join(frames)

    def batch_ends(self, number: int, count: int) -> None:
        """A batch is over with its first `count` messages stored: was the next one denied?"""
        self.stored_in_batch(number, count)
        self.tried.pop(number, None)
        for topic in self._counts:
            awaited = [
                (of, index)
                for of, index in self._events.in_flight_on(topic)
                if of != number or index >= count
            ]
            if (number, count) in awaited:
                self._events.refused(number, count, self._refusal(topic))

    def _refusal(self, topic: str, *, all_dropped: bool = False) -> Refusal:
        """What a denial means.

        :arg all_dropped: Whether everything that was ever written on the topic was dropped.
        """
        if topic not in self._stored_on:
            reason = f"this user may not publish on {topic}: allow it, then publish again"
            return Refusal(Verdict.REJECT, reason, no_attempt_stored=all_dropped)
        reason = f"this user may no longer publish on {topic}: allow it again"
        return Refusal(Verdict.RETRY, reason)

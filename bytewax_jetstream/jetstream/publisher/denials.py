"""`Denials`: what becomes of messages that the server does not let this user publish.

The server drops such a message and names only its subject. Which messages those were follows from
their number, because it takes messages in order: once as many were denied as are awaited on that
subject, all of them were. The others were let through before, and are answered.

A subject on which nothing was ever stored is rejected: this user has never had the permission. One
that worked before has lost it, perhaps for a moment, and a dataflow must not dead-letter the rest
of its input for that. So there messages are tried again until their delivery timeout, and are
unknown then.
"""

from collections.abc import Iterable, Sequence

from ...publishing import PublisherEvents, Refusal, Verdict

__all__ = ["Denials"]

MOST_TOPICS = 100_000
MOST_BATCHES = 1_000
"""Most batches whose first messages on a topic are remembered; the oldest are forgotten."""


class Denials:
    """The denials of one connection that are not acted on yet, and on which topics was sent."""

    def __init__(self, events: PublisherEvents) -> None:
        self._events = events
        self._counts: dict[str, int] = {}
        """How often each topic was denied since it was last acted on."""
        self._parked: dict[str, list[bytes]] = {}
        """Frames that wait, because it is not clear yet what was denied on their topic."""
        self._parked_at: set[tuple[int, int]] = set()
        """Their number and index."""
        self._first: dict[str, tuple[int, int]] = {}
        """Number and index of the first message on each topic that was let through, or was not
        answered yet."""
        self._begun: dict[int, list[str]] = {}
        """For each batch, the topics whose first message it has."""
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

    def sent(self, number: int, first: int, topics: Iterable[str], *, batch: bool = False) -> None:
        """Messages on these topics go out; the first of them has this number and index."""
        topics = list(topics)
        new = set(topics).difference(self._first)
        if not new:
            return
        if len(self._first) > MOST_TOPICS:
            self._first.clear()
        for index in range(len(topics) - 1, -1, -1):
            if topics[index] in new:
                self._first[topics[index]] = number, first + index
        if batch:
            self._begun.setdefault(number, []).extend(new)
            if len(self._begun) > MOST_BATCHES:
                del self._begun[next(iter(self._begun))]

    def denied(self, topic: str) -> None:
        """The server has dropped a message on this topic."""
        self._counts[topic] = self._counts.get(topic, 0) + 1
        self.forbidden.add(topic)

    def all_denied(self, topic: str) -> None:
        """Refuse all that is awaited on a topic: one message was sent to try it, and denied."""
        self.forbidden.add(topic)
        awaited = self._events.in_flight_on(topic)
        refusal = self._refusal(topic, awaited)
        for number, index in awaited:
            self._events.refused(number, index, refusal)

    def park(self, topic: str, number: int, index: int, frame: bytes) -> bool:
        """Keep a frame until it is clear what was denied on its topic; False if nothing was."""
        if topic not in self._counts:
            return False
        self._parked.setdefault(topic, []).append(frame)
        self._parked_at.add((number, index))
        return True

    def act(self) -> bytes:
        """Refuse what was denied, where that is clear by now; returns parked frames to write."""
        frames: list[bytes] = []
        for topic, count in list(self._counts.items()):
            awaited = [at for at in self._events.in_flight_on(topic) if at not in self._parked_at]
            if count < len(awaited):
                continue  # some were let through, and are answered
            del self._counts[topic]
            refusal = self._refusal(topic, awaited)
            for number, index in awaited:
                self._events.refused(number, index, refusal)
            frames += self._parked.pop(topic, [])
        if not self._parked:
            self._parked_at.clear()
        return b"".join(frames)

    def batch_ends(self, number: int, count: int) -> None:
        """A batch is over with its first `count` messages stored: was the next one denied?"""
        for topic in self._counts:
            awaited = [
                (of, index)
                for of, index in self._events.in_flight_on(topic)
                if of != number or index >= count
            ]
            if (number, count) in awaited:
                self._events.refused(number, count, self._refusal(topic, awaited))
        for topic in self._begun.pop(number, ()):
            of, index = self._first.get(topic, (0, 0))
            if of == number and index >= count:
                del self._first[topic]  # it was not let through, nor stored

    def _refusal(self, topic: str, awaited: Sequence[tuple[int, int]]) -> Refusal:
        """What a denial means, while these messages are awaited on its topic."""
        first = self._first.get(topic)
        if first is None or first in awaited:
            self._first.pop(topic, None)
            reason = f"this user may not publish on {topic}: allow it, then publish again"
            return Refusal(Verdict.REJECT, reason)
        reason = f"this user may no longer publish on {topic}: allow it again"
        return Refusal(Verdict.RETRY, reason)

"""`Held`: singles and groups on topics that no stream is known to cover, until that is certain.

The streams are listed at the start and after a reconnect, so a stream may be there that is not in
the list. What is sent on a topic that no listed stream covers, or only one that must not get it,
goes through these steps:

1. It is held until the streams were listed again; that list is asked for after it was accepted.
2. A stream covers the topic now: it is sent. The stream is still too weak: it is refused.
3. No stream covers the topic: one single, or one group, is sent to try. The account may map the
   topic to another, or import it; no list shows that. Whatever else is on the topic waits.
4. A stream answers: the rest follows. "No responders": all of it is rejected, and so is at once
   what comes later and was accepted before that list was asked for.

What waits here is in flight for the dispatch. It is refused, to be tried again, before its attempt
would count as unanswered: it was never written.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ...envelope import Envelope
from ...publishing import PublisherEvents, Refusal, Verdict
from ..streams import REMEDY
from .groups import several_streams
from .topics import Topics

__all__ = ["Held", "Item"]


MOST_VERDICTS = 100_000
"""Most topics of which it is remembered why nothing may be published there."""


class _Stamped(bytes):
    """A wire form that knows when its envelope was accepted."""

    accepted: float


class Item(NamedTuple):
    """One single, or one group."""

    number: int
    """Of its send."""
    at: int
    """Its index in it."""
    envelopes: list[Envelope]
    wires: list[bytes]
    grouped: bool


class _Trial:
    """The first on a topic is on its way; the others wait behind it."""

    def __init__(self, topic: str, item: Item, timer: asyncio.TimerHandle) -> None:
        self.topic = topic
        self.item = item
        self.behind: list[Item] = []
        self.timer = timer


class Held:
    """What is held, for the pool's thread.

    :arg write: Sends items.
    :arg patience: Seconds to wait for a list, and behind a trial; then what is held is refused for
        now, and comes again. Less than a third of the ack timeout.
    """

    def __init__(
        self,
        topics: Topics,
        events: PublisherEvents,
        write: Callable[[Iterable[Item]], None],
        patience: float,
    ) -> None:
        self._topics = topics
        self._events = events
        self._write = write
        self._patience = patience
        self._new: list[Item] = []
        """Held since the last list was asked for."""
        self._listing: list[Item] = []
        """Held until the list that was asked for is there."""
        self._trials: dict[str, _Trial] = {}
        """By topic."""
        self._sent: dict[tuple[int, int], _Trial] = {}
        """By number and index."""
        self._verdicts: dict[str, tuple[float, Refusal]] = {}
        """Why nothing may be published on a topic, and when the list that says so was asked for."""
        self._task: asyncio.Task[None] | None = None

    @staticmethod
    def stamped(wire: bytes) -> bytes:
        """The wire form of an envelope that may have to be held, with the time of acceptance."""
        stamped = _Stamped(wire)
        stamped.accepted = time.monotonic()
        return stamped

    @property
    def is_trying(self) -> bool:
        """Whether a trial is on its way."""
        return bool(self._sent)

    def hold(self, item: Item) -> None:
        """Keep an item until its topics are looked at, unless they were since it was accepted."""
        now = time.monotonic()
        accepted = max(getattr(wire, "accepted", now) for wire in item.wires)
        for envelope in item.envelopes:
            listed_at, refusal = self._verdicts.get(envelope.topic, (0.0, None))
            if refusal is not None and listed_at > accepted:
                self._refuse_topic([item], envelope.topic, refusal)
                return
        if self._topics.listed_at > accepted:
            self._decide([item])
            return
        self._new.append(item)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._look())

    def answered(self, number: int, index: int) -> None:
        """A stream has answered, whatever it said: a trial tells that the topic has one."""
        trial = self._end(number, index)
        if trial is not None:
            for envelope in trial.item.envelopes:
                self._topics.answered(envelope.topic)
            self._decide(trial.behind)

    def nobody_listens(self, number: int, index: int) -> bool:
        """No stream has answered; returns whether that was a trial, which is refused from here."""
        trial = self._end(number, index)
        if trial is None:
            return False
        topic = trial.topic
        if self._topics.is_uncovered(topic):
            refusal = Refusal(Verdict.REJECT, f"no stream covers topic {topic}: {REMEDY}", 503)
            self._remember(topic, refusal)
        else:
            refusal = Refusal(
                Verdict.RETRY,
                f"no stream answers on topic {topic}: none covers it, or its stream has no leader",
                503,
            )
        self._refuse_topic([trial.item, *trial.behind], topic, refusal)
        return True

    def denied(self, topic: str) -> bool:
        """Nothing may be published on a topic; returns whether a trial was on its way there. Then
        all that is in flight there is refused elsewhere.
        """
        trial = self._trials.get(topic)
        if trial is not None:
            self._end(trial.item.number, trial.item.at)
        return trial is not None

    def withdraw(self, reason: str) -> None:
        """The connection is lost: what is held was not sent, and is to be tried again."""
        items = self._new + self._listing
        for trial in list(self._sent.values()):
            items += trial.behind
            trial.timer.cancel()
        self._new, self._listing, self._trials, self._sent = [], [], {}, {}
        self._refuse(items, Refusal(Verdict.RETRY, reason))

    def close(self) -> None:
        """Decide nothing more."""
        if self._task is not None:
            self._task.cancel()
        for trial in self._sent.values():
            trial.timer.cancel()

    async def _look(self) -> None:
        while self._new:
            self._listing, self._new = self._new, []
            try:
                failure = await asyncio.wait_for(self._topics.fresh(), self._patience)
            except TimeoutError:
                failure = f"the streams could not be listed within {self._patience:g} s"
            items, self._listing = self._listing, []
            if failure is None:
                self._decide(items)
            else:
                self._refuse(items, Refusal(Verdict.RETRY, failure))
            self._events.process()

    def _decide(self, items: Iterable[Item]) -> None:
        """By the list that is there now: sent, refused, or behind a trial."""
        to_send = []
        for item in items:
            if not self._events.in_flight(item.number, item.at):
                continue  # settled in the meantime
            topics = dict.fromkeys(envelope.topic for envelope in item.envelopes)
            closed = [topic for topic in topics if not self._topics.is_open(topic)]
            refusal = None
            for topic in closed:
                weakness = self._topics.weakness(topic)
                if weakness is not None:
                    self._remember(topic, weakness)
                    refusal = weakness
                    self._refuse_topic([item], topic, refusal)
                    break
            if refusal is None and item.grouped:
                reason = several_streams(map(self._topics.stream_of, topics))
                if reason is not None:
                    refusal = Refusal(Verdict.REJECT, reason)
                    self._refuse([item], refusal)
            if refusal is None and (not closed or self._try(closed[0], item)):
                to_send.append(item)
        self._write(to_send)

    def _try(self, topic: str, item: Item) -> bool:
        """Whether an item may go to try a topic; if not, it waits behind the one that did."""
        trial = self._trials.get(topic)
        if trial is not None:
            trial.behind.append(item)
            return False
        timer = asyncio.get_running_loop().call_later(self._patience, self._give_up, topic)
        trial = _Trial(topic, item, timer)
        self._trials[topic] = self._sent[item.number, item.at] = trial
        return True

    def _give_up(self, topic: str) -> None:
        """Nobody has answered the trial yet: a listener on the topic may not be a stream."""
        trial = self._trials[topic]
        behind, trial.behind = trial.behind, []
        if self._events.in_flight(trial.item.number, trial.item.at):
            loop = asyncio.get_running_loop()
            trial.timer = loop.call_later(self._patience, self._give_up, topic)
        else:
            self._end(trial.item.number, trial.item.at)
        reason = (
            f"no stream covers topic {topic}, and nobody has acknowledged the one message that was "
            f"sent on it to try: {REMEDY}"
        )
        self._refuse(behind, Refusal(Verdict.RETRY, reason))
        self._events.process()

    def _end(self, number: int, index: int) -> _Trial | None:
        trial = self._sent.pop((number, index), None)
        if trial is not None:
            trial.timer.cancel()
            del self._trials[trial.topic]
        return trial

    def _remember(self, topic: str, refusal: Refusal) -> None:
        if len(self._verdicts) >= MOST_VERDICTS:
            self._verdicts.clear()
        self._verdicts[topic] = self._topics.listed_at, refusal

    def _refuse_topic(self, items: Iterable[Item], topic: str, refusal: Refusal) -> None:
        """Refuse items for one of their topics; a group is told which of its envelopes has it."""
        for item in items:
            if not item.grouped:
                self._refuse([item], refusal)
                continue
            event_id = next(each.event_id for each in item.envelopes if each.topic == topic)
            reason = (
                f"envelope {event_id!r:.80} of the same group cannot be stored: {refusal.reason}"
            )
            self._refuse([item], refusal._replace(reason=reason))

    def _refuse(self, items: Iterable[Item], refusal: Refusal) -> None:
        for item in items:
            self._events.refused(item.number, item.at, refusal)

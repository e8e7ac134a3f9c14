"""`Careful`: topics whose messages go alone in their requests, so that each has its own answer.

A broker answers a request as a whole: if it is too large for its topic, or one message in it is not
valid there, all of its messages are refused. So they go again, and with them all that follows on
that topic, each in a request of its own, and one of an aggregate at a time: only the message at
fault is rejected, and none overtakes another of its aggregate.

Example: a topic's `max.message.bytes` was lowered to 3,000. A request with 100 messages of 100
bytes and one of 5,000 is refused. Here the 100 are stored, and the one of 5,000 is rejected.

If this user lost the right to write to a topic, its first message is tried again and again. What
waits behind it goes when that one is stored, and is given up when its delivery timeout is over.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Set

from confluent_kafka import KafkaException

from ..envelope import Envelope
from ..publishing import PublisherEvents, Receipt, Refusal, Verdict
from .encoding import Record
from .producer import Client, Failure, error_of, hand_over
from .waiting import Waiting, give_up

__all__ = ["Careful"]

log = logging.getLogger(__name__)

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 1.0
"""Seconds between two attempts on a topic that this user may not write to any more."""
LOOK_SECONDS = 2.0


class _Topic:
    def __init__(self, name: str) -> None:
        self.name = name
        self.queues: dict[object, deque[Waiting]] = {}
        """What waits, by aggregate; the first of each may be with the library."""
        self.stays = False
        """Whether it is careful to the end of the run."""
        self.last_stored = False
        """Whether the last answer was that a message is stored."""
        self.denied: Refusal | None = None
        """Why nothing may be written now; then only one message at a time is tried."""
        self.pause = FIRST_PAUSE


class Careful:
    """Sends what must go alone, in order; everything in here runs on the pool's thread.

    :arg connect: Makes the producer for requests of one message; called when it is needed. None:
        it cannot be made, and the publisher has ended.
    :arg encode: Makes the record of an envelope that was checked.
    :arg judge: What a failure means: message, error code, text, and seconds since it was handed
        over. RETRY is for a right that was lost. None: the message is taken care of elsewhere.
    """

    def __init__(
        self,
        *,
        connect: Callable[[], Client | None],
        encode: Callable[[Envelope], Record],
        judge: Callable[[Waiting, Failure], Refusal | None],
    ) -> None:
        self.topics: dict[str, _Topic] = {}
        self.client: Client | None = None
        self.events: PublisherEvents
        self._connect = connect
        self._encode = encode
        self._judge = judge
        self._out: dict[tuple[int, int], tuple[_Topic, object]] = {}
        """What the library has: its topic, and the key of its queue."""
        self._probes: dict[str, asyncio.Task[None]] = {}

    def begin(self, name: str, why: str, *, stays: bool) -> None:
        """Send what comes on this topic from here.

        :arg why: What the broker said, with what the user can do.
        :arg stays: Whether the next requests would be refused, too.
        """
        topic = self.topics.get(name)
        if topic is None:
            topic = self.topics[name] = _Topic(name)
            log.warning(
                "topic %s: a request was refused (%s); its messages, and those behind them, go in "
                "requests of their own, which is slower",
                name,
                why,
            )
        topic.stays |= stays

    def add(self, waiting: Waiting) -> None:
        """Send a message of a topic that is careful, when its turn comes."""
        topic = self.topics[waiting.envelope.topic]
        key: object = waiting.envelope.aggregate_id
        if key is None:
            key = waiting.place
        queue = topic.queues.get(key)
        if queue is not None:
            queue.append(waiting)
        else:
            topic.queues[key] = deque([waiting])
            if topic.denied is None:
                self._send_first(topic, key)
        if topic.denied is not None:
            self.events.delayed(waiting.number, waiting.at, topic.denied)
            self._probe_later(topic)

    def take_all(self, name: str) -> list[Waiting]:
        """Stop sending a topic; returns what the library does not have of it, in order."""
        topic = self.topics.pop(name, None)
        if topic is None:
            return []
        queues, topic.queues = topic.queues, {}
        return sorted(
            (each for queue in queues.values() for each in queue if each.place not in self._out),
            key=lambda each: each.place,
        )

    def close(self) -> None:
        """Try nothing more."""
        for task in self._probes.values():
            task.cancel()

    # Reports

    def take_reports(self) -> None:
        """Act on the reports that have arrived."""
        if self.client is None:
            return
        acks, failures = self.client.take()
        if acks:
            late = {each[:2] for each in acks if not self.events.in_flight(*each[:2])}
            self.events.acked_many(acks)
            self._stored(acks, late)
        for failure in failures:
            self._failed(failure)

    def _stored(self, acks: Iterable[tuple[int, int, Receipt]], late: Set[tuple[int, int]]) -> None:
        for number, index, _ in acks:
            topic, key = self._out.pop((number, index))
            topic.last_stored = True
            self._leave(topic, key, (number, index))
            if (number, index) in late:  # it was given up
                give_up(self.events, topic.queues.pop(key, ()))
            if topic.denied is not None:
                topic.denied, topic.pause = None, FIRST_PAUSE
                for each in list(topic.queues):
                    if topic.denied is None:
                        self._send_first(topic, each)
            else:
                self._send_first(topic, key)
            self._end_if_idle(topic)

    def _failed(self, failure: Failure) -> None:
        number, index, code, text, _ = failure
        topic, key = self._out.pop((number, index))
        envelope = next(iter(self.events.in_flight(number, index)), None)
        if envelope is None:
            self.events.refused(number, index, Refusal(Verdict.GIVE_UP, f"{text} ({code})", code))
            self._leave(topic, key, (number, index))
            give_up(self.events, topic.queues.pop(key, ()))
        elif self._goes_on(topic, key, Waiting(number, index, envelope), failure):
            self._send_first(topic, key)
        self._end_if_idle(topic)

    def _goes_on(self, topic: _Topic, key: object, waiting: Waiting, failure: Failure) -> bool:
        """Whether the next of its queue may go after a failure."""
        at = waiting.place
        refusal = self._judge(waiting, failure)
        if refusal is None:
            self._leave(topic, key, at)
            return True
        if refusal.verdict is Verdict.RETRY:
            self._deny(topic, refusal)
            return False
        topic.last_stored = False
        self.events.refused(*at, refusal)
        self._leave(topic, key, at)
        if refusal.verdict is Verdict.GIVE_UP:
            give_up(self.events, topic.queues.pop(key, ()))
        return True

    def _leave(self, topic: _Topic, key: object, at: tuple[int, int]) -> None:
        queue = topic.queues.get(key)
        if queue and queue[0].place == at:
            queue.popleft()
        if not queue:
            topic.queues.pop(key, None)

    def _end_if_idle(self, topic: _Topic) -> None:
        """What comes next may go with others again."""
        if topic.queues or topic.stays or not topic.last_stored:
            return
        if self.topics.get(topic.name) is topic:
            del self.topics[topic.name]

    # Sending

    def _send_first(self, topic: _Topic, key: object) -> None:
        """Send the first of a queue, unless the library has it."""
        if self.client is None:
            self.client = self._connect()
        client = self.client
        if client is None:
            return
        while queue := topic.queues.get(key):
            first = queue[0]
            number, index, envelope = first
            if first.place in self._out:
                return
            if not self.events.in_flight(number, index):
                give_up(self.events, topic.queues.pop(key))
                return
            wire = self._encode(envelope)
            try:
                hand_over(client, wire, number, index)
            except (BufferError, KafkaException) as error:
                found = error_of(error)
                if found is None:  # no room
                    loop = asyncio.get_running_loop()
                    loop.call_later(FIRST_PAUSE, self._send_first, topic, key)
                    return
                failure = number, index, found.code(), found.str(), 0.0
                if not self._goes_on(topic, key, first, failure):
                    return
            else:
                self._out[number, index] = topic, key
                return

    # A right that was lost

    def _deny(self, topic: _Topic, refusal: Refusal) -> None:
        if topic.denied is None:
            for queue in topic.queues.values():
                for number, index, _ in queue:
                    self.events.delayed(number, index, refusal)
        topic.denied = refusal
        self._probe_later(topic)

    def _probe_later(self, topic: _Topic) -> None:
        if topic.name not in self._probes:
            probe = self._probe(topic.name, topic.pause)
            self._probes[topic.name] = asyncio.get_running_loop().create_task(probe)
            topic.pause = min(LONGEST_PAUSE, 2 * topic.pause)

    async def _probe(self, name: str, pause: float) -> None:
        """After a pause, send the topic's first message: is it allowed again?"""
        try:
            await asyncio.sleep(pause)
            client = self.client
            if client is not None:
                # The library refuses this topic's messages by itself until it has looked again.
                deadline = time.monotonic() + LOOK_SECONDS
                await asyncio.to_thread(client.partitions, name, deadline)
        finally:
            self._probes.pop(name, None)
        topic = self.topics.get(name)
        if topic is None:
            return
        for key, queue in list(topic.queues.items()):
            if not self.events.in_flight(*queue[0].place) and queue[0].place not in self._out:
                give_up(self.events, topic.queues.pop(key))
        firsts = [(queue[0], key) for key, queue in topic.queues.items()]
        if topic.denied is None or not firsts:
            topic.denied = None
            self._end_if_idle(topic)
        elif not any(first.place in self._out for first, _ in firsts):
            self._send_first(topic, min(firsts, key=lambda each: each[0].place)[1])
        self.events.process()

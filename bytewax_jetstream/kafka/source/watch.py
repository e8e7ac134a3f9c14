"""`Watch`: looks at the topics while they are read, because librdkafka does not tell.

It says nothing when a topic is deleted, made again, or gets more partitions.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException

from ...errors import JetStreamPipelineError
from ..producer import error_of
from .look_up import cannot_read

__all__ = ["News", "Watch"]

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""How often the topics are looked at."""
ANSWER_SECONDS = 1.0
"""How long one look may take; the end of the thread waits for it."""
GONE_SECONDS = 5.0
"""How long a topic must be missing: a broker that has just started may not know it yet."""
ID_SECONDS = 60.0
"""How often the ids of the topics are compared, with nothing suspicious seen."""
STOP_SECONDS = 5.0


class News(NamedTuple):
    """Something that a partition must tell the dataflow."""

    code: int
    reason: str
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    made_again: bool = False
    """The topic is another one now, so reading must stop."""


class Watch:
    """A thread that asks for the topics' metadata, with the client of the consumer that reads them.

    :arg list_topics: Asks a broker for one topic's metadata: name and timeout.
    :arg ask_ids: Asks for the ids of topics that are there.
    :arg ids: The ids that the topics had at the start.
    :arg patience: How many seconds the brokers may be away.
    :arg why: The last error of a connection.
    :arg also: Called after each look, and told how to see that the thread is to end.
    """

    def __init__(
        self,
        list_topics: Callable[[str, float], Any],
        ask_ids: Callable[[Sequence[str]], Mapping[str, str]],
        partitions: Mapping[str, int],
        ids: Mapping[str, str | None],
        *,
        patience: float,
        why: Callable[[], KafkaError | None],
        also: Callable[[Callable[[], bool]], None] = lambda stopping: None,
    ) -> None:
        self.partitions = dict(partitions)
        """How many partitions each topic has; it only grows."""
        self.news: list[News] = []
        self._list_topics, self._ask_ids = list_topics, ask_ids
        self._ids = ids
        self._patience = patience
        self._why = why
        self._also = also
        self._missing_since: dict[str, float] = {}
        self._silent_since: float | None = None
        self._told: set[tuple[str | None, int]] = set()
        self._ids_due = time.monotonic() + ID_SECONDS
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="bytewax_jetstream-kafka-watch", daemon=True
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> bool:
        """End the thread; returns whether it has ended, so that the client may be closed."""
        self._stop.set()
        self._thread.join(STOP_SECONDS)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self.look(time.monotonic())
                if self._silent_since is None:
                    self._also(self._stop.is_set)
            except Exception as error:
                if not self._stop.is_set():
                    log.exception("looking at topics failed, and is tried again")
                    self._tell(News(KafkaError._FAIL, f"looking at topics failed: {error!r}"))  # noqa: SLF001

    def look(self, now: float) -> None:
        """Look at every topic once."""
        suspicious = now >= self._ids_due
        for name in self.partitions:
            if self._stop.is_set():
                return
            suspicious |= self._look_at(name, now)
            if self._silent_since is not None:
                return  # the others would only wait as long
        if suspicious:
            self._compare_ids(now)

    def _look_at(self, name: str, now: float) -> bool:
        """Look at one topic; returns whether it may be another topic by now."""
        try:
            found = self._list_topics(name, ANSWER_SECONDS).topics[name]
        except KafkaException as raised:
            self._no_answer(error_of(raised), now)
            return False
        self._silent_since = None
        self._told.discard((None, KafkaError._TRANSPORT))  # noqa: SLF001
        if found.error is not None:
            code = found.error.code()
            if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_EXCEPTION):
                if now - self._missing_since.setdefault(name, now) >= GONE_SECONDS:
                    self._tell(News(code, cannot_read(code, "", name), name))
            elif code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                self._tell(News(code, cannot_read(code, "", name), name))
            return False
        self._told = {told for told in self._told if told[0] != name}
        was_missing = self._missing_since.pop(name, None) is not None
        count, before = len(found.partitions), self.partitions[name]
        if count > before:
            log.info("topic %s has %d partitions now; it had %d", name, count, before)
            self.partitions[name] = count
        return was_missing or count < before

    def _no_answer(self, error: KafkaError | None, now: float) -> None:
        if self._silent_since is None:
            self._silent_since = now
        silent = now - self._silent_since
        if silent >= self._patience:
            told = self._why() or error
            why = "no answer" if told is None else told.str()
            self._tell(
                News(
                    KafkaError._TRANSPORT,  # noqa: SLF001
                    f"no broker has answered for {silent:.0f} s ({why}): check that the brokers "
                    "are running",
                )
            )

    def _compare_ids(self, now: float) -> None:
        try:
            found = self._ask_ids(list(self.partitions))
        except JetStreamPipelineError as error:
            log.debug("the ids of topics could not be compared: %s", error)
            return
        self._ids_due = now + ID_SECONDS
        for name, topic_id in found.items():
            if self._ids.get(name) not in (None, topic_id):
                self._tell(News(KafkaError.UNKNOWN_TOPIC_ID, "", name, made_again=True))

    def _tell(self, news: News) -> None:
        """Tell it once, until the topic or the brokers are seen again."""
        kind = (news.topic, news.code)
        if kind not in self._told:
            self._told.add(kind)
            self.news.append(news)

"""Looks at topics before they are read: their ids, and what each partition holds.

With an admin client of its own, which is gone afterwards: its threads and connections are needed
only here.
"""

import re
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicCollection
from confluent_kafka import TopicPartition as Partition
from confluent_kafka.admin import AdminClient, OffsetSpec

from ...errors import ConnectError, TopicError
from ...settings import KafkaSettings
from ..config import accepted, connection
from ..error_codes import FINAL_AT_START, STOP_CODES
from ..library_log import library_log
from ..producer import error_of
from .place import Log, Topic

__all__ = ["Found", "LastError", "cannot_read", "look_up", "topic_ids"]

ATTEMPT = 1.0
"""Seconds of one attempt to reach a broker; short, so that a refused password is told at once."""
ANSWER = 5.0
"""Seconds of one request for offsets."""
PAUSE = 0.1
"""Seconds until something is asked again."""
CERTIFICATE_REFUSED = re.compile(r"alert (bad |unsupported )?certificate|alert unknown ca").search
NO_TOPIC_ID = "A" * 22
"""What librdkafka gives for a topic without an id: sixteen zero bytes."""


class Found(NamedTuple):
    """What the cluster has."""

    cluster: str | None
    """Id of the cluster."""
    topics: dict[str, Topic]


class LastError:
    """Remembers the last error of a client's connections that says what is wrong."""

    def __init__(self) -> None:
        self.error: KafkaError | None = None

    def __call__(self, error: KafkaError) -> None:
        """Called by librdkafka, on the thread that serves its events."""
        # That all brokers are down is told after the reason why, and says less.
        if error.code() != KafkaError._ALL_BROKERS_DOWN or self.error is None:  # noqa: SLF001
            self.error = error

    @property
    def remedy(self) -> str | None:
        """What to do about the error, if it does not pass by waiting."""
        if self.error is None:
            return None
        code, text = self.error.code(), self.error.str()
        if code in FINAL_AT_START:
            return STOP_CODES[code]
        # In TLS 1.3 a broker looks at the certificate of a client that is connected already.
        if CERTIFICATE_REFUSED(text):
            return "set tls_cert_file and tls_key_file to a certificate that the brokers accept"
        return None


def cannot_read(code: int, text: str, topic: str | None) -> str:
    """A sentence: why something cannot be read, and what to do."""
    name = "the topic" if topic is None else f"topic {topic}"
    match code:
        case KafkaError.TOPIC_AUTHORIZATION_FAILED:
            return f"this user may not read {name}: grant DESCRIBE and READ on it"
        case (
            KafkaError.UNKNOWN_TOPIC_OR_PART
            | KafkaError.UNKNOWN_TOPIC_ID
            | KafkaError._UNKNOWN_TOPIC  # noqa: SLF001
            | KafkaError._UNKNOWN_PARTITION  # noqa: SLF001
        ):
            return (
                f"{name} is not there any more: if it is to be read again, make it, and give the "
                "input another step id"
            )
    remedy = STOP_CODES[code] if code in FINAL_AT_START else "check the brokers"
    return f"{name} cannot be read: {text} ({code}): {remedy}"


def look_up(settings: KafkaSettings, names: Sequence[str], isolation: str) -> Found:
    """Ask for topics and for what they hold, within the connect timeout.

    :raises ConnectError: when brokers do not answer, or refuse this user or its certificate.
    :raises TopicError: when a topic is missing, or this user may not see it.
    """
    deadline = time.monotonic() + settings.connect_timeout
    asking = _Asking(settings, deadline)
    cluster = asking.reach(names[0])
    described = asking.describe(names)
    logs = asking.logs(
        {name: len(topic.partitions) for name, topic in described.items()}, isolation
    )
    return Found(
        cluster,
        {name: Topic(_id_of(topic), tuple(logs[name])) for name, topic in described.items()},
    )


def topic_ids(settings: KafkaSettings, names: Sequence[str], seconds: float) -> dict[str, str]:
    """The ids of those of these topics that are there and have one.

    :raises ConnectError: when no broker answers in time.
    """
    asking = _Asking(settings, time.monotonic() + seconds)
    ids = {name: _id_of(topic) for name, topic in asking.describe(names, strict=False).items()}
    return {name: topic_id for name, topic_id in ids.items() if topic_id is not None}


class _Asking:
    """One admin client, and until when it may ask."""

    def __init__(self, settings: KafkaSettings, deadline: float) -> None:
        self._settings = settings
        self._deadline = deadline
        self._last = LastError()
        self._reached = False
        config: dict[str, Any] = {
            **connection(settings),
            "allow.auto.create.topics": False,
            "error_cb": self._last,
            "logger": library_log,
        }
        with accepted(settings):
            self._client = AdminClient(config)

    @property
    def _left(self) -> float:
        return max(0.1, self._deadline - time.monotonic())

    def reach(self, name: str) -> str | None:
        """Try until a broker answers; returns the id of its cluster."""
        while True:
            try:
                found = self._client.list_topics(name, timeout=min(ATTEMPT, self._left))
                self._reached = True
                return found.cluster_id
            except KafkaException as error:
                self._client.poll(0)  # serves the errors of connections
                self._again(error_of(error))

    def describe(self, names: Sequence[str], strict: bool = True) -> dict[str, Any]:
        """Those of these topics that are there, which all must be if this is strict."""
        found = {}
        for name in names:  # one at a time: one that may not be seen must not hide the others
            topic = self._described(name, strict)
            if topic is not None:
                found[name] = topic
        return found

    def logs(self, partitions: dict[str, int], isolation: str) -> dict[str, list[Log]]:
        """What each partition holds, asked of the brokers that lead them, all at once."""
        level = (
            IsolationLevel.READ_UNCOMMITTED
            if isolation == "read_uncommitted"
            else IsolationLevel.READ_COMMITTED
        )
        earliest: Any = OffsetSpec.earliest  # it has no annotations
        latest: Any = OffsetSpec.latest
        missing = {(name, n) for name, count in partitions.items() for n in range(count)}
        first: dict[tuple[str, int], Any] = {}
        end: dict[tuple[str, int], Any] = {}
        while missing:
            asked = [
                (
                    into,
                    self._client.list_offsets(
                        {Partition(*one): spec for one in missing},
                        isolation_level=level,
                        request_timeout=min(ANSWER, self._left),
                    ),
                )
                for into, spec in ((first, earliest()), (end, latest()))
            ]
            failed: tuple[str, int, KafkaError | None] | None = None
            for into, futures in asked:
                for one, future in futures.items():
                    try:
                        answer = self._answer(future)
                        if answer.offset >= 0:
                            into[one.topic, one.partition] = answer
                        else:  # how the library answers when a connection was lost
                            failed = one.topic, one.partition, None
                    except KafkaException as error:
                        failed = one.topic, one.partition, error_of(error)
            missing -= first.keys() & end.keys()
            if failed is not None and missing:
                self._client.poll(0)
                name, number, why = failed
                self._again(why, f"the leader of partition {number} of topic {name}")
        return {
            name: [
                Log(first[name, n].offset, end[name, n].offset, end[name, n].leader_epoch)
                for n in range(count)
            ]
            for name, count in partitions.items()
        }

    def _described(self, name: str, strict: bool) -> Any:
        while True:
            future = self._client.describe_topics(
                TopicCollection([name]), request_timeout=self._left
            )[name]
            try:
                return self._answer(future)
            except KafkaException as raised:
                error = error_of(raised)
                code = None if error is None else error.code()
                if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_EXCEPTION):
                    if not strict:
                        return None
                    raise TopicError(
                        f"there is no topic {name} to read: create it, or correct the name",
                        topic=name,
                        code=code,
                    ) from None
                if code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                    if not strict:
                        return None
                    raise TopicError(
                        f"this user may not see topic {name}: grant DESCRIBE and READ on it",
                        topic=name,
                        code=code,
                    ) from None
                self._client.poll(0)
                self._again(error)

    def _answer(self, future: "Future[Any]") -> Any:
        try:
            return future.result(self._left + 1)
        except TimeoutError:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer")) from None  # noqa: SLF001

    def _again(self, error: KafkaError | None, whom: str = "a broker that it names") -> None:
        """Wait before the next attempt.

        :raises ConnectError: when it would be too late, or waiting does not help.
        """
        brokers = self._settings.brokers
        shown = ",".join(brokers)
        told = self._last.error or error
        why = "no answer" if told is None else told.str()
        remedy = self._last.remedy
        if remedy is not None:
            raise ConnectError(
                f"no connection to Kafka at {shown} ({why}): {remedy}",
                broker="kafka",
                servers=brokers,
                reason=why,
            ) from None
        if time.monotonic() < self._deadline:
            time.sleep(PAUSE)
            return
        seconds = self._settings.connect_timeout
        if not self._reached:
            sentence = (
                f"no connection to Kafka at {shown} within {seconds:g} s ({why}): check that the "
                "brokers are running, and whether they require TLS or a password"
            )
        else:
            sentence = (
                f"Kafka at {shown} answers, but {whom} did not within {seconds:g} s ({why}): check "
                "that it is running, and that the brokers' advertised.listeners can be reached "
                "from here"
            )
        raise ConnectError(
            sentence, broker="kafka", servers=brokers, seconds=seconds, reason=why
        ) from None


def _id_of(topic: Any) -> str | None:
    topic_id = str(topic.topic_id)
    return None if topic_id == NO_TOPIC_ID else topic_id

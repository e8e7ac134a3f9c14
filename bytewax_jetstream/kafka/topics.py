"""`TopicAdmin`: topics created, described, changed and checked: partitions, configuration.

With an `AdminClient`: a producer that asks for a topic's metadata would create the topic on a
cluster that creates topics automatically. Every call blocks until a broker answers or its deadline
passes, so none belongs on the pool's thread.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from ..errors import ConnectError, TopicError
from ..settings import KafkaSettings, KafkaTopicSettings
from .config import connection
from .producer import error_of

__all__ = [
    "CLEANUP",
    "MAX_MESSAGE",
    "REMEDY",
    "Topic",
    "TopicAdmin",
    "TopicDifference",
    "compare_topic",
    "create_topic",
    "ensure_topics",
    "update_topic",
]

REMEDY = "create it, or declare a KafkaTopicSettings for it with topic_strategy=create"
PAUSE = 0.05
"""Seconds between two looks at a topic that was just created or changed."""
UNCLEAN = "unclean.leader.election.enable"
MIN_INSYNC = "min.insync.replicas"
CLEANUP = "cleanup.policy"
RETENTION = "retention.ms"
MAX_MESSAGE = "max.message.bytes"


class Topic(NamedTuple):
    """A topic as it is in the cluster."""

    partitions: int | None
    """None if the cluster was not asked."""
    replicas: int = 1
    config: Mapping[str, str] = {}
    """Empty if this user may not read it."""

    def danger(self, name: str) -> str | None:
        """Why this topic could lose a stored message. Asked of every topic, also of one that no
        settings declare.
        """
        if self.config.get(UNCLEAN) == "true":
            return (
                f"topic {name} may elect a leader that lacks stored messages: set {UNCLEAN}=false"
            )
        return None

    def weakness(self, name: str, batch_bytes: int) -> str | None:
        """Why this topic could lose a stored message, or refuse a request of small ones; None when
        it does neither. Asked of topics that the settings name.
        """
        danger = self.danger(name)
        if danger is not None:
            return danger
        limit = int(self.config.get(MAX_MESSAGE, batch_bytes))
        if limit < batch_bytes:
            return (
                f"topic {name} takes batches of {limit} bytes, and this flow may send "
                f"{batch_bytes}, so small messages would be refused too: "
                f"set batch_bytes={limit}, or raise the topic's {MAX_MESSAGE}"
            )
        return None


class TopicAdmin:
    """Looks topics up, creates and changes them; each call ends by its deadline.

    :raises ConnectError: from any call, when no broker answers in time.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        # Without its log, which would go to the terminal: the answers say the same.
        self._client = AdminClient(
            {**connection(settings), "allow.auto.create.topics": False, "log_level": 0}
        )

    def describe(self, names: Sequence[str], deadline: float) -> dict[str, Topic]:
        """Those of these topics that exist, as far as this user may see them."""
        left = _left(deadline)
        described = self._client.describe_topics(TopicCollection(list(names)), request_timeout=left)
        found: dict[str, Any] = {}
        for name, future in described.items():
            try:
                found[name] = self._answer(future, deadline)
            except KafkaException as error:
                code = error.args[0].code()
                if code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                    raise TopicError(
                        f"this user may not see topic {name}: grant DESCRIBE and WRITE on it",
                        topic=name,
                        code=code,
                    ) from None
                if code != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise TopicError(
                        f"topic {name} cannot be looked up: {error.args[0].str()} ({code}); check "
                        "the brokers",
                        topic=name,
                        code=code,
                    ) from None
        configs = self._configs(list(found), deadline) if found else {}
        return {
            name: Topic(
                partitions=len(description.partitions),
                replicas=min(
                    (len(partition.replicas) for partition in description.partitions), default=1
                ),
                config=configs.get(name, {}),
            )
            for name, description in found.items()
        }

    def create(
        self, wanted: KafkaTopicSettings, deadline: float, *, only_ask: bool = False
    ) -> None:
        """Create a topic. If another process was faster, its topic is used, and checked like any
        other.

        :arg only_ask: Change nothing: the brokers say whether they would do it.
        :raises TopicError: when they refuse it.
        """
        new = NewTopic(
            wanted.name,
            num_partitions=wanted.partitions or -1,
            replication_factor=wanted.replicas or -1,
            config=_as_config(wanted),
        )
        left = _left(deadline)
        created = self._client.create_topics(
            [new], operation_timeout=left, request_timeout=left, validate_only=only_ask
        )
        try:
            self._answer(created[wanted.name], deadline)
        except KafkaException as error:
            code = error.args[0].code()
            if code != KafkaError.TOPIC_ALREADY_EXISTS:
                raise TopicError(
                    f"topic {wanted.name} cannot be created: {error.args[0].str()} ({code}); "
                    "change its KafkaTopicSettings, or the brokers",
                    topic=wanted.name,
                    code=code,
                ) from None

    def add_partitions(
        self, name: str, partitions: int, deadline: float, *, only_ask: bool = False
    ) -> None:
        """Raise a topic's number of partitions to this.

        :arg only_ask: Change nothing: the brokers say whether they would do it.
        :raises TopicError: when they refuse it.
        """
        left = _left(deadline)
        grown = self._client.create_partitions(
            [NewPartitions(name, partitions)],
            operation_timeout=left,
            request_timeout=left,
            validate_only=only_ask,
        )
        self._change(grown[name], name, "partitions", deadline)

    def set_config(
        self, name: str, config: Mapping[str, str], deadline: float, *, only_ask: bool = False
    ) -> None:
        """Set these properties of a topic; the others stay.

        :arg only_ask: Change nothing: the brokers say whether they would do it.
        :raises TopicError: when they refuse it.
        """
        entries = [
            ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
            for key, value in config.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        altered = self._client.incremental_alter_configs(
            [resource], request_timeout=_left(deadline), validate_only=only_ask
        )
        self._change(altered[resource], name, ", ".join(config), deadline)

    def _configs(self, names: Iterable[str], deadline: float) -> dict[str, dict[str, str]]:
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        answers = self._client.describe_configs(resources, request_timeout=_left(deadline))
        configs = {}
        for resource, future in answers.items():
            try:
                entries = self._answer(future, deadline)
            except KafkaException:  # a producer need not have this right; then it is not checked
                continue
            configs[resource.name] = {key: str(entry.value) for key, entry in entries.items()}
        return configs

    def _change(self, future: "Future[Any]", name: str, what: str, deadline: float) -> None:
        try:
            self._answer(future, deadline)
        except KafkaException as error:
            code = error.args[0].code()
            raise TopicError(
                f"topic {name} cannot be updated ({what}): {error.args[0].str()} ({code}); "
                "change its KafkaTopicSettings, or the topic",
                topic=name,
                code=code,
            ) from None

    def _answer(self, future: "Future[Any]", deadline: float) -> Any:
        try:
            return future.result(_left(deadline) + 1)
        except TimeoutError:
            raise self._unreachable("no answer") from None
        except KafkaException as error:
            found = error_of(error)
            if found is None or found.code() in UNREACHABLE:
                raise self._unreachable(str(found)) from None
            raise

    def _unreachable(self, why: str) -> ConnectError:
        brokers, seconds = self._settings.brokers, self._settings.connect_timeout
        return ConnectError(
            f"Kafka at {','.join(brokers)} did not answer a request about topics within "
            f"{seconds:g} s ({why}): check that the brokers are running",
            broker="kafka",
            servers=brokers,
            seconds=seconds,
            reason=why,
        )


UNREACHABLE = frozenset(
    {
        KafkaError._TRANSPORT,  # noqa: SLF001  # the library's names
        KafkaError._TIMED_OUT,  # noqa: SLF001
        KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001
        KafkaError._DESTROY,  # noqa: SLF001
        KafkaError._DESTROY_BROKER,  # noqa: SLF001
        KafkaError.REQUEST_TIMED_OUT,
    }
)


def ensure_topics(admin: TopicAdmin, settings: KafkaSettings, deadline: float) -> dict[str, Topic]:
    """Create, update or check the declared topics, as `topic_strategy` says; returns them. Blocks.

    It is done again when a connection was lost, because librdkafka does not repeat such requests.

    :raises TopicError: when one is missing or too weak; it says what to change.
    :raises ConnectError: when no broker answers by the deadline.
    """
    while True:
        try:
            return _ensure_topics(admin, settings, deadline)
        except ConnectError:
            if time.monotonic() + PAUSE >= deadline:
                raise
        time.sleep(PAUSE)


def _ensure_topics(admin: TopicAdmin, settings: KafkaSettings, deadline: float) -> dict[str, Topic]:
    strategy = settings.topic_strategy
    if strategy == "skip":
        return {}
    names = list(
        dict.fromkeys([*(wanted.name for wanted in settings.topic_settings), *settings.topics])
    )
    topics = admin.describe(names, deadline) if names else {}
    for wanted in settings.topic_settings:
        topics[wanted.name] = _ensure_topic(
            admin, wanted, topics.get(wanted.name), strategy, deadline
        )
    for name in names:
        if name not in topics:
            raise TopicError(f"there is no topic {name}: {REMEDY}", topic=name)
        weakness = topics[name].weakness(name, settings.batch_bytes)
        if weakness is not None:
            raise TopicError(weakness, topic=name, shortcomings=(weakness,))
    return topics


class TopicDifference(NamedTuple):
    """How a topic in the cluster differs from its settings."""

    topic: Topic | None
    """What the cluster has; None if the topic is missing."""
    partitions: int | None
    """To which number the partitions must be raised; None if there are enough."""
    changes: Mapping[str, str]
    """The properties to set."""
    shortcomings: Mapping[str, str]
    """Where it is weaker than the settings require: a sentence for each such property."""


def compare_topic(topic: Topic | None, wanted: KafkaTopicSettings) -> TopicDifference:
    """Compare a topic with its settings; nothing is asked and nothing changed.

    :arg topic: What the cluster has; None if the topic is missing.
    """
    asked = _as_config(wanted)
    if topic is None:
        return TopicDifference(None, wanted.partitions, asked, {})
    found = _shortcomings(topic, wanted)
    return TopicDifference(
        topic,
        wanted.partitions if "partitions" in found else None,
        {key: value for key, value in asked.items() if key in found},
        found,
    )


def _ensure_topic(
    admin: TopicAdmin,
    wanted: KafkaTopicSettings,
    topic: Topic | None,
    strategy: str,
    deadline: float,
) -> Topic:
    if topic is None:
        if strategy == "validate":
            raise TopicError(
                f"topic {wanted.name} is missing: create it, or use topic_strategy=create",
                topic=wanted.name,
            )
        topic = create_topic(admin, wanted, deadline)
    difference = compare_topic(topic, wanted)
    if strategy == "create_or_update":
        topic = update_topic(admin, wanted, difference, deadline)
        difference = compare_topic(topic, wanted)
    if difference.shortcomings:
        raise TopicError(
            f"topic {wanted.name} is weaker than the settings require: "
            f"{'; '.join(difference.shortcomings.values())}: change the topic (topic_strategy="
            "create_or_update does it where Kafka allows it), or the settings",
            topic=wanted.name,
            shortcomings=tuple(difference.shortcomings.values()),
        )
    return topic


def create_topic(admin: TopicAdmin, wanted: KafkaTopicSettings, deadline: float) -> Topic:
    """Create a topic; returns it when the brokers show it. Blocks.

    :raises TopicError: when they refuse it.
    :raises ConnectError: when they do not show it in time.
    """
    admin.create(wanted, deadline)
    return _await_topic(admin, wanted.name, 1, deadline)


def update_topic(
    admin: TopicAdmin, wanted: KafkaTopicSettings, difference: TopicDifference, deadline: float
) -> Topic:
    """Change only what is weaker than the settings require, and what is stronger stays; returns the
    topic when the brokers show it. Blocks.

    :raises TopicError: when they refuse it.
    :raises ConnectError: when they do not show it in time.
    """
    topic = difference.topic
    assert topic is not None, "a missing topic is created"
    if difference.partitions is not None:
        admin.add_partitions(wanted.name, difference.partitions, deadline)
    if difference.changes:
        admin.set_config(wanted.name, difference.changes, deadline)
    while difference.changes or difference.partitions is not None:
        topic = _await_topic(admin, wanted.name, wanted.partitions or 1, deadline)
        if (
            not (_shortcomings(topic, wanted).keys() & difference.changes.keys())
            or time.monotonic() > deadline
        ):
            break
        time.sleep(PAUSE)
    return topic


def _await_topic(admin: TopicAdmin, name: str, partitions: int, deadline: float) -> Topic:
    """Wait until a topic that was just created or changed is seen with its partitions."""
    while True:
        topic = admin.describe([name], deadline).get(name)
        if topic is not None and (topic.partitions or 0) >= partitions:
            return topic
        if time.monotonic() > deadline:
            raise ConnectError(
                f"topic {name} was created or changed, but no broker shows it yet: check the "
                "cluster's controller",
                broker="kafka",
                seconds=0.0,
            )
        time.sleep(PAUSE)


def _left(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())


def _as_config(wanted: KafkaTopicSettings) -> dict[str, str]:
    """The settings as properties of the topic; what is None is left to the broker."""
    config = {
        MIN_INSYNC: wanted.min_insync_replicas,
        CLEANUP: wanted.cleanup_policy,
        RETENTION: None
        if wanted.retention is None
        else round(wanted.retention.total_seconds() * 1000),
        MAX_MESSAGE: wanted.max_message_bytes,
    }
    return {key: str(value) for key, value in config.items() if value is not None}


def _shortcomings(topic: Topic, wanted: KafkaTopicSettings) -> dict[str, str]:
    """Where a topic is weaker than the settings require: a sentence for each such property."""
    found = {}
    if wanted.partitions is not None and (topic.partitions or 0) < wanted.partitions:
        found["partitions"] = (
            f"it has {topic.partitions} partitions, the settings require {wanted.partitions}"
        )
    if wanted.replicas is not None and topic.replicas < wanted.replicas:
        found["replicas"] = (
            f"its replication factor is {topic.replicas}, the settings require {wanted.replicas}"
        )
    asked = _as_config(wanted)
    if asked and not topic.config:
        found["config"] = "this user may not read its configuration: grant DESCRIBE_CONFIGS on it"
        return found
    if wanted.min_insync_replicas is not None:
        # A topic with 2 replicas and min.insync.replicas=3 is written to 2, without an error.
        insync = min(int(topic.config.get(MIN_INSYNC, 1)), topic.replicas)
        if insync < wanted.min_insync_replicas:
            found[MIN_INSYNC] = (
                f"{MIN_INSYNC} is {topic.config.get(MIN_INSYNC)} of {topic.replicas} replicas, "
                f"the settings require {wanted.min_insync_replicas}"
            )
    if wanted.cleanup_policy is not None:
        has = set(topic.config.get(CLEANUP, "").split(","))
        if has != set(wanted.cleanup_policy.split(",")):
            found[CLEANUP] = (
                f"{CLEANUP} is {topic.config.get(CLEANUP)}, "
                f"the settings require {wanted.cleanup_policy}"
            )
    for key in (RETENTION, MAX_MESSAGE):
        value = int(topic.config.get(key, -1))  # -1 is Kafka's "forever"
        if key in asked and 0 <= value < int(asked[key]):
            found[key] = f"{key} is {value}, the settings require {asked[key]}"
    return found

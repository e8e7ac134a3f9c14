"""`KafkaPlanner`: topics as the settings want them, beside those in the cluster."""

import time
from collections.abc import Iterator

from ..errors import TopicError
from ..kafka.probe import Probe
from ..kafka.topics import (
    CLEANUP,
    REMEDY,
    Topic,
    TopicAdmin,
    TopicDifference,
    compare_topic,
    create_topic,
    update_topic,
)
from ..settings import KafkaSettings, KafkaTopicSettings
from .plan import Action, Change, Entry, Plan

__all__ = ["KafkaPlanner"]


class KafkaPlanner:
    """Compares the topics of a cluster with the settings."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._probe = Probe(settings)
        self._admin = TopicAdmin(settings)

    def plan(self) -> Plan:
        """Compare; nothing is changed."""
        self._probe.nodes(self._deadline())  # says why, if no broker lets this user in
        declared = {topic.name: topic for topic in self._settings.topic_settings}
        names = list(dict.fromkeys([*declared, *self._settings.topics]))
        found = self._admin.describe(names, self._deadline()) if names else {}
        entries = [
            self._declared(declared[name], found.get(name))
            if name in declared
            else self._named(name, found.get(name))
            for name in names
        ]
        return Plan("kafka", self._settings.brokers, tuple(entries))

    def apply(self, plan: Plan) -> None:
        """Create and change the topics of the plan."""
        wanted = {topic.name: topic for topic in self._settings.topic_settings}
        for entry in plan.entries:
            if entry.action is Action.CREATE:
                create_topic(self._admin, wanted[entry.name], self._deadline())
            elif entry.action is Action.CHANGE:
                deadline = self._deadline()
                topic = self._admin.describe([entry.name], deadline).get(entry.name)
                difference = compare_topic(topic, wanted[entry.name])
                fields = {*difference.changes, *(("partitions",) if difference.partitions else ())}
                if topic is None or not fields <= entry.fields:
                    raise TopicError(
                        f"topic {entry.name} was changed by somebody else since the plan was "
                        "shown: look at a new plan",
                        topic=entry.name,
                    )
                update_topic(self._admin, wanted[entry.name], difference, deadline)

    def _deadline(self) -> float:
        return time.monotonic() + self._settings.connect_timeout

    def _declared(self, wanted: KafkaTopicSettings, topic: Topic | None) -> Entry:
        difference = compare_topic(topic, wanted)
        obstacles = list(self._obstacles(wanted, difference))
        shortcomings = [f"topic {wanted.name}: {each}" for each in difference.shortcomings.values()]
        if topic is None:
            shortcomings = [f"topic {wanted.name} is missing"]
        elif (weakness := topic.weakness(wanted.name, self._settings.batch_bytes)) is not None:
            shortcomings.append(weakness)
        differs = difference.partitions is not None or difference.changes
        if obstacles:
            action = Action.CANNOT
        elif topic is None:
            action = Action.CREATE
        else:
            action = Action.CHANGE if differs else Action.KEEP
        return Entry(
            "topic",
            wanted.name,
            action,
            changes=tuple(_changes(wanted, difference)),
            shortcomings=tuple(shortcomings),
            obstacles=tuple(obstacles),
            risks=tuple(_risks(wanted, difference)),
        )

    def _obstacles(self, wanted: KafkaTopicSettings, difference: TopicDifference) -> Iterator[str]:
        """What the brokers would not do, and what no broker can do."""
        topic, deadline = difference.topic, self._deadline()
        try:
            if topic is None:
                self._admin.create(wanted, deadline, only_ask=True)
            elif difference.partitions is not None:
                self._admin.add_partitions(
                    wanted.name, difference.partitions, deadline, only_ask=True
                )
            if topic is not None and difference.changes:
                self._admin.set_config(wanted.name, difference.changes, deadline, only_ask=True)
        except TopicError as error:
            yield error.message
        # As if everything had been changed: what is still too weak then.
        later = Topic(difference.partitions, config=difference.changes)
        if topic is not None:
            later = Topic(
                max(topic.partitions or 0, difference.partitions or 0),
                topic.replicas,
                {**topic.config, **difference.changes} if topic.config else {},
            )
            for said in compare_topic(later, wanted).shortcomings.values():
                yield f"topic {wanted.name}: {said}: change the topic, or its KafkaTopicSettings"
        weakness = later.weakness(wanted.name, self._settings.batch_bytes)
        if weakness is not None:
            yield weakness

    def _named(self, name: str, topic: Topic | None) -> Entry:
        """A topic that has to be there, as it is."""
        if topic is None:
            missing = f"there is no topic {name}"
            return Entry(
                "topic",
                name,
                Action.CANNOT,
                shortcomings=(missing,),
                obstacles=(f"{missing}: {REMEDY}",),
            )
        weakness = topic.weakness(name, self._settings.batch_bytes)
        weak = () if weakness is None else (weakness,)
        action = Action.CANNOT if weak else Action.KEEP
        return Entry("topic", name, action, shortcomings=weak, obstacles=weak)


def _changes(wanted: KafkaTopicSettings, difference: TopicDifference) -> Iterator[Change]:
    topic = difference.topic
    if difference.partitions is not None:
        yield Change("partitions", topic and topic.partitions, difference.partitions)
    if topic is None and wanted.replicas is not None:
        yield Change("replicas", None, wanted.replicas)
    for key, value in difference.changes.items():
        yield Change(key, topic and topic.config.get(key), value)


def _risks(wanted: KafkaTopicSettings, difference: TopicDifference) -> Iterator[str]:
    name, topic = wanted.name, difference.topic
    if topic is None:
        return
    if difference.partitions is not None:
        yield (
            f"with more partitions, keys of topic {name} move to others, so the order of an "
            "aggregate is lost between what is stored and what comes"
        )
    if CLEANUP in difference.changes:
        after = difference.changes[CLEANUP]
        what = (
            "all but the last message of each key"
            if after == "compact"
            else "messages that are older than its retention.ms"
        )
        if after == "compact,delete":
            what += ", and all but the last message of each key"
        yield f"with {CLEANUP}={after}, topic {name} removes {what}"

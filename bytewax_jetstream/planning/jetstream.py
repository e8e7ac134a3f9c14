"""`JetStreamPlanner`: streams as the settings want them, beside those on the server."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

from ..errors import StreamError
from ..jetstream.connection import Connection
from ..jetstream.rights import denial_of
from ..jetstream.streams import (
    REMEDY,
    Coverage,
    StreamDifference,
    compare_stream,
    covers,
    create_stream,
    look_up_stream,
    overlap,
    read_coverage,
    somebody_stores,
    update_stream,
)
from ..settings import JetStreamSettings, StreamSettings
from .plan import Action, Change, Entry, Plan

__all__ = ["JetStreamPlanner"]

T = TypeVar("T")

DURATIONS = ("duplicate_window", "max_age")
NEEDS_CLUSTER = (
    "num_replicas of {} needs a cluster, and this server is not in one: set replicas=1, or use a "
    "cluster"
)


class _Subjects(NamedTuple):
    """A subject that a stream has, or would get."""

    subject: str
    stream: str


class JetStreamPlanner:
    """Compares the streams of an account with the settings."""

    def __init__(self, settings: JetStreamSettings) -> None:
        self._settings = settings

    def plan(self) -> Plan:
        """Compare; nothing is changed."""
        entries = asyncio.run(self._connected(self._plan))
        return Plan("jetstream", self._settings.servers, tuple(entries))

    def apply(self, plan: Plan) -> None:
        """Create and update the streams of the plan."""

        async def work(connection: Connection) -> None:
            wanted = {stream.name: stream for stream in self._settings.streams}
            for entry in plan.entries:
                if entry.kind == "stream" and entry.action in (Action.CREATE, Action.CHANGE):
                    await self._make(connection, wanted[entry.name], entry)

        asyncio.run(self._connected(work))

    async def _make(self, connection: Connection, wanted: StreamSettings, entry: Entry) -> None:
        config = await look_up_stream(connection, wanted.name)
        if config is None and entry.action is Action.CREATE:
            await create_stream(connection, wanted)
            return
        difference = self._compare(connection, wanted, config)
        if config is None or not difference.changes.keys() <= entry.fields:
            raise StreamError(
                f"stream {wanted.name} was changed by somebody else since the plan was shown: look "
                "at a new plan",
                stream=wanted.name,
            )
        if difference.changes:
            await update_stream(connection, wanted.name, difference)

    async def _connected(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        connection = Connection(self._settings, on_up=lambda: None, on_down=lambda reason: None)
        deadline = time.monotonic() + self._settings.connect_timeout
        await connection.open()
        try:
            return await connection.repeat_until_answered(lambda: work(connection), deadline)
        finally:
            await connection.close()

    async def _plan(self, connection: Connection) -> list[Entry]:
        coverage = await read_coverage(connection)
        taken = [
            _Subjects(subject, name)
            for name, config in coverage.configs.items()
            for subject in config.get("subjects") or ()
        ]
        entries = []
        for wanted in self._settings.streams:
            config = coverage.configs.get(wanted.name)
            if config is None and wanted.name in coverage.silent:
                config = await look_up_stream(connection, wanted.name)
            difference = self._compare(connection, wanted, config)
            entry = await self._entry(connection, wanted, difference, coverage, taken)
            entries.append(entry)
            had = (config or {}).get("subjects") or ()
            added = [each for each in difference.changes.get("subjects", ()) if each not in had]
            taken += [_Subjects(subject, wanted.name) for subject in added]
        topics = [
            await self._topic(connection, topic, coverage, taken) for topic in self._settings.topics
        ]
        return entries + topics

    def _compare(
        self, connection: Connection, wanted: StreamSettings, config: Mapping[str, Any] | None
    ) -> StreamDifference:
        return compare_stream(
            config,
            wanted,
            takes_batches=connection.takes_batches,
            least_window=self._settings.least_duplicate_window,
        )

    async def _entry(
        self,
        connection: Connection,
        wanted: StreamSettings,
        difference: StreamDifference,
        coverage: Coverage,
        taken: Iterable[_Subjects],
    ) -> Entry:
        name, config, changes = wanted.name, difference.config, difference.changes
        obstacles = [
            *_cannot_change(config, changes),
            *dict.fromkeys(_overlaps(name, changes.get("subjects", ()), taken)),
            *_too_old(connection, wanted, config),
        ]
        if changes.get("num_replicas", 1) > 1 and not connection.is_clustered:
            obstacles.append(NEEDS_CLUSTER.format(name))
        if config is not None:
            # As if everything had been changed: what is still too weak then.
            later = self._compare(connection, wanted, {**config, **changes})
            obstacles += [
                f"{said}: change the stream, or its StreamSettings"
                for said in later.shortcomings.values()
            ]
        if (changes or config is None) and not obstacles:
            verb = "CREATE" if config is None else "UPDATE"
            denied = await denial_of(connection, verb, name)
            obstacles += [denied] if denied is not None else []
        if obstacles:
            action = Action.CANNOT
        elif config is None:
            action = Action.CREATE
        else:
            action = Action.CHANGE if changes else Action.KEEP
        missing = () if config is not None else (f"stream {name} is missing",)
        return Entry(
            "stream",
            name,
            action,
            changes=tuple(_changes(config, changes)),
            shortcomings=(
                *missing,
                *(f"stream {name}: {each}" for each in difference.shortcomings.values()),
            ),
            obstacles=tuple(obstacles),
            risks=tuple(_risks(name, config, changes, coverage)),
        )

    async def _topic(
        self, connection: Connection, topic: str, coverage: Coverage, taken: Iterable[_Subjects]
    ) -> Entry:
        covered = coverage.of(topic)
        if covered is not None:
            weak = () if covered.weakness is None else (f"topic {topic}: {covered.weakness}",)
            return Entry(
                "topic",
                topic,
                Action.CANNOT if weak else Action.KEEP,
                shortcomings=weak,
                obstacles=weak,
                stored_by=covered.stream,
            )
        missing = (f"no stream covers topic {topic}",)
        later = next((each.stream for each in taken if covers(each.subject, topic)), None)
        if later is not None:
            return Entry("topic", topic, Action.CREATE, shortcomings=missing, stored_by=later)
        if await somebody_stores(connection, topic, self._settings):
            return Entry("topic", topic, Action.KEEP)
        return Entry(
            "topic",
            topic,
            Action.CANNOT,
            shortcomings=missing,
            obstacles=(f"{missing[0]}: {REMEDY}",),
        )


def _changes(config: Mapping[str, Any] | None, changes: Mapping[str, Any]) -> list[Change]:
    return [
        Change(
            field,
            None if config is None else _readable(field, config.get(field)),
            _readable(field, value),
        )
        for field, value in changes.items()
        if config is not None or field != "name"
    ]


def _readable(field: str, value: Any) -> Any:
    if field in DURATIONS and value is not None:
        return str(timedelta(microseconds=value / 1000)) if value else "no limit"
    if value is None or (field.startswith("max_") and value == -1):
        return "no limit" if field.startswith("max_") else False
    return value


def _cannot_change(config: Mapping[str, Any] | None, changes: Mapping[str, Any]) -> list[str]:
    """What a server changes of no stream; see `configUpdateCheck` in nats-server."""
    if config is None:
        return []
    name, said = config.get("name"), []
    if "storage" in changes:
        said.append(
            f"the storage of stream {name} is {config.get('storage')}, and no server can change "
            f"it: make another stream, or set storage={config.get('storage')}"
        )
    retention = {config.get("retention", "limits"), changes.get("retention")}
    if "retention" in changes and "workqueue" in retention:
        said.append(
            f"the retention of stream {name} is {config.get('retention')}, and no server can "
            f"change it to or from workqueue: make another stream, or set "
            f"retention={config.get('retention')}"
        )
    return said


def _overlaps(name: str, subjects: Iterable[str], taken: Iterable[_Subjects]) -> list[str]:
    return [
        f"subject {subject} of stream {name} overlaps {each.subject} of stream {each.stream}, and "
        "no two streams may store one topic: take one of them out"
        for subject in subjects
        for each in taken
        if each.stream != name and overlap(subject, each.subject)
    ]


def _too_old(
    connection: Connection, wanted: StreamSettings, config: Mapping[str, Any] | None
) -> list[str]:
    """What the server would ignore in silence."""
    asked = {
        "allow_atomic": (wanted.allow_atomic, connection.takes_groups, "2.12"),
        "allow_msg_schedules": (wanted.allow_message_schedules, connection.takes_groups, "2.12"),
        "allow_msg_ttl": (wanted.allow_message_ttl, connection.takes_ttl, "2.11"),
    }
    return [
        f"{field} of stream {wanted.name} needs nats-server {version} or later: update the server, "
        "or leave it out"
        for field, (is_wanted, is_known, version) in asked.items()
        if is_wanted and not is_known
    ]


def _risks(
    name: str, config: Mapping[str, Any] | None, changes: Mapping[str, Any], coverage: Coverage
) -> list[str]:
    if config is None or "retention" not in changes or name in coverage.empty:
        return []
    if changes["retention"] == "interest":
        said = "removes messages that no consumer waits for, those that are stored already, too"
        return [f"with retention interest, stream {name} {said}"]
    return []

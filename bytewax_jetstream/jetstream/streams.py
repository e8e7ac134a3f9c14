"""Declared streams are created, updated or checked; the list of streams and their subjects.

Requests are raw JSON, and an update sends the server's own configuration with some fields changed.
So fields that this package or nats-py does not know survive an update.
"""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

from ..errors import ConnectError, StreamError
from ..settings import JetStreamSettings, StreamSettings
from .connection import JetStreamApiError

__all__ = [
    "REMEDY",
    "Coverage",
    "StreamDifference",
    "compare_stream",
    "covers",
    "create_stream",
    "ensure_streams",
    "look_up_stream",
    "overlap",
    "read_coverage",
    "somebody_stores",
    "update_stream",
]

STREAM_NOT_FOUND = 10059
STREAM_NAME_IN_USE = 10058
EXPECTED_ANOTHER_STREAM = 10060
MOST_MATCHED = 10_000
"""Topics whose stream is remembered; a dataflow may have any number of them."""

STORAGE_STRENGTH = {"memory": 0, "file": 1}


class Api(Protocol):
    """The part of a connection that this module uses."""

    @property
    def takes_batches(self) -> bool: ...

    async def request(
        self, subject: str, body: dict[str, Any] | None = None, seconds: float | None = None
    ) -> dict[str, Any]: ...

    async def ask(self, topic: str, headers: dict[str, str], seconds: float) -> Any: ...


class Covered(NamedTuple):
    """The stream that stores a topic."""

    stream: str
    weakness: str | None
    """Why publishing to the stream is not safe, or None."""
    stops: bool = False
    """Whether that is true of every message, so that the run stops instead of rejecting each."""


class Coverage:
    """Which stream stores which topic, by the subjects of all streams of the account.

    :arg least_window: Seconds for which a stream must remember event ids; None if it need not.
    """

    def __init__(
        self,
        configs: Mapping[str, Mapping[str, Any]],
        silent: Iterable[str] = (),
        created: Iterable[str] = (),
        empty: Iterable[str] = (),
        *,
        least_window: float | None = None,
        consumers: Mapping[str, int] | None = None,
    ) -> None:
        self.configs = configs
        self.least_window = least_window
        self.consumers = consumers or {}
        """How many consumers each stream has."""
        self.silent = frozenset(silent)
        """Streams without a leader whose subjects are not known: each may store any topic."""
        self.created = frozenset(created)
        """Streams that were created here, so that no earlier run has messages on their way."""
        self.empty = frozenset(empty)
        """Streams in which nothing was ever stored when they were listed."""
        self._exact: dict[str, Covered] = {}
        self._patterns: list[tuple[tuple[str, ...], Covered]] = []
        self._matched: dict[str, Covered | None] = {}
        """What was found by the patterns, of the last topics that were asked for."""
        for name, config in configs.items():
            covered = self._covered(name, config)
            for subject in config.get("subjects") or ():
                if "*" in subject or ">" in subject:
                    self._patterns.append((tuple(subject.split(".")), covered))
                else:
                    self._exact[subject] = covered

    def _covered(self, name: str, config: Mapping[str, Any]) -> Covered:
        weakness = weakness_of(config)
        if weakness is None and (short := short_window(config, self.least_window)) is not None:
            return Covered(name, short, stops=True)
        return Covered(name, weakness)

    def window(self, stream: str) -> float | None:
        """For how many seconds a stream remembers event ids; None if that is not known."""
        window = self.configs.get(stream, {}).get("duplicate_window")
        return window / 1e9 if window is not None else None

    def knows(self, stream: str) -> bool:
        """Whether a stream of that name exists."""
        return stream in self.configs or stream in self.silent

    def lacks(self, topic: str) -> bool:
        """Whether definitely no stream stores a topic."""
        return not self.silent and self.of(topic) is None

    def of(self, topic: str) -> Covered | None:
        """The stream that stores a topic, or None. The server lets no two streams overlap."""
        found = self._exact.get(topic)
        if found is not None or not self._patterns:
            return found
        if topic not in self._matched:
            if len(self._matched) >= MOST_MATCHED:
                self._matched.clear()
            tokens = tuple(topic.split("."))
            self._matched[topic] = next(
                (covered for pattern, covered in self._patterns if _matches(pattern, tokens)), None
            )
        return self._matched[topic]


def covers(pattern: str, topic: str) -> bool:
    """Whether a subject pattern (`orders.*`, `orders.>`) matches a topic or a narrower pattern."""
    return _matches(tuple(pattern.split(".")), tuple(topic.split(".")))


def _matches(pattern: tuple[str, ...], tokens: tuple[str, ...]) -> bool:
    for index, part in enumerate(pattern):
        if part == ">":
            return len(tokens) > index
        if index >= len(tokens) or tokens[index] == ">" or part not in ("*", tokens[index]):
            return False
    return len(pattern) == len(tokens)


def overlap(one: str, other: str) -> bool:
    """Whether some topic matches both subjects: the server lets no two streams have such."""
    for ours, theirs in zip(one.split("."), other.split("."), strict=False):
        if ">" in (ours, theirs):
            return True
        if ours != theirs and "*" not in (ours, theirs):
            return False
    return one.count(".") == other.count(".")


def weakness_of(config: Mapping[str, Any]) -> str | None:
    """Why a stream takes no messages, or could lose one it acknowledged; None when it is safe."""
    name = config.get("name")
    if config.get("no_ack"):
        return (
            f"stream {name} has no_ack set, so it never confirms what it stored: "
            "set no_ack to false"
        )
    if config.get("sealed"):
        return f"stream {name} is sealed and accepts no messages: publish to another stream"
    if config.get("persist_mode") == "async":
        return (
            f"stream {name} acknowledges before it writes (persist_mode async): "
            "use the default persist mode"
        )
    if config.get("mirror"):
        return f"stream {name} is a mirror and accepts no messages: publish to its origin stream"
    return None


def short_window(config: Mapping[str, Any], least: float | None) -> str | None:
    """Why a stream forgets event ids too soon for a retry, or None.

    :arg least: Seconds for which it must remember them; None if it need not.
    """
    window = config.get("duplicate_window")
    if least is None or window is None or window >= round(least * 1e9):
        return None
    return (
        f"stream {config.get('name')} remembers event ids for {window / 1e9:g} s, and a retry may "
        f"come {least:g} s after the first attempt and would be stored twice: raise its "
        f"duplicate_window to at least {least:g} s, lower ack_timeout, or set dedupe=False"
    )


async def read_coverage(
    api: Api, known: Coverage | None = None, seconds: float | None = None
) -> Coverage:
    """List the account's streams, page by page.

    Of a stream without a leader a cluster lists only the name: then the configuration in `known`
    still holds.

    :arg seconds: How long to wait for each page.
    """
    configs: dict[str, Mapping[str, Any]] = {}
    consumers: dict[str, int] = {}
    silent: set[str] = set()
    empty: set[str] = set()
    offset = 0
    while True:
        page = await api.request("STREAM.LIST", {"offset": offset}, seconds)
        streams, missing = page.get("streams") or (), page.get("missing") or ()
        configs.update((stream["config"]["name"], stream["config"]) for stream in streams)
        empty.update(
            stream["config"]["name"]
            for stream in streams
            if stream.get("state", {}).get("last_seq") == 0
        )
        consumers.update(
            (stream["config"]["name"], stream["state"]["consumer_count"])
            for stream in streams
            if "consumer_count" in stream.get("state", ())
        )
        silent.update(missing)
        offset += len(streams) + len(missing)
        if not (streams or missing) or offset >= page.get("total", 0):
            break
    known = known or Coverage({})
    configs.update((name, known.configs[name]) for name in silent & known.configs.keys())
    return Coverage(
        configs,
        silent - configs.keys(),
        known.created,
        empty,
        least_window=known.least_window,
        consumers=consumers,
    )


async def ensure_streams(api: Api, settings: JetStreamSettings) -> Coverage | None:
    """Create, update or check the declared streams, and check that the topics are covered.

    :returns: All streams of the account; None with the strategy `skip`, which checks nothing.
    :raises StreamError: when a stream or topic is missing or too weak; it says what to change.
    """
    strategy = settings.stream_strategy
    if strategy == "skip":
        return None
    created = [
        stream.name
        for stream in settings.streams
        if await _ensure_stream(api, stream, strategy, settings)
    ]
    known = Coverage({}, created=created, least_window=settings.least_duplicate_window)
    coverage = await read_coverage(api, known)
    for topic in settings.topics:
        covered = coverage.of(topic)
        if covered is None and not await somebody_stores(api, topic, settings):
            silent = (
                f" (no leader answers for {', '.join(sorted(coverage.silent))})"
                if coverage.silent
                else ""
            )
            raise StreamError(f"no stream covers topic {topic}{silent}: {REMEDY}", topic=topic)
        if covered is not None and covered.weakness is not None:
            raise StreamError(
                f"topic {topic}: {covered.weakness}",
                stream=covered.stream,
                topic=topic,
                shortcomings=(covered.weakness,),
            )
    return coverage


async def somebody_stores(api: Api, topic: str, settings: JetStreamSettings) -> bool:
    """Whether a stream answers on a topic that no listed stream covers: the account may map the
    topic to another one, or import it from another account.

    Asked with a message that no stream stores, because it expects a stream of another name.
    """
    try:
        answer = await api.ask(
            topic, {"Nats-Expected-Stream": "..."}, min(2.0, settings.connect_timeout)
        )
    except (ConnectError, ValueError):  # nobody answers, or it is no answer of JetStream
        return False
    error = answer.get("error") if isinstance(answer, dict) else None
    return isinstance(error, dict) and error.get("err_code") == EXPECTED_ANOTHER_STREAM


REMEDY = (
    "add it to the subjects of a stream, or declare a StreamSettings for it with "
    "stream_strategy=create"
)


class StreamDifference(NamedTuple):
    """How a stream on the server differs from its settings."""

    config: Mapping[str, Any] | None
    """What the server has; None if the stream is missing."""
    changes: Mapping[str, Any]
    """The configuration to create it with, or the fields to update."""
    shortcomings: Mapping[str, str]
    """Where it is weaker than the settings require: a sentence for each such field."""


def compare_stream(
    config: Mapping[str, Any] | None,
    wanted: StreamSettings,
    *,
    takes_batches: bool,
    least_window: float | None,
) -> StreamDifference:
    """Compare a stream with its settings; nothing is asked and nothing changed.

    :arg config: What the server has; None if the stream is missing.
    :arg least_window: Seconds for which it must remember event ids; None if it need not.
    """
    if config is None:
        return StreamDifference(None, _as_json(wanted, takes_batches), {})
    return StreamDifference(
        config,
        _changes(config, wanted, takes_batches, least_window),
        _shortcomings(config, wanted, least_window),
    )


async def look_up_stream(api: Api, name: str) -> dict[str, Any] | None:
    """A stream's configuration; None if it is missing.

    :raises StreamError: when it cannot be looked up.
    """
    try:
        config: dict[str, Any] = (await api.request(f"STREAM.INFO.{name}"))["config"]
    except JetStreamApiError as error:
        if error.code == STREAM_NOT_FOUND:
            return None
        raise StreamError(
            f"stream {name} cannot be looked up: {error}; check the server's log",
            stream=name,
            code=error.code,
        ) from None
    return config


async def _ensure_stream(
    api: Api, wanted: StreamSettings, strategy: str, settings: JetStreamSettings
) -> bool:
    """Create, update or check one stream; returns whether it was created."""
    created = False

    def compare(config: dict[str, Any]) -> StreamDifference:
        return compare_stream(
            config,
            wanted,
            takes_batches=api.takes_batches,
            least_window=settings.least_duplicate_window,
        )

    config = await look_up_stream(api, wanted.name)
    if config is None:
        if strategy == "validate":
            raise StreamError(
                f"stream {wanted.name} is missing: create it, or use stream_strategy=create",
                stream=wanted.name,
                code=STREAM_NOT_FOUND,
            )
        config = await create_stream(api, wanted)
        created = True
    difference = compare(config)
    if strategy == "create_or_update" and difference.changes:
        difference = compare(await update_stream(api, wanted.name, difference))
    if difference.shortcomings:
        raise StreamError(
            f"stream {wanted.name} is weaker than the settings require: "
            f"{'; '.join(difference.shortcomings.values())}: change the stream (stream_strategy="
            "create_or_update does it where the server allows it), or the settings",
            stream=wanted.name,
            shortcomings=tuple(difference.shortcomings.values()),
        )
    return created


async def update_stream(api: Api, name: str, difference: StreamDifference) -> dict[str, Any]:
    """Change the fields of a stream that are weaker than the settings require; returns its
    configuration.

    :raises StreamError: when the server refuses that; then nothing is changed.
    """
    try:
        info = await api.request(
            f"STREAM.UPDATE.{name}", {**(difference.config or {}), **difference.changes}
        )
    except JetStreamApiError as error:
        raise StreamError(
            f"stream {name} cannot be updated ({', '.join(difference.changes)}): {error}; "
            "change its StreamSettings, or the stream",
            stream=name,
            shortcomings=tuple(difference.shortcomings.values()),
            code=error.code,
        ) from None
    config: dict[str, Any] = info["config"]
    return config


async def create_stream(api: Api, wanted: StreamSettings) -> dict[str, Any]:
    """Create a stream; returns its configuration. If another process was faster, its stream is
    returned, to be checked like any other.

    :raises StreamError: when the server refuses that.
    """
    try:
        info = await api.request(
            f"STREAM.CREATE.{wanted.name}", _as_json(wanted, api.takes_batches)
        )
    except JetStreamApiError as error:
        if error.code == STREAM_NAME_IN_USE:
            info = await api.request(f"STREAM.INFO.{wanted.name}")
            return dict(info["config"])
        raise StreamError(
            f"stream {wanted.name} cannot be created: {error}; change its StreamSettings, or the "
            "server",
            stream=wanted.name,
            code=error.code,
        ) from None
    return dict(info["config"])


def _needs(wanted: StreamSettings, least_window: float) -> timedelta:
    """For how long the stream must remember event ids: as the settings say, or long enough for a
    retry, because nothing is sent again that may be forgotten by then.
    """
    if "duplicate_window" in wanted.model_fields_set:
        return wanted.duplicate_window
    return timedelta(seconds=least_window)


def _nanoseconds(duration: timedelta) -> int:
    return round(duration.total_seconds() * 1e9)


def _as_json(wanted: StreamSettings, takes_batches: bool) -> dict[str, Any]:
    """The settings as the server's JSON; what is None is left to the server."""
    config: dict[str, Any] = {
        "name": wanted.name,
        "subjects": list(wanted.subjects),
        "storage": wanted.storage,
        "num_replicas": wanted.replicas,
        "retention": wanted.retention,
        "duplicate_window": _nanoseconds(wanted.duplicate_window),
        "discard": wanted.discard,
        "max_msgs": wanted.max_messages,
        "max_bytes": wanted.max_bytes,
        "max_msg_size": wanted.max_message_size,
        "max_age": _nanoseconds(wanted.max_age) if wanted.max_age is not None else None,
        "allow_msg_ttl": wanted.allow_message_ttl or None,
        "allow_msg_schedules": wanted.allow_message_schedules or None,
        "allow_atomic": wanted.allow_atomic or None,
        # Only faster, so a stream without it is not weaker than the settings require.
        "allow_batched": (wanted.allow_batched and takes_batches) or None,
    }
    return {key: value for key, value in config.items() if value is not None}


def _changes(
    config: Mapping[str, Any],
    wanted: StreamSettings,
    takes_batches: bool,
    least_window: float | None,
) -> dict[str, Any]:
    """The fields to change so that a stream is as strong as the settings require.

    Stronger fields stay: a stream with 3 replicas keeps them if the settings say 1, the default.
    """
    asked = _as_json(wanted, takes_batches)
    have = list(config.get("subjects") or ())
    missing = [
        subject
        for subject in wanted.subjects
        if not any(covers(pattern, subject) for pattern in have)
    ]
    asked["subjects"] = [
        subject for subject in have if not any(covers(new, subject) for new in missing)
    ] + missing
    changes = {
        key: asked[key] for key in _shortcomings(config, wanted, least_window) if key in asked
    }
    # The server refuses a window longer than the maximum age.
    age = changes.get("max_age", config.get("max_age", 0)) or asked["duplicate_window"]
    window = min(asked["duplicate_window"], age)
    changes.pop("duplicate_window", None)
    if least_window is not None and window > config.get("duplicate_window", 0):
        changes["duplicate_window"] = window
    if asked.get("allow_batched") and not config.get("allow_batched"):
        changes["allow_batched"] = True
    return changes


def _shortcomings(
    config: Mapping[str, Any], wanted: StreamSettings, least_window: float | None
) -> dict[str, str]:
    """Where a stream is weaker than the settings require: a sentence for each such field.

    :arg least_window: Seconds for which it must remember event ids; None if it need not.
    """
    found = {}
    weakness = weakness_of(config)
    if weakness is not None:
        found["weakness"] = weakness
    have = config.get("subjects") or ()
    missing = [
        subject
        for subject in wanted.subjects
        if not any(covers(pattern, subject) for pattern in have)
    ]
    if missing:
        found["subjects"] = "; ".join(
            f"subject {subject} is not among the stream's subjects ({', '.join(have)})"
            for subject in missing
        )
    if STORAGE_STRENGTH.get(config.get("storage", ""), 0) < STORAGE_STRENGTH[wanted.storage]:
        found["storage"] = (
            f"storage is {config.get('storage')}, the settings require {wanted.storage}"
        )
    if config.get("num_replicas", 1) < wanted.replicas:
        found["num_replicas"] = (
            f"num_replicas is {config.get('num_replicas')}, the settings require {wanted.replicas}"
        )
    if config.get("retention", "limits") != wanted.retention:
        found["retention"] = (
            f"retention is {config.get('retention')}, the settings require {wanted.retention}"
        )
    if wanted.discard == "new" and config.get("discard") != "new":
        found["discard"] = (
            "discard is old, which drops stored messages when the stream is full; "
            "the settings require new"
        )
    has_window = timedelta(microseconds=config.get("duplicate_window", 0) / 1000)
    if least_window is not None and has_window < (needs := _needs(wanted, least_window)):
        found["duplicate_window"] = (
            f"duplicate_window is {has_window}, the settings require {needs}"
        )
        age = timedelta(microseconds=config.get("max_age", 0) / 1000)
        if timedelta(0) < age < needs:
            found["duplicate_window"] += f", and the stream's max_age of {age} allows no more"
    if wanted.allow_message_ttl and not config.get("allow_msg_ttl"):
        found["allow_msg_ttl"] = "allow_msg_ttl is off, the settings require it on"
    if wanted.allow_message_schedules and not config.get("allow_msg_schedules"):
        found["allow_msg_schedules"] = (
            "allow_msg_schedules is off, the settings require it on (nats-server 2.12 or later)"
        )
    if wanted.allow_atomic and not config.get("allow_atomic"):
        found["allow_atomic"] = (
            "allow_atomic is off, the settings require it on (nats-server 2.12 or later)"
        )
    limits = {
        "max_msgs": wanted.max_messages,
        "max_bytes": wanted.max_bytes,
        "max_msg_size": wanted.max_message_size,
    }
    for key, asked in limits.items():
        has = config.get(key, -1)  # -1 is the server's "no limit"
        if asked is not None and 0 < has < asked:
            found[key] = f"{key} is {has}, the settings require {asked}"
    age = config.get("max_age", 0)  # and so is 0 for an age
    if wanted.max_age is not None and 0 < age < _nanoseconds(wanted.max_age):
        found["max_age"] = (
            f"max_age is {timedelta(microseconds=age / 1000)}, "
            f"the settings require {wanted.max_age}"
        )
    return found

"""`Plan`: what a broker has, what would be made or changed, and what cannot be."""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any, Literal, NamedTuple

__all__ = ["Action", "Change", "Entry", "Plan", "summary"]


class Action(StrEnum):
    """What has to happen to a stream or a topic."""

    CREATE = "create"
    CHANGE = "change"
    KEEP = "keep"
    """It is at least as the settings require."""
    CANNOT = "cannot"
    """It cannot be made as the settings require: somebody has to decide."""


class Change(NamedTuple):
    """One field or property that would get another value."""

    field: str
    before: Any
    """None if it is not there, or not known."""
    after: Any


class Entry(NamedTuple):
    """One stream, or one topic."""

    kind: Literal["stream", "topic"]
    name: str
    action: Action
    changes: tuple[Change, ...] = ()
    shortcomings: tuple[str, ...] = ()
    """In what it is less than the settings require, as it is now."""
    obstacles: tuple[str, ...] = ()
    """Why it cannot be made as the settings require, and what to do."""
    risks: tuple[str, ...] = ()
    """What a change could do to messages that are stored already."""
    stored_by: str | None = None
    """JetStream: the stream that stores, or will store, this topic."""

    @property
    def fields(self) -> frozenset[str]:
        """What the changes concern: `apply` changes nothing else."""
        return frozenset(change.field for change in self.changes)


class Plan(NamedTuple):
    """All that is wanted of one broker."""

    broker: Literal["jetstream", "kafka"]
    servers: tuple[str, ...]
    entries: tuple[Entry, ...]

    @property
    def differs(self) -> bool:
        """Whether anything would be made or changed, or cannot be."""
        return any(entry.action is not Action.KEEP for entry in self.entries)

    @property
    def is_possible(self) -> bool:
        """Whether everything can be made as the settings require."""
        return all(entry.action is not Action.CANNOT for entry in self.entries)

    @property
    def risks(self) -> tuple[str, ...]:
        """What the changes could do to messages that are stored already."""
        return tuple(risk for entry in self.entries for risk in entry.risks)

    @property
    def shortcomings(self) -> tuple[str, ...]:
        """In what the broker is less than the settings require, as it is now."""
        return tuple(each for entry in self.entries for each in entry.shortcomings)

    def lines(self) -> Iterator[str]:
        """The plan for a reader."""
        name = "JetStream" if self.broker == "jetstream" else "Kafka"
        yield f"{name} at {', '.join(self.servers)}"
        for entry in self.entries:
            yield f"  {_headline(entry)}"
            for change in entry.changes:
                yield f"      {_change(change)}"
            for said in entry.risks:
                yield f"      risk: {said}"
            for said in entry.obstacles:
                yield f"      {said}"

    def as_json(self) -> dict[str, Any]:
        """The plan for a machine."""
        return {
            "broker": self.broker,
            "servers": list(self.servers),
            "differs": self.differs,
            "possible": self.is_possible,
            "entries": [
                {
                    "kind": entry.kind,
                    "name": entry.name,
                    "action": entry.action.value,
                    "changes": [change._asdict() for change in entry.changes],
                    "shortcomings": list(entry.shortcomings),
                    "obstacles": list(entry.obstacles),
                    "risks": list(entry.risks),
                    "stored_by": entry.stored_by,
                }
                for entry in self.entries
            ],
        }


def summary(plans: Iterable[Plan]) -> str:
    """How many of each, in one line."""
    actions = [entry.action for plan in plans for entry in plan.entries]
    words = {
        Action.CREATE: "to create",
        Action.CHANGE: "to change",
        Action.KEEP: "to keep",
        Action.CANNOT: "that cannot be made as the settings require",
    }
    said = [f"{actions.count(each)} {word}" for each, word in words.items() if each in actions]
    return f"Plan: {', '.join(said)}"


SIGN = {Action.CREATE: "+", Action.CHANGE: "~", Action.KEEP: "=", Action.CANNOT: "!"}


def _headline(entry: Entry) -> str:
    said = f"{SIGN[entry.action]} {entry.kind} {entry.name}"
    if entry.stored_by is not None:
        stored = "is stored by" if entry.action is Action.KEEP else "would be stored by"
        return f"{said} {stored} stream {entry.stored_by}"
    words = {
        Action.CREATE: "is missing, and would be created",
        Action.CHANGE: "would be changed",
        Action.KEEP: "is as the settings require",
        Action.CANNOT: "cannot be made as the settings require",
    }
    return f"{said} {words[entry.action]}"


def _change(change: Change) -> str:
    if change.before is None:
        return f"{change.field}: {_shown(change.after)}"
    return f"{change.field}: {_shown(change.before)} -> {_shown(change.after)}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)

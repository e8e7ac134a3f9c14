"""Where a partition begins to read: at its start, or where the recovery store says. No I/O."""

from typing import Literal, NamedTuple

from ...errors import SourceError
from ...recovery_state import KafkaPlace

__all__ = ["Begin", "KafkaStart", "Log", "Topic", "begin"]

KafkaStart = Literal["first", "new"] | int
"""Where reading begins in every partition: at its start, at its end, or at an offset."""

OLD_END = -1
OLD_FIRST = -2
"""What the state of Bytewax's source holds for a partition in which it has read nothing."""


class Log(NamedTuple):
    """What a partition holds."""

    first: int
    """Offset of the first message that is there."""
    end: int
    """Offset of the next message."""
    epoch: int | None = None
    """The leader epoch at the end: it grows with each new leader."""


class Topic(NamedTuple):
    """A topic as it is in the cluster."""

    topic_id: str | None
    """None from brokers before 2.8, which have none."""
    logs: tuple[Log, ...]


class Begin(NamedTuple):
    """Where a partition begins."""

    position: int | None
    """None while there is no such partition."""
    epoch: int | None = None
    """Leader epoch of the message before it, against which the library checks the log."""
    missed_from: int | None = None
    """The first offset that was removed before it was read, if any was."""


def begin(
    place: KafkaPlace | None, start: KafkaStart, name: str, topic: Topic, number: int, step: str
) -> Begin:
    """Where to begin a partition.

    :arg place: Its place in the recovery store; None at the first start.
    :raises SourceError: when the place is not in this topic, so that messages would be missed or
        repeated.
    """
    log = topic.logs[number] if number < len(topic.logs) else None
    if place is None:
        return Begin(None) if log is None else _first_start(start, log, name, number, step)
    _check_id(place, name, topic, number, step)
    if log is None:
        if place.position is None:
            return Begin(None)
        raise SourceError(
            f"partition {number} of topic {name} was read up to offset {place.position}, and is "
            "not there any more: the topic was made again with fewer partitions. Give the input "
            "another step id to read it from its start",
            step=step,
            topic=name,
            partition=number,
            offset=place.position,
        )
    if place.position == OLD_END:
        return Begin(log.end)
    if place.position == OLD_FIRST:
        return Begin(log.first)
    position = place.position or 0  # of a partition that has appeared since, all is new
    if position < log.first:
        return Begin(log.first, None, position)
    epoch_is_gone = (
        place.epoch is not None and log.epoch is not None and 0 <= log.epoch < place.epoch
    )
    if position > log.end or epoch_is_gone:
        raise truncated(name, number, position, log, step)
    return Begin(position, place.epoch)


def truncated(name: str, number: int, position: int, log: Log, step: str) -> SourceError:
    """The error for a log that lacks messages which were read from it."""
    return SourceError(
        f"partition {number} of topic {name} was read up to offset {position}, and now ends at "
        f"{log.end}, or has other messages before that: the brokers have lost messages that were "
        "read, or the topic was made again. Give the input another step id to read it from its "
        "start",
        step=step,
        topic=name,
        partition=number,
        offset=position,
    )


def made_again(name: str, step: str, number: int | None, position: int | None) -> SourceError:
    """The error for a topic that is not the one that was read."""
    where = (
        ""
        if position is None
        else f" Offset {position} of partition {number} belongs to the former topic."
    )
    return SourceError(
        f"topic {name} was deleted and made again since it was read.{where} Give the input another "
        "step id to read the new topic from its start",
        step=step,
        topic=name,
        partition=number,
        offset=position,
    )


def _check_id(place: KafkaPlace, name: str, topic: Topic, number: int, step: str) -> None:
    if None not in (place.topic_id, topic.topic_id) and place.topic_id != topic.topic_id:
        raise made_again(name, step, number, place.position)


def _first_start(start: KafkaStart, log: Log, name: str, number: int, step: str) -> Begin:
    if start == "first":
        return Begin(log.first)
    if start == "new":
        return Begin(log.end)
    assert isinstance(start, int)
    if start > log.end:
        raise SourceError(
            f"start={start} is beyond the end of partition {number} of topic {name}, which is "
            f"{log.end}: give an offset that every partition has, 'first' or 'new'",
            step=step,
            topic=name,
            partition=number,
            offset=start,
        )
    return Begin(start) if start >= log.first else Begin(log.first, None, start)

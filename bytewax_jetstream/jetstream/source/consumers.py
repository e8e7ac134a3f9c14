"""Pull consumers, durable or not: found or created, and their configuration compared.

Requests are raw JSON, as in `streams`. An existing consumer is checked, and never changed: it may
belong to someone else.
"""

import secrets
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from ...errors import SourceError, StreamError
from ..connection import JetStreamApiError
from ..message import Start
from ..streams import STREAM_NOT_FOUND, Api

__all__ = ["Found", "Reading", "durable_consumer", "sequence_consumer"]

CONSUMER_NOT_FOUND = 10014
NANOSECONDS = 1_000_000_000
INACTIVE_SECONDS = 60
"""The server removes a consumer by sequence that nobody pulls from for this long."""


class Reading(NamedTuple):
    """What one partition reads."""

    stream: str
    subject: str | None
    """Read only messages whose subject matches this pattern; None reads all."""
    start: Start
    durable: str | None
    ack_wait: timedelta
    max_ack_pending: int

    def __str__(self) -> str:
        return f"stream {self.stream}" + (f" (subject {self.subject})" if self.subject else "")


class Found(NamedTuple):
    """A consumer that is ready to be pulled from."""

    name: str
    config: dict[str, Any]
    position: int
    """The stream sequence it delivers from."""
    ack_floor: int
    """The stream sequence up to which everything is acknowledged."""
    unacknowledged: int
    """How many messages were delivered, to anyone, and not acknowledged."""
    last: int
    """The stream's last sequence just before the consumer was made (by sequence only)."""
    created: str
    """When the stream was made (by sequence only)."""


async def sequence_consumer(
    api: Api, reading: Reading, position: int | None, created: str | None
) -> Found:
    """Make a consumer that leaves nothing behind: in memory, no acks, gone soon after its last use.

    :arg position: The stream sequence to begin with; None for the reading's own start.
    :arg created: When the stream that the position belongs to was made, if known.
    :raises StreamError: when the stream is missing.
    :raises SourceError: when reading by sequence would miss or repeat messages.
    """
    info = await _info(api, f"STREAM.INFO.{reading.stream}", reading)
    retention, state = info["config"].get("retention", "limits"), info["state"]
    if retention != "limits":
        raise SourceError(
            f"stream {reading.stream} has {retention} retention, which removes what its consumers "
            "acknowledge, and reading by sequence acknowledges nothing: name a consumer with "
            "durable=",
            stream=reading.stream,
            subject=reading.subject,
        )
    renewed = created is not None and info["created"] != created
    # A start chosen by the user may lie ahead of the stream; a position reached by reading cannot.
    if renewed or (
        position is not None and position != reading.start and position > state["last_seq"] + 1
    ):
        read = (position or 1) - 1
        raise SourceError(
            f"stream {reading.stream} was read to sequence {read} and now ends at "
            f"{state['last_seq']}, or was created again: to read it from its start, give the input "
            "another step id",
            stream=reading.stream,
            subject=reading.subject,
            sequence=read,
        )
    config: dict[str, Any] = {
        "ack_policy": "none",
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": INACTIVE_SECONDS * NANOSECONDS,
        **_deliver(reading.start if position is None else position),
    }
    answer = await _create(api, reading, f"bytewax-{secrets.token_hex(6)}", config)
    return _found(answer)._replace(last=state["last_seq"], created=info["created"])


async def durable_consumer(api: Api, reading: Reading, *, may_create: bool) -> Found:
    """Find the durable consumer and check it, or make it.

    :raises StreamError: when the stream is missing, or a consumer that may not be made.
    :raises SourceError: when the consumer's messages cannot be acknowledged epoch by epoch.
    """
    name = reading.durable
    assert name is not None
    try:
        what = f"CONSUMER.INFO.{reading.stream}.{name}"
        answer = await _info(api, what, reading)
    except JetStreamApiError as error:
        if error.code != CONSUMER_NOT_FOUND:
            raise
        if not may_create:
            raise StreamError(
                f"durable consumer {name} of stream {reading.stream} was deleted while it was "
                "read: start the flow again, which creates it again",
                stream=reading.stream,
                consumer=name,
                code=error.code,
            ) from None
        config: dict[str, Any] = {
            "durable_name": name,
            "ack_policy": "explicit",
            "ack_wait": round(reading.ack_wait.total_seconds() * NANOSECONDS),
            "max_ack_pending": reading.max_ack_pending,
            **_deliver(reading.start),
        }
        answer = await _create(api, reading, name, config)
    conflicts = _conflicts(answer["config"], reading)
    if conflicts:
        raise SourceError(
            f"durable consumer {name} of stream {reading.stream} cannot be used: "
            f"{'; '.join(conflicts)}: change the consumer or the source, or name another consumer "
            "with durable=",
            stream=reading.stream,
            subject=reading.subject,
            consumer=name,
            shortcomings=tuple(conflicts),
        )
    return _found(answer)


async def _info(api: Api, request: str, reading: Reading) -> dict[str, Any]:
    try:
        return await api.request(request)
    except JetStreamApiError as error:
        if error.code == STREAM_NOT_FOUND:
            raise StreamError(
                f"{reading} is missing: create it, then start the flow again",
                stream=reading.stream,
                code=error.code,
            ) from None
        raise


async def _create(api: Api, reading: Reading, name: str, config: dict[str, Any]) -> dict[str, Any]:
    request = f"CONSUMER.CREATE.{reading.stream}.{name}"
    if reading.subject is not None:  # in the request's subject too, so that permissions can name it
        request += f".{reading.subject}"
        config["filter_subject"] = reading.subject
    config["name"] = name
    return await api.request(
        request, {"stream_name": reading.stream, "action": "create", "config": config}
    )


def _deliver(start: Start) -> dict[str, Any]:
    if start == "first":
        return {"deliver_policy": "all"}
    if start == "new":
        return {"deliver_policy": "new"}
    if isinstance(start, datetime):
        return {
            "deliver_policy": "by_start_time",
            "opt_start_time": start.astimezone(UTC).isoformat(),
        }
    return {"deliver_policy": "by_start_sequence", "opt_start_seq": start}


def _found(answer: dict[str, Any]) -> Found:
    return Found(
        name=answer["name"],
        config=answer["config"],
        position=answer["delivered"]["stream_seq"] + 1,
        ack_floor=answer["ack_floor"]["stream_seq"],
        unacknowledged=answer.get("num_ack_pending", 0),
        last=0,
        created="",
    )


def _conflicts(config: dict[str, Any], reading: Reading) -> list[str]:
    """What keeps a consumer from doing what this source relies on."""
    found = []
    if config.get("deliver_subject"):
        found.append("it is a push consumer, the source requires a pull consumer")
    if config.get("ack_policy") != "explicit":
        found.append(f"its ack_policy is {config.get('ack_policy')}, the source requires explicit")
    subjects = config.get("filter_subjects") or [config.get("filter_subject") or None]
    if subjects != [reading.subject]:
        found.append(
            f"it delivers {', '.join(each or 'all subjects' for each in subjects)}, "
            f"the source requires {reading.subject or 'all subjects'}"
        )
    wait = timedelta(microseconds=config.get("ack_wait", 0) / 1000)
    if wait < reading.ack_wait:
        found.append(f"its ack_wait is {wait}, the source requires {reading.ack_wait}")
    pending = config.get("max_ack_pending", 0)
    if 0 < pending < reading.max_ack_pending:
        found.append(
            f"its max_ack_pending is {pending}, the source requires {reading.max_ack_pending}"
        )
    if (deliveries := config.get("max_deliver", -1)) > 0:
        found.append(
            f"its max_deliver is {deliveries}, so it gives up a message after as many crashes "
            "(set it to -1)"
        )
    if config.get("headers_only"):
        found.append("it delivers headers only (set headers_only to false)")
    return found

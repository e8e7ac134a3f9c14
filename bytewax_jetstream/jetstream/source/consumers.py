"""Pull consumers, durable or not: found or created, and their configuration compared.

Requests are raw JSON, as in `streams`. An existing consumer is checked, and never changed: it may
belong to someone else.
"""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from ...errors import ConnectError, SourceError, StreamError
from ...recovery_state import DurableState, SequenceState
from ..connection import JetStreamApiError
from ..message import Start
from ..streams import STREAM_NOT_FOUND, Api
from .leftovers import CONSUMER_NOT_FOUND, delete_leftovers, new_name
from .reading import Found, Reading
from .same_stream import check_same_stream

__all__ = ["durable_consumer", "sequence_consumer", "warn_of_pause"]

log = logging.getLogger(__name__)

MAX_CONSUMERS_REACHED = 10026
MAX_ACK_PENDING_EXCEEDED = 10121
NANOSECONDS = 1_000_000_000
INACTIVE_SECONDS = 60
"""The server removes a consumer by sequence that nobody pulls from for this long."""
PULLS = 2
"""How many pull requests a feed has open."""


async def sequence_consumer(
    api: Api, reading: Reading, position: int | None, before: SequenceState | None
) -> Found:
    """Make a consumer that leaves nothing behind: in memory, no acks, gone soon after its last use.

    :arg position: The stream sequence to begin with; None for the reading's own start.
    :arg before: Where reading was before, if it was.
    :raises StreamError: when the stream is missing.
    :raises SourceError: when reading by sequence would miss or repeat messages.
    """
    info = await _info(api, f"STREAM.INFO.{reading.stream}", reading)
    retention = info["config"].get("retention", "limits")
    if retention != "limits":
        raise SourceError(
            f"stream {reading.stream} has {retention} retention, which removes what its consumers "
            "acknowledge, and reading by sequence acknowledges nothing: name a consumer with "
            "durable=",
            stream=reading.stream,
            subject=reading.subject,
        )
    if before is not None:
        await check_same_stream(api, reading, before, info)
    config: dict[str, Any] = {
        "ack_policy": "none",
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": _inactive_threshold(info["config"]),
        **_deliver(reading.start if position is None else position),
    }
    try:
        answer = await _create(api, reading, new_name(reading), config)
    except JetStreamApiError as error:
        if error.code != MAX_CONSUMERS_REACHED:
            raise
        if not await delete_leftovers(api, reading):
            raise _no_more_consumers(reading, error) from None
        log.info("%s: deleted consumers that a killed run had left behind", reading)
        answer = await _create(api, reading, new_name(reading), config)
    return _found(answer)._replace(stream=info)


async def durable_consumer(
    api: Api, reading: Reading, before: DurableState | None, *, may_create: bool
) -> Found:
    """Find the durable consumer and check it, or make it.

    :arg before: What an earlier run, or an earlier feed, knew of the consumer.
    :raises StreamError: when the stream is missing, or a consumer that may not be made.
    :raises SourceError: when the consumer's messages cannot be acknowledged epoch by epoch, or it
        is not the one that was read through before.
    """
    name = reading.durable
    assert name is not None
    try:
        answer = await _info(api, f"CONSUMER.INFO.{reading.stream}.{name}", reading)
    except JetStreamApiError as error:
        if error.code != CONSUMER_NOT_FOUND:
            raise
        if not may_create:
            raise StreamError(
                f"durable consumer {name} of stream {reading.stream} was deleted while it was "
                "read: start the flow again, which creates it again unless there is recovery state",
                stream=reading.stream,
                consumer=name,
                code=error.code,
            ) from None
        if before is not None:
            raise _not_the_same(reading, "was deleted after the last run", error.code) from None
        answer = await _create_durable(api, reading, name)
    if before is not None and before.created not in (None, answer["created"]):
        raise _not_the_same(
            reading,
            f"was deleted and created again (at {answer['created']}; the one that was read through "
            f"before is of {before.created})",
        )
    info = await _stream_info(api, reading)
    conflicts = _conflicts(answer["config"], reading, _limits(info))
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
    if may_create:  # once, and not at every lost connection
        _warn(answer, reading)
    return _found(answer)._replace(stream=info)


def _warn(answer: dict[str, Any], reading: Reading) -> None:
    """Say what will keep messages away later, although the consumer can be used now."""
    config = answer["config"]
    if answer.get("paused"):
        warn_of_pause(answer, reading)
    if idle := config.get("inactive_threshold", 0):
        log.warning(
            "durable consumer %s of stream %s is deleted by the server when nobody reads through "
            "it for %g s, and the position with it: set its inactive_threshold to 0 (and remove "
            "the one of the stream's consumer_limits)",
            reading.durable,
            reading.stream,
            idle / NANOSECONDS,
        )


def warn_of_pause(info: dict[str, Any], reading: Reading) -> None:
    """Say that the consumer delivers nothing, and until when."""
    log.warning(
        "durable consumer %s of stream %s is paused until %s: no message comes before that; "
        "resume it to read now",
        reading.durable,
        reading.stream,
        info["config"].get("pause_until"),
    )


async def _create_durable(api: Api, reading: Reading, name: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "durable_name": name,
        "ack_policy": "explicit",
        "ack_wait": round(reading.ack_wait.total_seconds() * NANOSECONDS),
        "max_ack_pending": reading.max_ack_pending,
        **_deliver(reading.start),
    }
    try:
        return await _create(api, reading, name, config)
    except JetStreamApiError as error:
        if error.code == MAX_CONSUMERS_REACHED:
            raise _no_more_consumers(reading, error) from None
        if error.code != MAX_ACK_PENDING_EXCEEDED:
            raise
        limit = _limits(await _stream_info(api, reading)).get("max_ack_pending", 0)
        if not 0 < limit < reading.max_ack_pending:
            raise SourceError(
                f"{reading} cannot be read: the server refused the consumer ({error}), and the "
                f"source requires {reading.max_ack_pending}: lower the source's max_ack_pending, "
                "or raise the limit",
                stream=reading.stream,
                subject=reading.subject,
                consumer=name,
                code=error.code,
            ) from None
    log.warning(
        "%s: durable consumer %s has a max_ack_pending of %d instead of %d, because the stream's "
        "consumer_limits allow no more: reading waits for the epoch's end after as many messages",
        reading,
        name,
        limit,
        reading.max_ack_pending,
    )
    return await _create(api, reading, name, {**config, "max_ack_pending": limit})


def _inactive_threshold(stream: dict[str, Any]) -> int:
    wanted = INACTIVE_SECONDS * NANOSECONDS
    return min(wanted, stream.get("consumer_limits", {}).get("inactive_threshold", 0) or wanted)


def _limits(info: dict[str, Any] | None) -> dict[str, int]:
    """The stream's limits for its consumers; empty if they are not known."""
    limits: dict[str, int] = (info or {}).get("config", {}).get("consumer_limits") or {}
    return limits


def _no_more_consumers(reading: Reading, error: JetStreamApiError) -> SourceError:
    return SourceError(
        f"{reading} cannot be read: the server allows no more consumers ({error}): raise "
        "max_consumers of the stream or the account, or delete a consumer that nobody needs",
        stream=reading.stream,
        subject=reading.subject,
        consumer=reading.durable,
        code=error.code,
    )


def _not_the_same(reading: Reading, what: str, code: int | None = None) -> SourceError:
    return SourceError(
        f"durable consumer {reading.durable} of stream {reading.stream} {what}, and its position "
        "is lost: a new one may miss or repeat messages: to read on with the consumer as it is "
        f"then, or with a new one from start={reading.start}, give the input another step id",
        stream=reading.stream,
        subject=reading.subject,
        consumer=reading.durable,
        code=code,
    )


async def _stream_info(api: Api, reading: Reading) -> dict[str, Any] | None:
    """What the server says of the stream; None if this user may not ask, for it is not needed."""
    try:
        return await api.request(f"STREAM.INFO.{reading.stream}")
    except (ConnectError, JetStreamApiError):
        return None


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
        created=answer["created"],
        position=answer["delivered"]["stream_seq"] + 1,
        ack_floor=answer["ack_floor"]["stream_seq"],
        unacknowledged=answer.get("num_ack_pending", 0),
        pending=answer.get("num_pending", 0),
        number=answer["delivered"]["consumer_seq"],
        paused=bool(answer.get("paused")),
    )


def _conflicts(config: dict[str, Any], reading: Reading, limits: dict[str, int]) -> list[str]:
    """What keeps a consumer from doing what this source relies on.

    :arg limits: What the stream allows its consumers: no more is required.
    """
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
    allowed = limits.get("max_ack_pending", 0)
    if 0 < pending < min(reading.max_ack_pending, allowed or reading.max_ack_pending):
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
    if groups := config.get("priority_groups"):
        found.append(
            f"it has the priority groups {', '.join(groups)}, and the source belongs to none "
            "(remove priority_groups)"
        )
    if 0 < config.get("max_waiting", 0) < PULLS:
        found.append(
            f"its max_waiting is {config['max_waiting']}, the source has {PULLS} pull requests open"
        )
    return found

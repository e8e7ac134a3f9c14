"""Whether a stream is the one that was read before, and not another one of its name.

A stream that was deleted and made again counts its sequences from 1 again, so a position in the
old one means nothing in the new one. A stream that was restored from a backup, or a mirror that was
made again, has the same messages under the same sequences, and is read on.
"""

import calendar
import logging
import re
import time
from typing import Any

from ...errors import ConnectError, SourceError
from ...recovery_state import SequenceState
from ..connection import JetStreamApiError
from ..streams import Api
from .reading import Reading

__all__ = ["check_same_stream", "nanoseconds"]

log = logging.getLogger(__name__)

RFC3339 = re.compile(r"(\d+-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z").fullmatch


async def check_same_stream(
    api: Api, reading: Reading, before: SequenceState, info: dict[str, Any]
) -> None:
    """Compare the stream with the one to which the position belongs.

    The message before the position decides, where it still exists and its time is known: no two
    messages have the same sequence and the same nanosecond. Otherwise it is the time at which the
    stream was made.

    :arg info: What the server says of the stream now.
    :raises SourceError: when it is another stream, or an older copy of it.
    """
    position, created, stored = before
    state, read = info["state"], position - 1
    # A start chosen by the user may lie ahead of the stream; a position reached by reading cannot.
    if read > state["last_seq"] and (position != reading.start or stored):
        raise _another(reading, before, info, "")
    if created is None:
        return
    renewed = created != info["created"]
    if stored and state["first_seq"] <= read <= state["last_seq"]:
        found = await _stored_time(api, reading, read)
        if found is not None:
            if found != stored:
                raise _another(
                    reading, before, info, f": it stores another message as sequence {read}"
                )
            if renewed:
                log.info(
                    "%s was created again at %s and holds the same messages",
                    reading,
                    info["created"],
                )
            return
    if renewed:
        raise _another(
            reading, before, info, f": it was created at {info['created']}, before at {created}"
        )


def nanoseconds(text: str) -> int:
    """A time in the server's words, such as 2026-11-30T11:49:43.123456789Z; 0 if it is none."""
    parts = RFC3339(text)
    if parts is None:
        return 0
    seconds = calendar.timegm(time.strptime(parts[1], "%Y-%m-%dT%H:%M:%S"))
    return max(0, seconds * 1_000_000_000 + int((parts[2] or "").ljust(9, "0")))


async def _stored_time(api: Api, reading: Reading, sequence: int) -> int | None:
    """When the stream stored a message; None if it is removed, or this user may not ask for it."""
    try:
        answer = await api.request(f"STREAM.MSG.GET.{reading.stream}", {"seq": sequence})
    except (ConnectError, JetStreamApiError):
        return None
    return nanoseconds(answer["message"]["time"]) or None


def _another(
    reading: Reading, before: SequenceState, info: dict[str, Any], why: str
) -> SourceError:
    read = before.position - 1
    mirror = (
        "if this mirror is still being filled, start the flow again later; "
        if info["config"].get("mirror")
        else ""
    )
    return SourceError(
        f"stream {reading.stream} was read to sequence {read} and now ends at "
        f"{info['state']['last_seq']}, or was created again{why}: {mirror}to read it from its "
        "start, give the input another step id",
        stream=reading.stream,
        subject=reading.subject,
        sequence=read,
    )

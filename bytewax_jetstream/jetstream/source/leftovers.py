"""Consumers that earlier runs of a partition left behind, because they were killed.

The server removes a consumer by sequence when nobody has pulled from it for a minute. A flow that
crashes at each start leaves one more each time, until the stream takes no more consumers.
"""

import asyncio
import secrets
import time
from hashlib import sha256

from ..connection import JetStreamApiError
from ..streams import Api
from .reading import Reading

__all__ = ["CONSUMER_NOT_FOUND", "delete_leftovers", "new_name"]

CONSUMER_NOT_FOUND = 10014
PATIENCE_SECONDS = 3.0
"""How long to wait for the server to notice that a consumer's last user is gone."""
PAUSE_SECONDS = 0.1


def new_name(reading: Reading) -> str:
    """A name for a consumer, from which later runs of the partition know it as their own."""
    return f"{_prefix(reading)}{secrets.token_hex(4)}"


async def delete_leftovers(api: Api, reading: Reading) -> bool:
    """Delete consumers of earlier runs of this partition that nobody pulls from; returns whether
    there is one less.

    One that is pulled from belongs to another process that runs the same flow, and stays.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        names = await _names(api, reading)
        deleted = [await _delete_unused(api, reading, name) for name in names]
        if any(deleted) or not names or time.monotonic() > deadline:
            return any(deleted)
        await asyncio.sleep(PAUSE_SECONDS)


def _prefix(reading: Reading) -> str:
    # A length before each part, so that no two partitions make the same text.
    parts = (reading.step, reading.stream, reading.subject or "")
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return f"bytewax-{sha256(text.encode()).hexdigest()[:12]}-"


async def _names(api: Api, reading: Reading) -> list[str]:
    prefix, seen = _prefix(reading), 0
    found: list[str] = []
    while True:
        page = await api.request(f"CONSUMER.NAMES.{reading.stream}", {"offset": seen})
        names = page.get("consumers") or ()
        found += [name for name in names if name.startswith(prefix)]
        seen += len(names)
        if not names or seen >= page.get("total", 0):
            return found


async def _delete_unused(api: Api, reading: Reading, name: str) -> bool:
    """Delete a consumer that nobody pulls from; returns whether it is gone."""
    try:
        info = await api.request(f"CONSUMER.INFO.{reading.stream}.{name}")
        if info.get("num_waiting", 0):
            return False
        await api.request(f"CONSUMER.DELETE.{reading.stream}.{name}")
    except JetStreamApiError as error:
        return error.code == CONSUMER_NOT_FOUND
    return True

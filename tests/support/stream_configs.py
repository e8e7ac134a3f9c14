"""A stream as the server describes it, and as settings ask for it."""

from typing import Any

from bytewax_jetstream.settings import StreamSettings

__all__ = ["MINUTE", "ON_THE_SERVER", "wanted"]

MINUTE = 60 * 10**9

ON_THE_SERVER: dict[str, Any] = {
    "name": "ORDERS",
    "subjects": ["orders.>"],
    "storage": "file",
    "num_replicas": 1,
    "retention": "limits",
    "discard": "old",
    "duplicate_window": 2 * MINUTE,
    "max_msgs": -1,
    "max_bytes": -1,
    "max_msg_size": -1,
    "max_age": 0,
    "allow_direct": True,
    "deny_purge": True,
    "metadata": {"owner": "billing"},
    "a_field_of_tomorrow": {"depth": [1, 2]},
}


def wanted(**fields: Any) -> StreamSettings:
    """The settings of that stream, with these fields."""
    return StreamSettings(**{"name": "ORDERS", "subjects": ("orders.>",), **fields})

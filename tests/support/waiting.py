"""Waiting for a condition, never for a time."""

import time
from collections.abc import Callable

__all__ = ["PATIENCE", "until"]

PATIENCE = 60.0
"""Seconds that a condition may take which takes none on an idle machine: this one may be busy."""


def until(condition: Callable[[], object], timeout: float = PATIENCE) -> None:
    """Return as soon as `condition()` is true; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout:g} s"
        time.sleep(0.005)

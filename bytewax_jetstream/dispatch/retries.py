"""`Retries`: how many attempts were made again, and why."""

from typing import Literal

__all__ = ["Retries", "Why"]

Why = Literal["timeout", "disconnected", "refused", "cut_short"]
"""No answer in time; the connection was lost; the broker said: not now; the batch ended before the
message, or its group was stored in part before.
"""


class Retries:
    """Counts messages whose attempt failed and that are tried again."""

    def __init__(self) -> None:
        self.by_reason: dict[Why, int] = {
            "timeout": 0,
            "disconnected": 0,
            "refused": 0,
            "cut_short": 0,
        }

    def add(self, why: Why, messages: int = 1) -> None:
        """So many messages are tried again."""
        self.by_reason[why] += messages

"""The shared ACK pool: lanes, the budget, ACK workers and the thread they run on."""

from .ack_pool import AckPool, PoolState
from .lane import Lane

__all__ = ["AckPool", "Lane", "PoolState"]

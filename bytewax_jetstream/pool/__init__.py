"""The shared ACK pool: lanes, the budget, ACK workers and the thread they run on."""

from .ack_pool import AckPool
from .intake import PoolState
from .lane import Lane
from .shared_pool import borrow_pool, give_back_pool

__all__ = ["AckPool", "Lane", "PoolState", "borrow_pool", "give_back_pool"]

"""The process's one shared pool: borrowed by every step, closed by the last, settled at exit."""

import atexit
import logging
import os
import threading

from ..errors import PoolClosedError
from ..exit_codes import ExitCode, exit_now
from ..settings import PoolSettings
from .ack_pool import AckPool

__all__ = ["borrow_pool", "give_back_pool"]

log = logging.getLogger(__name__)


class _Shared:
    """The pool that is shared, and how many use it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pool: AckPool | None = None
        self.borrowers = 0


_shared = _Shared()


def borrow_pool(settings: PoolSettings) -> AckPool:
    """The process's shared pool, made at the first call; to be given back.

    :raises PoolClosedError: when it runs with other settings: a process has one pool.
    """
    with _shared.lock:
        if _shared.pool is None:
            _shared.pool = AckPool(settings)
        elif _shared.pool.settings != settings:
            raise PoolClosedError(
                "this process's pool already runs with other settings: give all steps the same "
                f"PoolSettings (it has {_shared.pool.settings!r}, this step has {settings!r})"
            )
        _shared.borrowers += 1
        return _shared.pool


def give_back_pool() -> None:
    """Let go of the shared pool; the last one closes it, without waiting for what is unsettled."""
    with _shared.lock:
        if not _shared.borrowers:
            return  # a forked child gives back what its parent borrowed
        _shared.borrowers -= 1
        if _shared.borrowers or _shared.pool is None:
            return
        pool, _shared.pool = _shared.pool, None
    pool.close(0.0)


def forget_after_fork() -> None:
    """In a forked child, the parent's pool has no thread, so the next borrower makes another."""
    global _shared
    _shared = _Shared()
    AckPool.live.clear()


def settle_at_exit() -> None:
    """A program that ends without closing its pool must neither lose what is unsettled nor end as
    if all were well.
    """
    unknown = 0
    for pool in [pool for pool in AckPool.live if pool.unsettled]:
        log.warning("the program ends with %d envelopes unsettled: close the pool", pool.unsettled)
        before = pool.statistics()["unknown"]
        pool.close()
        unknown += pool.statistics()["unknown"] - before + pool.unsettled
    if unknown:
        log.critical(
            "%d envelopes may not be stored: publish them again with the same event ids", unknown
        )
        exit_now(ExitCode.UNKNOWN)  # nothing else sets an exit code here


os.register_at_fork(after_in_child=forget_after_fork)
atexit.register(settle_at_exit)

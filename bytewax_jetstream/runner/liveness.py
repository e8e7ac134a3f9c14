"""`Liveness`: whether this process can still make progress by itself.

It fails only when a restart helps: the pool's thread is dead, or a worker has been in one call of
the flow's own code for minutes. A broker that is away is no reason, nor a barrier that waits for
it: those waits are in this package, have deadlines of their own, and a restart would only repeat
the epoch.
"""

import sys
import sysconfig
import threading
import time
from pathlib import Path
from types import FrameType

from ..pool import AckPool

__all__ = ["Liveness"]

PACKAGE = Path(__file__).parents[1]
LIBRARY = Path(sysconfig.get_path("stdlib"))
SLICE = 5.0
"""Seconds between two looks at the workers."""
STUCK_SECONDS = 300.0
"""For how long a worker may be in one call before it counts as stuck."""


class Liveness:
    """Looks at the threads of a run now and then.

    A worker is a thread of the engine. Between two calls into Python it has no Python frame, or
    that of the call that started the engine. So a worker is in one call for as long as the frame
    next to that is the same.

    :arg stuck_seconds: For how long a worker may be in one call.
    """

    def __init__(self, stuck_seconds: float = STUCK_SECONDS) -> None:
        self._stuck_seconds = stuck_seconds
        self._engine: tuple[int, FrameType] | None = None
        self._calls: dict[int, tuple[FrameType, float]] = {}
        """Of each worker: the outermost frame of its call, and when it was seen first."""
        self._lock = threading.Lock()

    def engine_starts(self) -> None:
        """The caller starts the engine: its frame is not a call of the flow."""
        self._engine = threading.get_ident(), sys._getframe(1)  # noqa: SLF001  # the only way

    def watch(self) -> None:
        """Look, again and again; for a thread of its own."""
        while True:
            self.look(time.monotonic())
            time.sleep(SLICE)

    def look(self, now: float) -> None:
        """Note in which call every worker is."""
        own = {thread.ident for thread in threading.enumerate() if not _is_worker(thread)}
        seen = {}
        for ident, frame in sys._current_frames().items():  # noqa: SLF001  # the only way
            outermost = self._outermost(ident, frame) if ident not in own else None
            if outermost is not None:
                seen[ident] = outermost
        with self._lock:
            before, self._calls = self._calls, {}
            for ident, frame in seen.items():
                known = before.get(ident)
                same = known is not None and known[0] is frame
                self._calls[ident] = known if known is not None and same else (frame, now)

    def complaints(self, now: float) -> list[str]:
        """Why the process should be restarted; empty while it should not."""
        failures = [pool.failure for pool in list(AckPool.live)]
        found = [f"the ACK pool's thread has ended: {each}" for each in failures if each]
        with self._lock:
            calls = dict(self._calls)
        frames = sys._current_frames()  # noqa: SLF001  # the only way
        for ident, (_, since) in calls.items():
            innermost = frames.get(ident)
            if innermost is None or now - since < self._stuck_seconds or _waits(innermost):
                continue
            where = f"{Path(innermost.f_code.co_filename).name}, line {innermost.f_lineno}"
            found.append(
                f"a worker has been in one call for {now - since:.0f} s, now in "
                f"{innermost.f_code.co_name} ({where})"
            )
        return found

    def _outermost(self, ident: int, frame: FrameType) -> FrameType | None:
        engine = self._engine
        if engine is None:
            return None
        outermost = None
        at: FrameType | None = frame
        while at is not None and not (ident == engine[0] and at is engine[1]):
            outermost, at = at, at.f_back
        if at is None and ident == engine[0]:
            return None  # the engine has ended, or not begun
        return outermost


def _is_worker(thread: threading.Thread) -> bool:
    """Whether the engine made this thread, or it is the main thread, which may be a worker."""
    # Python has a stand-in for a thread that it did not start, once that has used `threading`.
    dummy = isinstance(thread, threading._DummyThread)  # noqa: SLF001  # has no public name
    return dummy or thread is threading.main_thread()


def _waits(frame: FrameType) -> bool:
    """Whether this package waits there; its waits have deadlines of their own.

    For example `threading.Condition.wait`, called by `Lane.wait`. But not `socket.recv`, called by
    a source of the user's, which our `DrainingPartition` has called.
    """
    at: FrameType | None = frame
    while at is not None:
        file = at.f_code.co_filename
        if not file.startswith("<frozen ") and not _is_of_the_library(Path(file)):
            return PACKAGE in Path(file).parents
        at = at.f_back
    return False


def _is_of_the_library(file: Path) -> bool:
    """Whether it is a module of Python's standard library."""
    return LIBRARY in file.parents and "site-packages" not in file.parts

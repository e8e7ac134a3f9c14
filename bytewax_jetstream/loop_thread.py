"""`LoopThread`: an event loop on its own thread; others run coroutines on it, with deadlines."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent import futures
from typing import Any, TypeVar

from .errors import PoolClosedError

__all__ = ["LoopThread"]

log = logging.getLogger(__name__)
T = TypeVar("T")

STOP_SECONDS = 5.0
SLICE = 0.1
"""How many seconds a caller waits between two looks at whether the thread is alive."""


class LoopThread:
    """Runs coroutines and callbacks for other threads.

    asyncio only logs an exception that escapes a callback, and a thread that waits for the
    callback's effect waits forever. Here the exception is kept in `crash`, which every waiter
    checks.
    """

    def __init__(self, name: str) -> None:
        self.crash: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def name(self) -> str:
        """The thread's name."""
        return self._thread.name

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def call(self, callback: Callable[[], object]) -> None:
        """Run a callback on the loop soon.

        :raises PoolClosedError: when the thread has ended.
        """
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            raise self._ended() from None

    def run(self, coroutine: Coroutine[Any, Any, T], seconds: float) -> T:
        """Run a coroutine and wait for its result.

        :raises TimeoutError: when it takes longer; it is cancelled.
        :raises PoolClosedError: when the thread has ended, or ends meanwhile.
        """
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise self._ended() from None
        until = time.monotonic() + seconds
        while self.alive and not futures.wait([future], min(SLICE, seconds)).done:
            if time.monotonic() > until:
                future.cancel()
                raise TimeoutError
        if future.done() and not future.cancelled():
            return future.result()
        raise self._ended()

    def create_task(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a task; its failure is a crash. Call this on the loop's own thread only."""
        task = self._loop.create_task(coroutine, name=name)
        task.add_done_callback(self._task_done)
        return task

    def stop(self) -> None:
        """End the loop and its tasks, and join the thread within a bounded time."""
        if self._thread.ident is None:
            self._loop.close()
            return
        with contextlib.suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            log.error(
                "thread %s did not end within %g s and is left behind",
                self._thread.name,
                STOP_SECONDS,
            )

    def _ended(self) -> PoolClosedError:
        name = self._thread.name
        return PoolClosedError(f"thread {name} has ended: start the flow again", thread=name)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(self._on_error)
        try:
            self._loop.run_forever()
        except BaseException as error:
            self.crash = error
            raise
        finally:
            try:
                left = asyncio.all_tasks(self._loop)
                for task in left:
                    task.cancel()
                self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            finally:
                self._loop.close()

    def _on_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and "handle" in context:
            self._crashed(error)
        else:  # an error that a library's task left behind does not harm ours
            log.warning("%s", context.get("message"), exc_info=error)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crashed(error)

    def _crashed(self, error: BaseException) -> None:
        log.critical("thread %s failed", self._thread.name, exc_info=error)
        self.crash = error

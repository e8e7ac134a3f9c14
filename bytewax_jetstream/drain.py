"""SIGTERM and SIGINT: sources stop, everything in flight is settled, the last epoch is committed.

Without this, a SIGTERM ends a Bytewax process at once, and messages in flight have no result. A
second signal, or a drain that takes longer than its timeout, ends the process non-zero; the next
start replays what was not settled. While no dataflow runs, a signal does what it does without this.

The timeout is measured by the monotonic clock. The engine waits for sources by the wall clock.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any, TypeVar

from bytewax.inputs import (
    DynamicSource,
    FixedPartitionedSource,
    Source,
    StatefulSourcePartition,
    StatelessSourcePartition,
)

from .exit_codes import ExitCode, exit_now

__all__ = [
    "DrainingPartition",
    "begin",
    "deadline",
    "drain_on_signal",
    "end_now",
    "enter",
    "handles",
    "held",
    "install",
    "interruption",
    "leave",
    "opening",
    "request",
    "requested",
    "running",
    "timeout",
]

log = logging.getLogger(__name__)
X = TypeVar("X")

LONGEST_NAP = timedelta(seconds=0.1)
"""How long a partition may sleep without a look at the signal. A source that wants to sleep longer
is woken this often, and stays idle.
"""
GRACE = 5.0
"""Seconds after the drain timeout; then a run that has not ended by itself is interrupted. As many
seconds after that, a process with a thread that cannot be interrupted is ended.
"""
DEFAULTS: dict[signal.Signals, Callable[[int, FrameType | None], Any] | signal.Handlers] = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}
"""The signals that drain, with Python's own handlers, the only ones that are replaced."""


class _Drain:
    """Whether this process is draining; one state for all of its dataflows."""

    def __init__(self) -> None:
        self.deadline = float("inf")
        self.timeout = 20.0
        self._parts = 0
        """How many source partitions and lanes are open; there is something to drain until it is 0.
        """
        self._held = False
        """Whether a runner says when the run ends."""
        self._begun = False
        """Whether the engine has built the dataflow of a held run, on all workers."""
        self._opening = 0
        """How many lanes and source partitions are connecting to their broker now."""
        self._has_read = False
        """Whether a source was asked for a batch in this run."""
        self._run = 0
        """Counts runs, so that what was meant for one does not happen to the next."""
        self._signalled = False
        """Whether a signal has asked for the drain; another ends it."""
        self._overdue: str | None = None
        """Why the run must end now, without waiting for anything."""
        self.interruption: KeyboardInterrupt | None = None
        """What a signal has raised last on the main thread."""
        self._lock = threading.Lock()
        self._defaults_restored = False
        """Whether this is a forked child to which a drain was of no concern so far."""

    @property
    def requested(self) -> bool:
        return self.deadline != float("inf")

    @property
    def running(self) -> bool:
        # While it only connects, nothing was read, so there is nothing to drain.
        return self._is_open and not (self._opening and not self._has_read)

    @property
    def _is_open(self) -> bool:
        return self._begun if self._held else self._parts > 0

    def hold(self) -> None:
        """The run lasts from `begin` to `end_hold`, also while no part is open in this process."""
        self._new_run()
        self._held = True

    def begin(self) -> None:
        self._begun = self._held

    def end_hold(self) -> None:
        self._held = self._begun = False

    def _new_run(self) -> None:
        self._forget()
        self._has_read = False
        self._run += 1

    def install(self) -> None:
        """Handle the signals, unless the program has its own handlers or this is not the main
        thread.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        self._defaults_restored = False
        for number, default in DEFAULTS.items():
            if signal.getsignal(number) is default:
                signal.signal(number, self.on_signal)

    def enter(self) -> None:
        """A partition or a lane opens; the first one of a run clears an earlier run's signal."""
        with self._lock:
            if not self._held and not self._parts:
                self._new_run()
            self._parts += 1
        if self._defaults_restored:
            self.install()

    def leave(self) -> None:
        with self._lock:
            self._parts = max(0, self._parts - 1)

    def read(self) -> None:
        """A source is asked for a batch: from now on there is something to drain."""
        self._has_read = True

    @contextmanager
    def opening(self) -> Iterator[None]:
        with self._lock:
            self._opening += 1
        try:
            yield
        finally:
            with self._lock:
                self._opening = max(0, self._opening - 1)

    def handles(self, number: int) -> bool:
        return signal.getsignal(number) == self.on_signal

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Runs on the main thread between two of its instructions, so it never takes the lock."""
        if not self.running:
            self.interruption = KeyboardInterrupt()
            # This handler stays, so that a signal to the next run drains that one.
            _as_by_default(number, frame)
        elif self._overdue is None and not self._signalled:
            self._signalled = True
            self.request(signal.Signals(number).name)
        else:
            self.deadline = 0.0  # threads that wait until the deadline stop waiting
            self._later(GRACE, self._end)
            self.interruption = KeyboardInterrupt(
                f"{self._overdue or 'a second signal came'}: the next start replays the epoch"
            )
            raise self.interruption

    def request(self, reason: str) -> None:
        """Begin to drain, if a dataflow runs and does not drain yet."""
        if not self.running or self.requested:
            return
        self.deadline = time.monotonic() + self.timeout
        log.warning("%s: draining for at most %g s", reason, self.timeout)
        self._later(self.timeout + GRACE, lambda: self.end_now("the drain took too long"))

    def end_now(self, reason: str) -> None:
        """Interrupt the run, and end the process if that does not help."""
        if not self.running:
            return
        self._overdue = reason
        self._later(GRACE, self._end)
        ours = [number for number in DEFAULTS if self.handles(number)]
        if ours:
            # A real signal, which also ends a wait in the operating system.
            signal.pthread_kill(threading.main_thread().ident or 0, ours[0])

    def forget_after_fork(self) -> None:
        """A forked child has its parent's handlers, but no dataflow that could end by them."""
        self._lock = threading.Lock()  # another thread may have held it
        self._forget()
        was_running, self._parts, self._opening = self._is_open, 0, 0
        self.end_hold()
        if not was_running:
            return  # it may be going to run what its parent has defined
        self._defaults_restored = True
        for number, default in DEFAULTS.items():
            if self.handles(number):
                signal.signal(number, default)

    def _later(self, seconds: float, then: Callable[[], None]) -> None:
        """Do something later, if the run that drains now still does."""
        run = self._run

        def if_it_still_drains() -> None:
            if self._run == run and self._is_open:
                then()

        timer = threading.Timer(seconds, if_it_still_drains)
        timer.daemon = True
        timer.start()

    def _forget(self) -> None:
        self.deadline = float("inf")
        self.interruption = None
        self._signalled, self._overdue = False, None

    def _end(self) -> None:
        exit_now(
            ExitCode.UNKNOWN,
            lambda: log.critical(
                "the drain does not end, because a source or a step does not return: the process "
                "ends now, and the next start replays the epoch"
            ),
        )


def _as_by_default(number: int, frame: FrameType | None) -> None:
    """Do what this signal does in a Python program that does not handle it."""
    if number == signal.SIGINT:
        signal.default_int_handler(number, frame)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    # Only process 1 of a container comes this far: by default, signals do not end it.
    exit_now(128 + number)


_drain = _Drain()
os.register_at_fork(after_in_child=_drain.forget_after_fork)


def enter() -> None:
    """Count one more open lane, which a signal must not cut off."""
    _drain.enter()


def leave() -> None:
    """Count one open lane less."""
    _drain.leave()


@contextmanager
def held() -> Iterator[None]:
    """One run of the engine, which drains from `begin` on, also while no source or lane is open in
    this process.
    """
    _drain.hold()
    try:
        yield
    finally:
        _drain.end_hold()


def begin() -> None:
    """The engine has built the dataflow of a held run: now there may be something to drain."""
    _drain.begin()


@contextmanager
def opening() -> Iterator[None]:
    """A lane or a source connects in here. Until a source was read, a signal then does what it does
    by default: there is nothing to drain, and the broker may not answer for long.
    """
    with _drain.opening():
        yield


def running() -> bool:
    """Whether there is something to drain: a source or a lane is open in this process, or else a
    held run has begun; and it does not only connect yet.
    """
    return _drain.running


def handles(number: int) -> bool:
    """Whether a signal drains: the program has no handler of its own."""
    return _drain.handles(number)


def requested() -> bool:
    """Whether the last run has begun to drain."""
    return _drain.requested


def interruption() -> KeyboardInterrupt | None:
    """What a signal has raised on the main thread in the last run, and the engine may have lost."""
    return _drain.interruption


def request(reason: str) -> None:
    """Begin to drain, as at a signal; does nothing while no dataflow runs. For any thread.

    :arg reason: Who asks; logged.
    """
    _drain.request(reason)


def end_now(reason: str) -> None:
    """End the run without committing its epoch; does nothing while no dataflow runs. For any
    thread.

    :arg reason: Why it cannot go on; in the error that ends it.
    """
    _drain.end_now(reason)


def deadline() -> float:
    """When a requested drain must be over (`time.monotonic`); infinite while none is requested."""
    return _drain.deadline


def timeout() -> float:
    """How many seconds a drain may take, as it was said last."""
    return _drain.timeout


def install(timeout: float) -> None:
    """Handle SIGTERM and SIGINT, unless the program has its own handlers or this is not the main
    thread.

    :arg timeout: How many seconds a drain may take.
    """
    _drain.timeout = timeout
    _drain.install()


def drain_on_signal(source: Source[X], *, timeout: float = 20.0) -> Source[X]:
    """Every message that the source has emitted is settled and committed at SIGTERM or SIGINT.

    At the signal the source stops, and the dataflow ends as at the end of its input. The sources of
    this package do this by themselves. Wrap all other sources of a dataflow: one that goes on keeps
    the dataflow alive until the timeout ends it non-zero. Call this on the main thread, where the
    dataflow is defined.

    :arg source: Any `FixedPartitionedSource` or `DynamicSource`.
    :arg timeout: How many seconds a drain may take; then the run ends non-zero.
    :raises TypeError: when the source is of another kind.
    """
    install(timeout)
    if isinstance(source, FixedPartitionedSource):
        return _DrainingFixed(source)
    if isinstance(source, DynamicSource):
        return _DrainingDynamic(source)
    raise TypeError(
        "drain_on_signal needs a FixedPartitionedSource or a DynamicSource, "
        f"not {type(source).__name__}"
    )


class _Draining:
    """Passes calls on to a partition until the signal, and then ends the input."""

    _part: Any

    def __init__(self, part: Any) -> None:
        self._part = part
        self._open = True
        self._asleep_until: datetime | None = None
        self._asked = False
        _drain.enter()

    def next_batch(self) -> Iterable[Any]:
        if _drain.requested:
            raise StopIteration
        if self._asleep_until is not None and self._asleep_until > datetime.now(UTC):
            return []
        self._asked = False
        _drain.read()
        batch: Iterable[Any] = self._part.next_batch()
        return batch

    def next_awake(self) -> datetime | None:
        # Once after each batch, as the engine does: the answer may count from the time of asking.
        if not self._asked:
            self._asked = True
            self._asleep_until = self._part.next_awake()
        awake = self._asleep_until
        return None if awake is None else min(awake, datetime.now(UTC) + LONGEST_NAP)

    def close(self) -> None:
        if self._open:
            self._open = False
            _drain.leave()
        self._part.close()


class DrainingPartition(_Draining, StatefulSourcePartition[Any, Any]):
    """A stateful partition that ends at the signal; its state then is committed."""

    def snapshot(self) -> Any:
        """The wrapped partition's own state."""
        return self._part.snapshot()


class _DrainingStateless(_Draining, StatelessSourcePartition[Any]):
    """A stateless partition that ends at the signal."""


class _DrainingFixed(FixedPartitionedSource[Any, Any]):
    def __init__(self, source: FixedPartitionedSource[Any, Any]) -> None:
        self._source = source

    def list_parts(self) -> list[str]:
        with _drain.opening():
            return self._source.list_parts()

    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> DrainingPartition:
        with _drain.opening():
            part = self._source.build_part(step_id, for_part, resume_state)
        return part if isinstance(part, DrainingPartition) else DrainingPartition(part)


class _DrainingDynamic(DynamicSource[Any]):
    def __init__(self, source: DynamicSource[Any]) -> None:
        self._source = source

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _DrainingStateless:
        with _drain.opening():
            part = self._source.build(step_id, worker_index, worker_count)
        return _DrainingStateless(part)

"""`ExitCode`: how a run ended, for whatever started it: a shell, a Kubernetes Job, a supervisor."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from enum import IntEnum
from typing import NoReturn

__all__ = ["ExitCode", "before_exit_now", "exit_now"]

before_exit_now: list[Callable[[], object]] = []
"""What `exit_now` calls after the last words, as `atexit` would."""
LAST_WORDS_SECONDS = 1.0
"""For what is still to be written before the process ends."""


class ExitCode(IntEnum):
    """What the exit code of a run says about its data, and whether to run again."""

    STORED = 0
    """The input ended, or a signal did: every envelope that was read has its result, and the last
    epoch is committed.
    """
    FAILED = 1
    """A step or a source of the flow raised something else. The epoch is replayed by the next run.
    """
    USAGE = 2
    """The command line, a setting, the flow or the recovery directory is wrong; nothing was read.
    The same command ends the same way.
    """
    UNKNOWN = 3
    """Envelopes may be stored or not, or a broker or another process of the dataflow could not be
    reached. Run again: the epoch is replayed.
    """
    REFUSED = 4
    """The broker refused what every run needs: credentials, a stream, a topic, an envelope whose
    rejection must stop the run. Or its library refused the settings. Someone has to change that
    first.
    """
    LOCKED = 5
    """Another process uses the recovery directory. Run again when it has ended."""
    INTERRUPTED = 130
    """SIGINT ended the process before the dataflow had begun; nothing was read."""
    SIGNALLED = 143
    """SIGTERM ended the process before the dataflow had begun; nothing was read. Or, with
    `--must-finish`, a signal ended the run in order before its input ended. Run again.
    """


def exit_now(code: int, last_words: Callable[[], object] = lambda: None) -> NoReturn:
    """End the process soon, whatever its threads are doing.

    :arg last_words: Called before, for a log line. It may not return, as when nobody reads stderr:
        the process then ends without it.
    """

    def speak() -> None:
        with contextlib.suppress(Exception):  # other threads may be in the midst of a write
            last_words()
            sys.stdout.flush()
            sys.stderr.flush()
            for each in before_exit_now:
                each()

    speaking = threading.Thread(target=speak, daemon=True)
    with contextlib.suppress(RuntimeError):  # no thread can be started any more
        speaking.start()
        speaking.join(LAST_WORDS_SECONDS)
    os._exit(code)

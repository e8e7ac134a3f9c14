"""`ExitCode`: how a run ended, for whatever started it: a shell, a Kubernetes Job, a supervisor."""

import contextlib
import os
import sys
from enum import IntEnum
from typing import NoReturn

__all__ = ["ExitCode", "exit_now"]


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
    rejection must stop the run. Someone has to change that first.
    """
    LOCKED = 5
    """Another process uses the recovery directory. Run again when it has ended."""
    SIGNALLED = 143
    """With `--must-finish`: a signal ended the run in order before its input ended. Run again."""


def exit_now(code: int) -> NoReturn:
    """End the process at once, whatever its threads are doing."""
    with contextlib.suppress(Exception):  # they may be in the midst of a write
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)

"""`Stderr`: hands every line that is written to stderr to a function instead.

Libraries in other languages write there without asking Python: the engine does when a step fails.
"""

import contextlib
import fcntl
import os
import sys
import threading
from collections.abc import Callable
from typing import TextIO

__all__ = ["Stderr"]

PIPE_BYTES = 1024 * 1024
"""So much may be written by code that does not let Python's threads run meanwhile."""
END_SECONDS = 1.0
"""For as long as it takes to tell a line, at the end."""
ITS_OWN_ERROR = "Box<dyn Any>"
"""What the engine says of an error of a step, which it also raises: a few lines without content, up
to an empty one.
"""
ITS_LINES = 6
"""So many at most."""


class Stderr:
    """Everything that this process and its children write to stderr from now on.

    :arg tell: Called with each line, on a thread of its own.
    :ivar real: What stderr was.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        sys.stderr.flush()
        self._kept = os.dup(2)
        self.real: TextIO = os.fdopen(
            os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace"
        )
        reading, writing = os.pipe()
        with contextlib.suppress(OSError, AttributeError):  # only Linux has it, up to a limit
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.dup2(writing, 2)
        os.close(writing)
        self._mark = f"end-{os.urandom(8).hex()}\n"
        self._over = threading.Event()
        self._told = 0
        """How many lines were told."""
        threading.Thread(
            target=self._read, args=(reading,), name="bytewax_jetstream-stderr", daemon=True
        ).start()

    def end(self) -> None:
        """Give stderr back, when all that was written is told; bounded."""
        if self._over.is_set():
            return
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        writing = os.dup(2)
        os.dup2(self._kept, 2)
        # On a thread: the pipe may be full, and nobody reads what was stderr.
        threading.Thread(target=self._write_mark, args=(writing,), daemon=True).start()
        told = -1
        while not self._over.wait(END_SECONDS) and told != self._told:
            told = self._told

    def _write_mark(self, writing: int) -> None:
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            pipe.write(b"\n" + self._mark.encode())  # the last line may have no end

    def _read(self, reading: int) -> None:
        with os.fdopen(reading, encoding="utf-8", errors="backslashreplace") as lines:
            first = ""
            """Of a panic: what it says of itself comes with the next line."""
            left_out = 0
            """How many of the lines that follow belong to a panic that is not told."""
            for line in lines:
                self._told += 1
                if line == self._mark:
                    break
                text = line.rstrip()
                if left_out:
                    left_out = left_out - 1 if text else 0
                elif first and ITS_OWN_ERROR in text:
                    first, left_out = "", ITS_LINES - 2
                elif text.startswith("thread '") and not first:
                    first = text
                else:
                    self._tell_all(first, text)
                    first = ""
            self._tell_all(first)
        self._over.set()

    def _tell_all(self, *lines: str) -> None:
        for line in filter(None, lines):
            self._tell(line)

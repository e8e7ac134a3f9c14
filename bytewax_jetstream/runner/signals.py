"""Signals while the engine does not run: as process 1 of a container, too, they end the process.

By default the kernel keeps signals from process 1, and Python runs a handler only between two of
its instructions: not while the engine waits in its own code for the other processes. A thread of
ours sees the signal there, and ends the process if nothing else has.
"""

import logging
import signal
import socket
import threading
import time

from .. import drain
from ..exit_codes import exit_now

__all__ = ["end_when_nothing_else_does"]

log = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds for Python's own handler to begin a drain, or to end the process."""


def end_when_nothing_else_does() -> None:
    """Watch for SIGTERM and SIGINT from now on; called on the main thread."""
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
    threading.Thread(
        target=_watch, args=(ours, pythons), name="bytewax_jetstream-signals", daemon=True
    ).start()


def _watch(ours: socket.socket, pythons: socket.socket) -> None:
    while numbers := ours.recv(64):  # `pythons` is kept open by this thread
        ending = set(numbers) & {signal.SIGTERM, signal.SIGINT}
        if not ending or drain.running():
            continue
        time.sleep(PATIENCE)
        if not drain.running():
            number = min(ending)
            log.warning("%s before the dataflow has begun", signal.Signals(number).name)
            exit_now(128 + number)

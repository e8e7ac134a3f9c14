"""Signals that Python cannot handle now: as process 1 of a container, too, they end the run.

By default the kernel keeps signals from process 1, and Python runs a handler only between two of
its instructions: not while the engine waits in its own code for the other processes, nor while a
library does that does not come back. A thread of ours sees the signal there. If nothing else has,
it begins the drain, or ends the process when there is nothing to drain.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from functools import partial

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
    os.register_at_fork(after_in_child=_forget_parent)
    threading.Thread(
        target=_watch, args=(ours, pythons), name="bytewax_jetstream-signals", daemon=True
    ).start()


def _forget_parent() -> None:
    """A signal to a forked child is none to its parent."""
    with contextlib.suppress(ValueError):  # not its main thread: it gets no signals
        signal.set_wakeup_fd(-1)


def _watch(ours: socket.socket, pythons: socket.socket) -> None:
    while numbers := ours.recv(64):  # `pythons` is kept open by this thread
        ending = set(numbers) & {signal.SIGTERM, signal.SIGINT}
        if not ending:
            continue
        time.sleep(PATIENCE)
        if drain.requested():
            continue  # the run may even have ended by now
        name = signal.Signals(min(ending)).name
        if not any(map(drain.handles, ending)):
            continue  # the flow has a handler of its own, and decides
        if drain.running():
            drain.request(name)
        else:
            exit_now(128 + min(ending), partial(log.warning, "%s: nothing to drain", name))

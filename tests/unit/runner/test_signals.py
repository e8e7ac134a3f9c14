"""Signals that nothing else handles end the process that they were sent to."""

import subprocess
import sys

FORK = """
import os, signal, time
from bytewax_jetstream.runner import signals
signals.end_when_nothing_else_does()
child = os.fork()
if not child:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
time.sleep(signals.PATIENCE + 1.0)
print("alive")
"""


def test_a_signal_to_a_forked_child_does_not_end_its_parent() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, check=False, timeout=120
    )

    assert (done.returncode, done.stdout.split()) == (0, ["7", "alive"]), done.stderr

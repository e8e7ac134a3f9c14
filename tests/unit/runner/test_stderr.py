"""What is written to stderr is told line by line, and given back at the end."""

import subprocess
import sys

FULL = """
import os, threading
from bytewax_jetstream.runner import stderr
stderr.END_SECONDS = 0.2
takes_no_more = threading.Event()
def tell(line):
    takes_no_more.set()
    threading.Event().wait()
heard = stderr.Stderr(tell)
written = os.dup(2)
os.write(written, b"a line\\n")
takes_no_more.wait()
os.set_blocking(written, False)
for size in (4096, 1):
    try:
        while os.write(written, b"x" * size):
            pass
    except BlockingIOError:
        pass
os.set_blocking(written, True)
heard.end()
print("ended", flush=True)
os._exit(0)
"""


def test_end_is_bounded_when_nobody_takes_what_was_written() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL], capture_output=True, text=True, check=False, timeout=60
    )

    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


PANIC = """
import os, threading
from bytewax_jetstream.runner.stderr import Stderr
lines, told = [], threading.Semaphore(0)
def tell(line):
    lines.append(line)
    told.release()
heard = Stderr(tell)
os.write(2, b"thread 'worker' panicked at a.rs:1:\\nBox<dyn Any>\\nnote: run with\\n\\n")
os.write(2, b"thread 'web' panicked at b.rs:2:\\nport taken\\n")
for _ in range(2):
    assert told.acquire(timeout=30), lines
print(*lines, sep="|", flush=True)
os._exit(0)
"""


def test_panic_is_told_at_once_and_that_of_a_failed_step_is_not() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PANIC], capture_output=True, text=True, check=False, timeout=60
    )

    assert done.stdout == "thread 'web' panicked at b.rs:2:|port taken\n", done.stderr

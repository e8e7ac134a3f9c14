"""What the flights job needs installed, seen from a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_dataflow_loads_neither_rich_nor_a_brokers_library() -> None:
    done = run("import sys, flows.flights as job; job.flow; print(*sys.modules)")

    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"confluent_kafka", "nats", "rich"}


def test_demo_without_rich_says_what_to_install() -> None:
    done = run(
        "import runpy, sys; sys.modules['rich'] = None; "
        "runpy.run_module('flows.flights', run_name='__main__')"
    )

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "the demo needs rich and a nats-server: pip install 'bytewax-jetstream[demo]'"
    ]

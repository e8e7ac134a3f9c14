"""A reading process killed with messages before it, again and again: none is missing in what it
writes.
"""

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from bytewax_jetstream.testing import NatsServer
from tests.support.dataflows import recovery_store
from tests.support.reading import numbered, put
from tests.support.recovery.source_child import SourceOrders
from tests.support.streams import api, make_stream
from tests.support.waiting import PATIENCE, until

ROOT = Path(__file__).parents[2]
CYCLES = 5
COUNT = 2_400


@pytest.mark.parametrize("durable", [None, "reader"], ids=["by sequence", "durable"])
def test_five_kills_lose_no_message(
    nats_server: NatsServer, tmp_path: Path, durable: str | None
) -> None:
    chance = random.Random(f"source {durable}")
    url, stream = nats_server.url, f"KILL{durable or 'ED'}"
    subjects = [f"{stream}.{kind}" for kind in "abcd"]
    make_stream(url, stream, f"{stream}.>", retention="workqueue" if durable else "limits")
    put(
        url,
        stream,
        [frame for subject in subjects for frame in numbered(subject, COUNT // len(subjects))],
    )
    store, file = recovery_store(tmp_path / "store", 2), tmp_path / "file"
    file.touch()

    def start(workers: int) -> subprocess.Popen[bytes]:
        orders = SourceOrders(url, stream, subjects, durable, workers, str(store), str(file))
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.recovery.source_child", orders.to_json()],
            cwd=ROOT,
        )

    def written() -> int:
        return len(set(file.read_bytes().splitlines()))

    counted = 0
    for cycle in range(3 * CYCLES):
        before = written()
        goal = before + chance.randrange(1, max(2, (COUNT - before) // (CYCLES + 1 - counted)))
        with start(workers=1 + cycle % 2) as process:
            until(lambda: written() >= goal or process.poll() is not None, PATIENCE)  # noqa: B023  # called here only
            time.sleep(
                chance.uniform(0, 0.05)
            )  # the file grows at an epoch's end: kills are to come anywhere in one
            process.kill()
        counted += process.returncode == -9 and before < written() < COUNT
        if counted == CYCLES:
            break
    assert counted == CYCLES, f"killed with messages before it only {counted} times"
    with start(workers=2) as process:
        assert process.wait(PATIENCE) == 0

    lines = Counter(file.read_text().splitlines())
    assert len(lines) == COUNT, "missing"
    if durable:
        assert api(url, f"STREAM.INFO.{stream}")["state"]["messages"] == 0
    else:
        for subject in subjects:
            sequences = [int(each.split()[1]) for each in lines if each.startswith(f"{subject} ")]
            assert sequences == sorted(sequences), "read out of order"

"""A program that forgets to close its pool: what is in flight is settled, or the program fails."""

import subprocess
import sys
from pathlib import Path

from bytewax_jetstream.exit_codes import ExitCode
from bytewax_jetstream.testing import NatsServer
from tests.support.kafka import make_topic, records
from tests.support.streams import FLAWLESS, audit, envelopes, make_stream

ROOT = Path(__file__).parents[2]
COUNT = 10_000  # within the budget, so that the program is past its submit while nothing is settled
PROGRAM = f"""
import sys
from bytewax_jetstream.dataflow.outlet import publisher_for
from bytewax_jetstream.pool import AckPool
from tests.support.lanes import jetstream, kafka
from tests.support.streams import envelopes

broker, address, topic, seconds = sys.argv[1:]
make = {{"jetstream": jetstream, "kafka": kafka}}[broker]
settings = make(address, topics=(topic,), pool={{"drain_timeout": float(seconds)}})
pool = AckPool(settings.pool)
lane = pool.lane(publisher_for(settings), name="forgotten")
print("open", flush=True)
sys.stdin.readline()
lane.submit(envelopes({COUNT}, topic))
"""


def _start(broker: str, address: str, topic: str, seconds: float) -> subprocess.Popen[str]:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, broker, address, topic, str(seconds)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "open\n"
    return program


def test_envelopes_in_flight_at_exit_are_settled(nats_server: NatsServer) -> None:
    make_stream(nats_server.url, "FORGOTTEN", "forgotten")
    program = _start("jetstream", nats_server.url, "forgotten", 20)
    _, said = program.communicate("go\n", timeout=60)

    assert program.returncode == 0, said
    assert "close the pool" in said
    assert audit(nats_server.url, "FORGOTTEN", envelopes(COUNT, "forgotten")) == FLAWLESS


def test_envelopes_unsettled_at_exit_make_the_program_fail(own_nats_server: NatsServer) -> None:
    make_stream(own_nats_server.url, "FORGOTTEN", "forgotten")
    program = _start("jetstream", own_nats_server.url, "forgotten", 1)
    own_nats_server.pause()
    _, said = program.communicate("go\n", timeout=60)

    assert program.returncode == ExitCode.UNKNOWN, said
    assert "Traceback" not in said, "it ended by an error of its own"
    assert "may not be stored: publish them again with the same event ids" in said


def test_a_kafka_program_that_forgets_its_pool_loses_nothing(kafka_address: str) -> None:
    make_topic(kafka_address, "forgotten")
    program = _start("kafka", kafka_address, "forgotten", 20)
    _, said = program.communicate("go\n", timeout=60)

    assert program.returncode == 0, said
    assert "close the pool" in said
    assert len(records(kafka_address, "forgotten")) == COUNT

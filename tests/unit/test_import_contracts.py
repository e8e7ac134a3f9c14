"""The import contracts in `pyproject.toml` hold, and each notices an import that breaks it."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BROKEN = re.compile(r"^(.+) BROKEN(?: \(.*)?$", re.MULTILINE).findall

PLANTED = {
    "Imports point one way": [
        ("jetstream/publisher/publisher.py", "from ...pool import AckPool"),
        ("jetstream/publisher/publisher.py", "from ...dispatch.batches import Batches"),
        ("kafka/publisher.py", "from ..dispatch import LaneQueue"),
        ("kafka/publisher.py", "from ..pool.lane import Lane"),
        ("kafka/publisher.py", "from ..jetstream import streams"),
        ("dispatch/dispatch.py", "from ..pool.budget import Budget"),
        ("publishing/publisher.py", "from ..dispatch import LaneQueue"),
        ("publishing/publisher.py", "from ..settings import PoolSettings"),
        ("envelope.py", "from .settings import PoolSettings"),
        ("bench/runner.py", "from .. import cli"),
        ("runner/flow.py", "from ..planning import Plan"),
        ("planning/plan.py", "from .. import doctor"),
    ],
    "No module is part of a circle": [
        ("dispatch/segment.py", "from .dispatch import Dispatch"),
        ("pool/budget.py", "from .ack_pool import AckPool"),
        ("../flows/flights/data.py", "from . import demo"),
    ],
    "The decisions and the seam have no clock, no thread and no I/O": [
        ("dispatch/dispatch.py", "import time"),
        ("dispatch/window.py", "import asyncio"),
        ("publishing/publisher.py", "import threading"),
        ("dispatch/doubts.py", "import nats"),
    ],
    "Users' tests need no installed library, and know envelopes and errors only": [
        ("testing/process.py", "import psutil"),
        ("testing/nats.py", "from ..settings import JetStreamSettings"),
        ("testing/memory/broker.py", "from ...dispatch import Dispatch"),
    ],
    "Users' tests load without the broker in memory": [
        ("testing/__init__.py", "from .memory import MemoryBroker"),
    ],
    "Only what meets the engine imports Bytewax": [("pool/lane.py", "import bytewax.operators")],
    "Only jetstream and the benchmark import nats": [("pool/lane.py", "import nats")],
    "Only metrics imports prometheus_client": [("pool/lane.py", "import prometheus_client")],
    "Only kafka and the benchmark import confluent_kafka": [
        ("jetstream/streams.py", "import confluent_kafka"),
    ],
}


def _broken_contracts(tree: Path) -> set[str]:
    """The names of the contracts that `make check` would call broken in this tree."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Contracts:" in done.stdout, done.stdout + done.stderr
    return set(BROKEN(done.stdout))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package, the flows and the contracts."""
    copied = shutil.ignore_patterns("__pycache__", ".run", "*.xz")
    for folder in ("bytewax_jetstream", "flows"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=copied)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_contract_has_an_import_that_breaks_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {each["name"] for each in project["tool"]["importlinter"]["contracts"]} == set(PLANTED)


def test_contracts_hold_in_the_unchanged_copy(tree: Path) -> None:
    assert _broken_contracts(tree) == set()


@pytest.mark.parametrize(
    ("contract", "module", "line"),
    [(name, *planted) for name, each in PLANTED.items() for planted in each],
)
def test_contract_turns_red_at_a_planted_import(
    tree: Path, contract: str, module: str, line: str
) -> None:
    file = (tree / "bytewax_jetstream" / module).resolve()
    file.write_text(f"{file.read_text()}\n\n{line}\n")

    assert contract in _broken_contracts(tree)

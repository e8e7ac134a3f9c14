"""A recovery directory that cannot be used ends in Bytewax's own clear error."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.child import TOLD, Told
from tests.support.dataflows import recovery_store


def _run_child(
    folder: Path, store: Path, limit: str = "unlimited"
) -> subprocess.CompletedProcess[str]:
    told = Told("nats://127.0.0.1:1", str(folder))
    command = [
        sys.executable,
        "-B",
        "-m",
        "bytewax.run",
        "tests.support.child:flow",
        "-r",
        str(store),
        "-s",
        "1",
        "-b",
        "0",
    ]
    return subprocess.run(
        ["/bin/sh", "-c", f'ulimit -f {limit}; exec "$@"', "sh", *command],
        env={**os.environ, TOLD: json.dumps(told._asdict())},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_missing_recovery_directory_ends_in_bytewaxs_own_error(tmp_path: Path) -> None:
    ended = _run_child(tmp_path, tmp_path / "absent")

    assert ended.returncode == 1
    assert (
        f'recovery directory "{tmp_path / "absent"}" does not exist'
        in ended.stderr.splitlines()[-1]
    )


def test_empty_recovery_directory_ends_in_bytewaxs_own_error(
    tmp_path: Path,
) -> None:
    ended = _run_child(tmp_path, tmp_path)

    assert ended.returncode == 1
    assert "No recovery partitions found" in ended.stderr.splitlines()[-1]


def test_unwritable_recovery_directory_ends_in_bytewaxs_own_error(tmp_path: Path) -> None:
    # A file-size limit, because permissions do not stop root, who runs the tests in many
    # containers.
    ended = _run_child(tmp_path, recovery_store(tmp_path / "store"), limit="0")

    assert ended.returncode == 1
    assert "disk I/O error" in ended.stderr.splitlines()[-1]

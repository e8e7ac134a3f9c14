"""JSON logs: every line on stderr is a record, whoever has written it."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from bytewax_jetstream.exit_codes import ExitCode
from tests.support.operated import FLOW, Operated
from tests.support.processes import Process, start_run
from tests.support.ways import workers_1_2

JSON = {"BYTEWAX_JETSTREAM_RUN_LOG_FORMAT": "json"}


def _records(run: Process) -> list[dict[str, Any]]:
    """Each line of the log, parsed."""
    records = [json.loads(line) for line in run.log.splitlines()]
    assert all({"level", "logger", "message", "time"} <= record.keys() for record in records)
    return records


@workers_1_2
@pytest.mark.parametrize("debug", [False, True])
def test_each_line_of_a_run_that_fails_is_a_record(
    tmp_path: Path, workers: int, debug: bool
) -> None:
    told = Operated(str(tmp_path), trouble="warns")
    options = ["-w", workers, *(["--debug"] if debug else [])]
    environment = {**told.environment, **JSON}
    with start_run(FLOW, *options, log=tmp_path / "log", environment=environment) as run:
        assert run.end() == ExitCode.FAILED, run.log

    records = _records(run)
    by_logger = {record["logger"]: record for record in records}
    assert "item 10\nis odd" in by_logger["py.warnings"]["message"]
    assert by_logger["py.warnings"]["level"] == "WARNING"
    assert by_logger["stderr"]["message"] == "to stderr" or debug
    (thread,) = [each for each in records if each["message"].startswith("odd ended: IndexError")]
    assert "Traceback" in thread["exception"]
    (end,) = [record for record in records if record["level"] == "CRITICAL"]
    assert "raised ValueError: item 10 is wrong" in end["message"]
    assert ("item 10\nis wrong" in end.get("exception", "")) is debug
    if not debug:
        assert not [each for each in records if "panicked" in each["message"]]


def test_wrong_settings_are_a_record_too(tmp_path: Path) -> None:
    environment = {**JSON, "BYTEWAX_JETSTREAM_POOL_ACK_WORKERS": "0"}
    with start_run(FLOW, log=tmp_path / "log", environment=environment) as run:
        assert run.end() == ExitCode.USAGE

    (record,) = _records(run)
    assert "BYTEWAX_JETSTREAM_POOL_ACK_WORKERS cannot be used" in record["message"]


def test_the_last_words_of_a_run_that_is_cut_off_are_records(tmp_path: Path) -> None:
    told = Operated(str(tmp_path), trouble="hangs in C")
    environment = {**told.environment, **JSON, "BYTEWAX_JETSTREAM_POOL_DRAIN_TIMEOUT": "1"}
    with start_run(FLOW, log=tmp_path / "log", environment=environment) as run:
        run.until(lambda: len(told.emitted) > 10)
        run.signal(signal.SIGTERM)
        assert run.end(60) == ExitCode.UNKNOWN, run.log

    assert "the drain does not end" in _records(run)[-1]["message"]


def test_text_that_a_flow_prints_to_stderr_comes_in_order(tmp_path: Path) -> None:
    (tmp_path / "talks.py").write_text(
        "import os, sys\n"
        "for number in range(2000):\n"
        "    print('line', number, file=sys.stderr)\n"
        "os.write(2, b'half a line')\n"
        "raise SystemExit(3)\n"
    )
    with start_run("talks", log=tmp_path / "log", environment=JSON, cwd=tmp_path) as run:
        assert run.end() == ExitCode.USAGE

    told = [each["message"] for each in _records(run) if each["logger"] == "stderr"]
    assert told[:2000] == [f"line {number}" for number in range(2000)]
    assert "half a line" in "".join(told[2000:])


def test_handler_of_a_flow_that_writes_to_stderr_does_not_get_its_own_lines(tmp_path: Path) -> None:
    (tmp_path / "talks.py").write_text(
        "import logging, time\n"
        "logging.getLogger().addHandler(logging.StreamHandler())\n"
        "logging.warning('hello')\n"
        "time.sleep(1)\n"
        "raise SystemExit(3)\n"
    )
    with start_run("talks", log=tmp_path / "log", environment=JSON, cwd=tmp_path) as run:
        assert run.end() == ExitCode.USAGE

    told = [each["logger"] for each in _records(run) if each["message"] == "hello"]
    assert sorted(told) == ["root", "stderr"]

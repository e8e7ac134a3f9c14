"""What the command loads, seen from a fresh interpreter, and the two ways to start it."""

import subprocess
import sys
from pathlib import Path

import pytest

from bytewax_jetstream.cli import main

BROKER_LIBRARIES = {"bytewax", "confluent_kafka", "nats"}
PROGRAM = """
import sys
from bytewax_jetstream.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stopped:
    assert stopped.code == 0, stopped.code
print(*sys.modules, file=sys.stderr)
"""


def modules_loaded_by(*arguments: str) -> set[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "usage: bytewax-jetstream" in done.stdout
    return set(done.stderr.split())


def test_help_imports_neither_a_command_nor_a_brokers_library() -> None:
    loaded = modules_loaded_by("--help")

    assert "bytewax_jetstream.cli.bench" not in loaded
    assert "bytewax_jetstream.bench" not in loaded
    assert not {name.partition(".")[0] for name in loaded} & BROKER_LIBRARIES


def test_help_of_bench_imports_its_options_but_no_brokers_library() -> None:
    loaded = modules_loaded_by("bench", "--help")

    assert {"bytewax_jetstream.cli.bench", "bytewax_jetstream.bench.cases"} <= loaded
    assert not {name.partition(".")[0] for name in loaded} & BROKER_LIBRARIES


@pytest.mark.parametrize(
    "start",
    [
        [str(Path(sys.executable).with_name("bytewax-jetstream"))],
        [sys.executable, "-m", "bytewax_jetstream.cli"],
    ],
    ids=["console script", "python -m"],
)
def test_both_ways_to_start_it_list_the_commands(start: list[str]) -> None:
    done = subprocess.run([*start, "--help"], capture_output=True, text=True, check=True)

    assert "bench" in done.stdout.partition("commands:")[2]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["measure"], "argument COMMAND: invalid choice: 'measure'"),
    ],
)
def test_missing_or_unknown_command_is_reported(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)

    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err

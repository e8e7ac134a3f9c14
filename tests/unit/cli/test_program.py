"""What the command loads, seen from a fresh interpreter, its completion, and how it is started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import call

PROGRAM = """
import sys
from bytewax_jetstream.cli import main
assert main(sys.argv[1:]) == 0
print(*sys.modules, file=sys.stderr)
"""
SLOW = {
    "asyncio",
    "bytewax",
    "confluent_kafka",
    "matplotlib",
    "nats",
    "pydantic",
    "pydantic_settings",
    "rich",
    "ssl",
}
COMMANDS = ["run", "dev", "doctor", "bench", "streams"]
HELPS = [
    ["--help"],
    *([command, "--help"] for command in COMMANDS),
    *(["streams", command, "--help"] for command in ("plan", "apply", "check")),
]


@pytest.mark.parametrize("arguments", HELPS, ids=" ".join)
def test_help_loads_nothing_that_is_slow(arguments: list[str]) -> None:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert done.stdout.startswith("Usage: bytewax-jetstream")
    loaded = set(done.stderr.split())
    assert not {name.partition(".")[0] for name in loaded} & SLOW
    # The package's own modules: names only, and what a command line is made of.
    assert len([name for name in loaded if name.startswith("bytewax_jetstream")]) < 20


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

    listed = done.stdout.partition("Commands:")[2]
    assert [line.split()[0] for line in listed.splitlines() if line[2:3].strip()] == COMMANDS


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["measure"], "No such command 'measure'"),
        (["strems"], "Did you mean 'streams'?"),
        (["streams", "aply"], "Did you mean 'apply'?"),
        (["dev", "--kafak"], "No such option: --kafak (Possible options: --data, --kafka)"),
        (["doctor", "--broker", "rabbit"], "'rabbit' is not one of"),
        (["run"], "Missing argument"),
    ],
)
def test_unknown_command_or_option_is_reported(arguments: list[str], sentence: str) -> None:
    ended = call(*arguments)

    assert ended.code == 2
    assert sentence in ended.err


def test_no_command_shows_the_help() -> None:
    ended = call()

    assert ended.code == 2
    assert "Commands:" in ended.out + ended.err


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("bytewax-jetstream d", {"dev", "doctor"}),
        ("bytewax-jetstream streams ", {"plan", "apply", "check"}),
        ("bytewax-jetstream doctor --b", {"--broker"}),
        ("bytewax-jetstream doctor --broker k", {"kafka"}),
    ],
)
def test_shell_completion_offers_commands_options_and_values(words: str, offered: set[str]) -> None:
    script = str(Path(sys.executable).with_name("bytewax-jetstream"))
    asked = {
        "_BYTEWAX_JETSTREAM_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = subprocess.run(
        [script], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )

    assert set(done.stdout.split()) == offered


@pytest.mark.parametrize("command", [["doctor"], ["streams", "plan"]], ids=" ".join)
def test_variable_that_is_no_json_is_named(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bytewax_jetstream.cli", *command],
        env={**os.environ, "BYTEWAX_JETSTREAM_STREAMS": "[{", "PYTHONPATH": str(Path.cwd())},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "BYTEWAX_JETSTREAM_STREAMS is not valid JSON" in done.stderr

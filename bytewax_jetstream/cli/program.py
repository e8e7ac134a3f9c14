"""Lists the commands, and runs the one that is called; no other is imported."""

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["main"]


class Command(NamedTuple):
    """One command."""

    help: str
    main: Callable[[str, Sequence[str]], int]
    """Called with the program's name, for its messages, and the arguments after the command;
    returns the exit code.
    """


def _bench(program: str, arguments: Sequence[str]) -> int:
    from . import bench

    return bench.main(program, arguments)


COMMANDS = {
    "bench": Command("measure how fast messages are published, compared with other ways", _bench),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="bytewax-jetstream",
        usage="%(prog)s [-h] COMMAND ...",
        description="Tools for bytewax_jetstream; COMMAND --help lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(
            ["commands:", *(f"  {name:{width}}  {each.help}" for name, each in COMMANDS.items())]
        ),
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    rest = parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    rest.required = False  # else Python 3.11 names it when the command is missing
    called = parser.parse_args(arguments)
    return COMMANDS[called.command].main(f"{parser.prog} {called.command}", called.arguments)

"""The command `bytewax-jetstream`."""

import argparse
import sys
from collections.abc import Sequence

from . import bench as bench

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="bytewax-jetstream", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    benchmark = commands.add_parser(
        "bench", help="measure how fast messages are published, beside other ways"
    )
    benchmark.description = (
        "Measure how fast messages are published and acknowledged, beside other ways to do it."
    )
    bench.add_arguments(benchmark)
    options = parser.parse_args(arguments)
    return bench.main(benchmark, options)


if __name__ == "__main__":
    sys.exit(main())

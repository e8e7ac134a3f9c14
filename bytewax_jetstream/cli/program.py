"""Lists the commands. Each imports what it needs when it is called, so that `--help` is fast."""

from collections.abc import Sequence

import typer

from . import bench, dev, doctor, streams
from .group import Commands
from .run import run

__all__ = ["app", "main"]


app = typer.Typer(
    name="bytewax-jetstream",
    help="Run dataflows that publish to NATS JetStream or Kafka, and look after their brokers.",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run)
app.command()(dev.dev)
app.command()(doctor.doctor)
app.command(epilog=bench.EPILOG)(bench.bench)
app.add_typer(streams.app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="bytewax-jetstream")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0

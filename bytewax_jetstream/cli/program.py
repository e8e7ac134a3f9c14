"""Lists the commands. Each imports what it needs when it is called, so that `--help` is fast."""

from collections.abc import Sequence
from typing import Annotated

import typer

from .run import run

__all__ = ["app", "main"]

app = typer.Typer(
    name="bytewax-jetstream",
    help="Run dataflows that publish to NATS JetStream or Kafka, and look after their brokers.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run)


@app.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def bench(arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Measure how fast messages are published, compared with other ways."""
    from . import bench as command

    raise typer.Exit(command.main("bytewax-jetstream bench", arguments or []))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="bytewax-jetstream")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0

"""The command `bytewax-jetstream`: one module per command, imported when the command is called."""

from .program import main

__all__ = ["main"]

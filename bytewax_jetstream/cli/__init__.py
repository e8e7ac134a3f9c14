"""The command `bytewax-jetstream`."""

from .main import main

__all__ = ["main"]

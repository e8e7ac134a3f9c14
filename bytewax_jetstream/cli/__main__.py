"""Runs the command: `python -m bytewax_jetstream.cli`."""

from .program import main

main()

"""Dataflows to run: `python -m bytewax.run flows.quickstart:flow`."""

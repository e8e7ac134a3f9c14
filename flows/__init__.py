"""Runnable dataflows: `python -m bytewax.run flows.x:flow`."""

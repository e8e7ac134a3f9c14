"""Runs the command: `python -m bytewax_jetstream.cli`."""

import sys

from .program import main

sys.exit(main())

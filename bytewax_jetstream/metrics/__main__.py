"""Fills the table of metrics into pages: `python -m bytewax_jetstream.metrics docs/metrics.md`."""

import sys
from pathlib import Path

from .page import fill

for name in sys.argv[1:]:
    path = Path(name)
    path.write_text(fill(path.read_text()))

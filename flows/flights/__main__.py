"""Runs the demo: `python -m flows.flights`."""

import sys

try:
    from .demo import main
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "rich":
        raise
    sys.exit("the demo needs rich and a nats-server: pip install 'bytewax-jetstream[demo]'")

sys.exit(main())

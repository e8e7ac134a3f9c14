"""How a run logs: one line a record on stderr, as text or as JSON."""

import logging
import sys
from typing import Literal

__all__ = ["configure"]

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure(kind: Literal["text", "json"], *, debug: bool) -> None:
    """Send every record to stderr: ours from INFO on, those of other libraries from WARNING on.

    :arg debug: Send all records.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(TEXT) if kind == "text" else _json())
    logging.basicConfig(
        handlers=[handler], level=logging.DEBUG if debug else logging.WARNING, force=True
    )
    logging.getLogger("bytewax_jetstream").setLevel(logging.DEBUG if debug else logging.INFO)
    logging.captureWarnings(True)


def _json() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(
        "%(levelname)s %(name)s %(message)s",
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp="time",
        json_ensure_ascii=False,
    )

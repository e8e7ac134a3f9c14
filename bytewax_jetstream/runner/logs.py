"""How a run logs: one line a record on stderr, as text or as JSON."""

import atexit
import logging
import sys
import threading
from types import TracebackType
from typing import Any, Literal, TextIO

from ..exit_codes import before_exit_now
from .stderr import Stderr

__all__ = ["configure"]

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

log = logging.getLogger(__name__)
stderr_log = logging.getLogger("stderr")


def configure(kind: Literal["text", "json"], *, debug: bool) -> None:
    """Send every record to stderr: ours from INFO on, those of other libraries from WARNING on.

    As JSON, everything else on stderr becomes a record, too, so that each line can be parsed: what
    steps print there, errors that nobody catches, and what the engine says.

    :arg debug: Send all records.
    """
    stream: TextIO = sys.stderr
    if kind == "json":
        stderr = Stderr(_tell)
        stream = stderr.real
        atexit.register(stderr.end)
        before_exit_now.append(stderr.end)
        logging.raiseExceptions = False  # they would go to stderr, and so be logged
        sys.excepthook = _uncaught
        threading.excepthook = _uncaught_in_thread
        sys.unraisablehook = _unraisable
        stderr_log.setLevel(logging.INFO)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter(TEXT) if kind == "text" else _json())
    logging.basicConfig(
        handlers=[handler], level=logging.DEBUG if debug else logging.WARNING, force=True
    )
    if kind == "json":
        # Not to the handlers of the flow, too: one that writes to stderr would get its own lines.
        stderr_log.handlers, stderr_log.propagate = [handler], False
    logging.getLogger("bytewax_jetstream").setLevel(logging.DEBUG if debug else logging.INFO)
    logging.captureWarnings(True)


def _json() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(
        "%(levelname)s %(name)s %(message)s",
        rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
        timestamp="time",
        json_ensure_ascii=False,
        json_default=str,
    )


def _tell(line: str) -> None:
    stderr_log.info("%s", line)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log.critical("%s: %s", kind.__name__, error, exc_info=(kind, error, trace))


def _uncaught_in_thread(hook: threading.ExceptHookArgs) -> None:
    if hook.exc_value is None or isinstance(hook.exc_value, SystemExit):
        return
    name = hook.thread.name if hook.thread is not None else "a thread"
    log.error(
        "%s ended: %s: %s",
        name,
        hook.exc_type.__name__,
        hook.exc_value,
        exc_info=(hook.exc_type, hook.exc_value, hook.exc_traceback),
    )


def _unraisable(hook: Any) -> None:
    log.error(
        "%s %r: %s: %s",
        hook.err_msg or "an error was ignored in",
        hook.object,
        hook.exc_type.__name__,
        hook.exc_value,
        exc_info=hook.exc_value,
    )

"""`bytewax-jetstream run`: its options; what it does is in `bytewax_jetstream.runner`."""

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = ["run"]


def run(
    flow: Annotated[
        str,
        typer.Argument(
            help="package.module:name or path/to/file.py:name, of a Dataflow or of a function that "
            "makes one; the name is 'flow' if it is left out."
        ),
    ],
    workers: Annotated[
        int,
        typer.Option(
            "--workers", "-w", min=1, envvar="BYTEWAX_WORKERS_PER_PROCESS", help="Worker threads."
        ),
    ] = 1,
    recovery: Annotated[
        Path | None,
        typer.Option(
            "--recovery",
            "-r",
            envvar="BYTEWAX_RECOVERY_DIRECTORY",
            help="The recovery directory: made if it is not there, and locked. Without it, every "
            "run begins at the start of its input.",
        ),
    ] = None,
    parts: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many parts a new recovery store gets, over all processes: at least as many "
            "as the dataflow will ever have processes. [env var: BYTEWAX_JETSTREAM_RUN_PARTS]",
        ),
    ] = None,
    epoch: Annotated[
        float,
        typer.Option(
            "--snapshot-interval",
            "-s",
            min=0,
            envvar="BYTEWAX_SNAPSHOT_INTERVAL",
            help="Seconds in an epoch: how often progress is committed.",
        ),
    ] = 10.0,
    backup: Annotated[
        float,
        typer.Option(
            "--backup-interval",
            "-b",
            min=0,
            envvar="BYTEWAX_RECOVERY_BACKUP_INTERVAL",
            help="Seconds for which old epochs are kept, for backups of the recovery directory.",
        ),
    ] = 0.0,
    process: Annotated[
        int | None,
        typer.Option(
            "--process-id",
            "-i",
            min=0,
            envvar="BYTEWAX_PROCESS_ID",
            help="Which of several processes this is, from 0. In a StatefulSet it follows from "
            "BYTEWAX_POD_NAME and BYTEWAX_STATEFULSET_NAME.",
        ),
    ] = None,
    addresses: Annotated[
        str | None,
        typer.Option(
            "--addresses",
            "-a",
            envvar="BYTEWAX_ADDRESSES",
            help="host:port of every process, with ';' between them.",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_535,
            help="Serve /metrics there; 0: not at all. By default only if "
            "BYTEWAX_DATAFLOW_API_ENABLED is set, on BYTEWAX_DATAFLOW_API_PORT.",
        ),
    ] = None,
    health_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65_535,
            help="Serve /healthz and /readyz there. [env var: BYTEWAX_JETSTREAM_RUN_HEALTH_PORT]",
        ),
    ] = None,
    log_format: Annotated[
        Literal["text", "json"] | None,
        typer.Option(
            help="One line a record on stderr. [env var: BYTEWAX_JETSTREAM_RUN_LOG_FORMAT]"
        ),
    ] = None,
    must_finish: Annotated[
        bool | None,
        typer.Option(
            "--must-finish/--may-stop",
            help="Exit with 143, not 0, when a signal ends the run before its input ends: a "
            "Kubernetes Job needs that. [env var: BYTEWAX_JETSTREAM_RUN_MUST_FINISH]",
        ),
    ] = None,
    debug: Annotated[bool, typer.Option(help="Log everything, and show tracebacks.")] = False,
) -> None:
    """Run a dataflow.

    SIGTERM and SIGINT end it in order, as process 1 of a container, too.

    Exit codes: 0 stored; 1 a step failed; 2 usage or settings; 3 unknown, run again; 4 refused;
    5 the recovery directory is in use; 130 or 143 a signal ended it before there was anything to
    drain, or before its end (--must-finish).
    """
    early = _end_at_signals()
    import logging

    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from ..errors import RunError
    from ..exit_codes import ExitCode
    from ..runner import Cluster, Recovery, Run, logs
    from ..runner import run as run_flow
    from ..runner.wrong_settings import settings_error
    from ..settings import PoolSettings, RunSettings

    given: dict[str, Any] = {
        "parts": parts,
        "health_port": health_port,
        "log_format": log_format,
        "must_finish": must_finish,
    }
    settings = None
    try:
        settings = RunSettings(**{name: v for name, v in given.items() if v is not None})
        logs.configure(settings.log_format, debug=debug)
        asked = Run(
            flow,
            settings,
            Cluster.of(process, addresses),
            workers,
            Recovery(recovery, settings.parts, _seconds(backup, "--backup-interval"))
            if recovery
            else None,
            _seconds(epoch, "--snapshot-interval"),
            PoolSettings().drain_timeout,
            _metrics_port(metrics_port),
            debug,
        )
    except (ValueError, RunError) as error:
        is_of_pydantic = isinstance(error, ValidationError | SettingsError)
        said = settings_error(error) if is_of_pydantic else str(error)  # type: ignore[arg-type]
        if settings is None:
            wanted = log_format or os.environ.get("BYTEWAX_JETSTREAM_RUN_LOG_FORMAT", "").strip()
            logs.configure("json" if wanted == "json" else "text", debug=debug)
        logging.getLogger(__name__).critical("%s", said, exc_info=debug)
        raise typer.Exit(ExitCode.USAGE) from None
    for number, handler in early.items():
        signal.signal(number, handler)  # `run_flow` replaces Python's own handlers only
    raise typer.Exit(run_flow(asked))


def _end_at_signals() -> "dict[int, Any]":
    """Also as process 1, to which a signal does nothing by default, while modules are imported.

    :returns: The handlers that were there.
    """

    def end(number: int, frame: object) -> None:
        os._exit(128 + number)

    pythons = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    return {
        number: signal.signal(number, end)
        for number, handler in pythons.items()
        if signal.getsignal(number) is handler
    }


def _seconds(seconds: float, option: str) -> "timedelta":
    from datetime import timedelta

    from ..errors import RunError

    try:
        return timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        raise RunError(f"{option} is {seconds:g}: set a number of seconds") from None


def _metrics_port(option: int | None) -> int | None:
    """The port, from the option or from Bytewax's variables."""
    from ..errors import RunError

    if option is not None:
        return option or None
    enabled = os.environ.get("BYTEWAX_DATAFLOW_API_ENABLED", "").strip().lower()
    if enabled in ("", "0", "false", "no", "off"):
        return None
    port = os.environ.get("BYTEWAX_DATAFLOW_API_PORT", "").strip() or "3030"
    if not port.isdecimal() or not 0 < int(port) < 65_536:
        raise RunError(f"BYTEWAX_DATAFLOW_API_PORT is {port!r}: set a port from 1 to 65535")
    return int(port)

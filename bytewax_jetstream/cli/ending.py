"""How a command ends that cannot do what it was asked: one sentence, and the exit code."""

import logging
import sys
import traceback
from typing import NoReturn

import typer

from ..exit_codes import ExitCode

__all__ = ["code_of", "end", "logging_for", "sentence"]

WRONG_SETTINGS = ("ValidationError", "SettingsError")


def end(command: str, error: Exception, code: ExitCode, *, debug: bool) -> NoReturn:
    """Say what is wrong, with the traceback only for `--debug`, and end."""
    if debug:
        traceback.print_exception(error)
    print(f"bytewax-jetstream {command}: {sentence(error)}", file=sys.stderr)
    raise typer.Exit(code) from None


def logging_for(*, debug: bool) -> None:
    """Show what the modules log only with `--debug`: the sentence says the same."""
    if debug:
        logging.basicConfig(level=logging.DEBUG)
    else:
        logging.basicConfig(handlers=[logging.NullHandler()])


def code_of(error: Exception) -> ExitCode:
    """The exit code for an error of a broker, a flow or a setting."""
    if isinstance(error, ValueError):
        return ExitCode.USAGE
    from ..runner import Cluster  # imports Bytewax
    from ..runner.ends import code_of as of_a_run

    return of_a_run(error, Cluster())


def sentence(error: Exception) -> str:
    """What happened and what to do."""
    kind = type(error)
    if kind.__module__.startswith("pydantic") and kind.__name__ in WRONG_SETTINGS:
        from ..runner.wrong_settings import settings_error

        return settings_error(error)  # type: ignore[arg-type]  # known by its name, not loaded here
    return str(error) or type(error).__name__

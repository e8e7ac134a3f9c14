"""`bytewax-jetstream doctor`: its options; the steps are in `bytewax_jetstream.doctor`."""

from typing import Annotated, Literal

import typer

from ..exit_codes import ExitCode
from .ending import code_of, end, logging_for

__all__ = ["doctor"]


def doctor(
    broker: Annotated[
        Literal["jetstream", "kafka", "both"] | None,
        typer.Option(help="Which one to look at; by default those that the settings name."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object, in one line.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show logs and tracebacks.")] = False,
) -> None:
    """Look whether a flow could publish.

    It looks step by step, and each step that fails says what to do: name, TCP, protocol, TLS,
    authentication, permissions, streams and topics, limits, clock, with the settings of the
    variables, .env and the secrets directory. Nothing is stored and nothing is changed.

    Exit codes: 0 no step failed; 2 usage or settings; 3 a broker could not be reached; 4 it refuses
    something.
    """
    import json

    from ..doctor import examine
    from ..errors import JetStreamPipelineError

    logging_for(debug=debug)
    try:
        reports = examine(broker)
    except (JetStreamPipelineError, ValueError) as error:
        end("doctor", error, code_of(error), debug=debug)
    codes = [each.exit_code for each in reports]
    code = next(
        (each for each in (ExitCode.USAGE, ExitCode.REFUSED, ExitCode.UNKNOWN) if each in codes),
        ExitCode.STORED,
    )
    if as_json:
        steps = [step for each in reports for step in each.as_json()]
        print(json.dumps({"exit_code": int(code), "steps": steps}))
    else:
        for each in reports:
            print(*each.lines(), sep="\n")
        print("No step failed." if not code else "A step failed: do what its arrow says.")
    raise typer.Exit(code)

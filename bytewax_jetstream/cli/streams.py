"""`bytewax-jetstream streams`: plan, apply and check the streams and topics that a flow needs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..exit_codes import ExitCode
from .ending import end
from .group import Commands

if TYPE_CHECKING:
    from ..planning import Plan, Wanted

__all__ = ["app"]

app = typer.Typer(
    name="streams",
    cls=Commands,
    help="Compare and make streams and topics.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

DIFFERS = ExitCode.FAILED

Flow = Annotated[
    str | None,
    typer.Option(
        metavar="FLOW",
        help="What the steps of this flow need, as in flows.quickstart:flow; it is imported, and "
        "does not run. By default what the variables and .env say.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object, in one line.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show logs and tracebacks.")]


@app.command()
def plan(flow: Flow = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """Show what `apply` would do.

    It shows what would be created, changed and kept, and what cannot be; nothing changes.

    Exit codes: 0 no difference; 1 something would be created or changed; 2 usage or settings; 3 a
    broker could not be reached; 4 something cannot be made as the settings require, or the broker
    refuses this user.
    """
    with _asked("plan", debug=debug):
        plans = [made for _, made in _plans(flow)]
        _show(plans, as_json=as_json)
        raise typer.Exit(_code(plans))


@app.command()
def apply(
    flow: Flow = None,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", help="Also make changes that could remove stored messages or lose an order."
        ),
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show the plan, then make it.

    Nothing is deleted, and no limit is lowered. If a part of the plan cannot be made, or has a risk
    and --yes is missing, nothing is changed at all.

    Exit codes: 0 everything is as the settings require; 2 usage, settings, or a risk without --yes;
    3 a broker could not be reached; 4 it cannot be made, or the broker refuses it.
    """
    with _asked("apply", debug=debug):
        made = _plans(flow)
        plans = [each for _, each in made]
        if not as_json:
            _show(plans, as_json=False)
        applied = False
        if all(each.is_possible for each in plans):
            if any(each.risks for each in plans) and not yes:
                if as_json:
                    _show(plans, as_json=True, applied=False)
                risk = ValueError(
                    "nothing was changed, because of the risks above: add --yes if you accept them"
                )
                end("streams apply", risk, ExitCode.USAGE, debug=debug)
            plans = _make(made)
            applied = True
        if as_json:
            _show(plans, as_json=True, applied=applied)
        elif not applied:
            print("Nothing was changed.")
        else:
            _say_made([each for _, each in made])
            for left in (each for each in plans if each.differs):
                print("This is left:", *left.lines(), sep="\n", file=sys.stderr)
        raise typer.Exit(ExitCode.REFUSED if any(each.differs for each in plans) else 0)


@app.command()
def check(flow: Flow = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """Check that everything is there.

    It asks what a run with the strategy validate asks at its start; nothing changes.

    Exit codes: 0 the servers have what the settings require; 2 usage or settings; 3 a broker could
    not be reached; 4 something is missing or too weak, and each shortcoming is printed.
    """
    with _asked("check", debug=debug):
        plans = [made for _, made in _plans(flow)]
        short = [said for each in plans for said in each.shortcomings]
        if as_json:
            _print_json({"shortcomings": short, "brokers": [each.as_json() for each in plans]})
        else:
            for said in short:
                print(said, file=sys.stderr)
            if not short:
                print("The servers have everything that the settings require.")
            else:
                print("bytewax-jetstream streams plan shows what can be done.", file=sys.stderr)
        raise typer.Exit(ExitCode.REFUSED if short else ExitCode.STORED)


def _plans(flow: str | None) -> "list[tuple[Wanted, Plan]]":
    from ..errors import RunError
    from ..planning import from_environment, from_flow, make_plan

    wanted = [each for each in (from_flow(flow) if flow else from_environment()) if each.names]
    if not wanted:
        where = (
            f"{flow} has settings without streams and topics"
            if flow
            else "the variables and .env name no streams and no topics"
        )
        raise RunError(
            f"{where}: set BYTEWAX_JETSTREAM_STREAMS, BYTEWAX_JETSTREAM_TOPICS, or those of Kafka, "
            "or name a flow that has them with --flow"
        )
    return [(each, make_plan(each)) for each in wanted]


def _make(made: "list[tuple[Wanted, Plan]]") -> "list[Plan]":
    """Make the plans; returns what is left to do then, which should be nothing."""
    from ..errors import JetStreamPipelineError
    from ..planning import make_plan, planner_for

    try:
        for wanted, each in made:
            if each.differs:
                planner_for(wanted).apply(each)
    except JetStreamPipelineError:
        print("A part of the plan may be made: a new plan shows what is left.", file=sys.stderr)
        raise
    return [make_plan(wanted) for wanted, _ in made]


def _say_made(plans: "list[Plan]") -> None:
    from ..planning import Action

    for entry in (entry for each in plans for entry in each.entries):
        if entry.action is Action.CREATE and entry.stored_by is None:
            print(f"created {entry.kind} {entry.name}")
        elif entry.action is Action.CHANGE:
            print(f"changed {entry.kind} {entry.name}")
    if not any(each.differs for each in plans):
        print("Nothing had to be changed.")


def _code(plans: "list[Plan]") -> ExitCode:
    if not all(each.is_possible for each in plans):
        return ExitCode.REFUSED
    return DIFFERS if any(each.differs for each in plans) else ExitCode.STORED


def _show(plans: "list[Plan]", *, as_json: bool, applied: bool | None = None) -> None:
    if as_json:
        shown: dict[str, Any] = {
            "differs": any(each.differs for each in plans),
            "brokers": [each.as_json() for each in plans],
        }
        if applied is not None:
            shown["applied"] = applied
        _print_json(shown)
        return
    from ..planning import summary

    for each in plans:
        print(*each.lines(), sep="\n")
    print(summary(plans))


def _print_json(shown: dict[str, Any]) -> None:
    import json

    print(json.dumps(shown))


@contextmanager
def _asked(command: str, *, debug: bool) -> Iterator[None]:
    """Ends the command with a sentence when a broker, a flow or a setting is wrong."""
    from ..errors import JetStreamPipelineError
    from .ending import code_of, logging_for

    logging_for(debug=debug)
    try:
        yield
    except (JetStreamPipelineError, ValueError) as error:
        end(f"streams {command}", error, code_of(error), debug=debug)

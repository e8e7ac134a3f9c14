"""`bytewax-jetstream dev`: brokers for development, and the variables that lead a flow to them."""

import json
import shlex
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ..exit_codes import ExitCode
from .ending import end

__all__ = ["dev"]

LOOK_SECONDS = 0.2
"""How often to look whether a server has ended by itself."""


def dev(
    kafka: Annotated[
        bool, typer.Option("--kafka", help="Start a Kafka broker, too: needs Java 17 or later.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIRECTORY",
            help="Keep streams and topics there for the next time; made if it is not there. By "
            "default they are removed at the end.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the variables as a JSON object, in one line.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Run brokers for development.

    A NATS server with JetStream runs until Ctrl-C or SIGTERM, on loopback only. When it takes
    clients, the variables to export for a flow are printed, such as BYTEWAX_JETSTREAM_SERVERS.

    Exit codes: 0 ended by a signal; 1 a server ended by itself; 2 it cannot be started here; 5 the
    directory is in use.
    """
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _interrupt)
    try:
        with ExitStack() as stack:
            _serve(stack, kafka=kafka, data=data, as_json=as_json, debug=debug)
    except KeyboardInterrupt:
        print("bytewax-jetstream dev: ended", file=sys.stderr)


def _serve(
    stack: ExitStack, *, kafka: bool, data: Path | None, as_json: bool, debug: bool
) -> NoReturn:
    import time

    from ..errors import JetStreamPipelineError
    from ..testing import KafkaServer, NatsServer

    servers: list[NatsServer | KafkaServer] = []
    try:
        if data is not None:
            _claim(stack, data, debug=debug)
        nats = NatsServer(store_dir=data / "jetstream" if data is not None else None)
        servers.append(stack.enter_context(nats))
        variables = {"BYTEWAX_JETSTREAM_SERVERS": nats.url}
        if kafka:
            broker = KafkaServer(data_dir=data / "kafka" if data is not None else None)
            servers.append(stack.enter_context(broker))
            variables["BYTEWAX_JETSTREAM_KAFKA_BROKERS"] = broker.bootstrap
    except OSError as error:
        wrong = OSError(f"{data} cannot be used ({error.strerror or error}): correct --data")
        end("dev", wrong, ExitCode.USAGE, debug=debug)
    except JetStreamPipelineError as error:
        end("dev", error, ExitCode.USAGE, debug=debug)
    _show(variables, as_json=as_json)
    kept = f"stay in {data}" if data is not None else "are removed then"
    print(
        f"bytewax-jetstream dev: ready; Ctrl-C ends it, and streams{' and topics' * kafka} {kept}",
        file=sys.stderr,
        flush=True,
    )
    while all(server.alive for server in servers):
        time.sleep(LOOK_SECONDS)
    ended = next(server for server in servers if not server.alive)
    last = ended.log.rstrip().rpartition("\n")[2] or "it logged nothing"
    died = RuntimeError(f"the {ended.title} has ended by itself ({last}): start it again")
    end("dev", died, ExitCode.FAILED, debug=debug)


def _claim(stack: ExitStack, data: Path, *, debug: bool) -> None:
    """Make the directory, and lock it: two servers would destroy each other's data."""
    import fcntl

    data.mkdir(parents=True, exist_ok=True)
    lock = stack.enter_context((data / "lock").open("w"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        used = RuntimeError(f"{data} is in use by another dev: end it, or choose another --data")
        end("dev", used, ExitCode.LOCKED, debug=debug)


def _interrupt(*_: object) -> None:
    """End once: a second signal must not interrupt the servers' end."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _show(variables: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(variables), flush=True)
        return
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")
    sys.stdout.flush()

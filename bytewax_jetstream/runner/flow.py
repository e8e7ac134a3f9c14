"""Finds a flow by its name, and lets every source of it drain."""

import importlib
import sys
import traceback
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from bytewax.dataflow import Dataflow, Operator
from bytewax.inputs import DynamicSource, FixedPartitionedSource
from bytewax.outputs import (
    DynamicSink,
    FixedPartitionedSink,
    StatefulSinkPartition,
    StatelessSinkPartition,
)
from pydantic import ValidationError
from pydantic_settings import SettingsError

from ..drain import drain_on_signal
from ..errors import JetStreamPipelineError, RunError
from .wrong_settings import settings_error

__all__ = ["call_when_built", "drain_all", "load"]


def load(name: str) -> Dataflow:
    """Import a flow; nothing runs yet, except what its module does when it is imported.

    :arg name: `package.module:name` or `path/to/file.py:name`, of a `Dataflow` or of a function
        that makes one. Without a name it is `flow`.
    :raises RunError: when there is no such flow, or it cannot be made.
    """
    module_name, _, attribute = name.partition(":")
    attribute = attribute or "flow"
    module = _import(module_name, name)
    found = getattr(module, attribute, None)
    if found is None:
        flows = [each for each, value in vars(module).items() if isinstance(value, Dataflow)]
        there = f"; it has {', '.join(flows)}" if flows else ""
        raise RunError(f"{module_name} has no {attribute}{there}: correct the name", flow=name)
    if callable(found) and not isinstance(found, Dataflow):
        found = _call(found, name)
    if not isinstance(found, Dataflow):
        raise RunError(
            f"{name} is of type {type(found).__name__}, not a Dataflow, nor a function that makes "
            "one: correct the name",
            flow=name,
        )
    return found


def drain_all(flow: Dataflow, timeout: float) -> None:
    """Let every source of the flow end at SIGTERM and SIGINT, as `drain_on_signal` does.

    :arg timeout: How many seconds a drain may take.
    """
    for step in _steps(flow.substeps):
        source = getattr(step, "source", None)
        if isinstance(source, FixedPartitionedSource | DynamicSource):
            # Operators are frozen after they are built. The engine reads the field when it starts.
            object.__setattr__(step, "source", drain_on_signal(source, timeout=timeout))


def call_when_built(flow: Dataflow, workers: int, then: Callable[[], None]) -> None:
    """Call this once every worker of this process has built the flow, so that its lanes are open.

    The engine builds the steps in their order in the flow, and what follows the last sink opens
    nothing.
    """
    last = next((s for s in reversed(list(_steps(flow.substeps))) if hasattr(s, "sink")), None)
    built = count(1)

    def tell() -> None:
        if next(built) == workers:
            then()

    sink = getattr(last, "sink", None)
    if isinstance(sink, DynamicSink):
        object.__setattr__(last, "sink", _TellingDynamic(sink, tell))
    elif isinstance(sink, FixedPartitionedSink):
        object.__setattr__(last, "sink", _TellingFixed(sink, tell))
    else:
        then()  # the engine refuses such a flow


class _TellingDynamic(DynamicSink[Any]):
    """A sink that tells when a worker has built it."""

    def __init__(self, sink: DynamicSink[Any], tell: Callable[[], None]) -> None:
        self._sink, self._tell = sink, tell

    def build(
        self, step_id: str, worker_index: int, worker_count: int
    ) -> StatelessSinkPartition[Any]:
        part = self._sink.build(step_id, worker_index, worker_count)
        self._tell()
        return part


class _TellingFixed(FixedPartitionedSink[Any, Any]):
    """A sink that tells when a worker has built it."""

    def __init__(self, sink: FixedPartitionedSink[Any, Any], tell: Callable[[], None]) -> None:
        self._sink, self._tell = sink, tell
        self.part_fn = sink.part_fn  # type: ignore[method-assign]  # called for each item

    def list_parts(self) -> list[str]:
        parts = self._sink.list_parts()
        self._tell()
        return parts

    def build_part(
        self, step_id: str, for_part: str, resume_state: Any
    ) -> StatefulSinkPartition[Any, Any]:
        return self._sink.build_part(step_id, for_part, resume_state)


def _steps(steps: Iterable[Operator]) -> Iterable[Operator]:
    for step in steps:
        yield step
        yield from _steps(step.substeps)


def _import(module_name: str, flow: str) -> object:
    directory = Path.cwd()
    path = None
    if module_name.endswith(".py") or "/" in module_name:
        path = Path(module_name).with_suffix(".py")
        if not path.is_file():
            raise RunError(f"there is no file {path}: correct the path", flow=flow)
        directory, parts = path.resolve().parent, [path.stem]
        while (directory / "__init__.py").exists():
            directory, parts = directory.parent, [directory.name, *parts]
        module_name = ".".join(parts)
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise RunError(
                f"there is no flow {flow}: no module {error.name} in {directory} or among the "
                "installed packages; name it as in flows.quickstart:flow or path/to/flow.py:flow",
                flow=flow,
            ) from error
        _raise_failed("cannot be imported", flow, error)
    except (ValueError, TypeError) as error:
        if not module_name.strip(".") or module_name.startswith("."):
            raise RunError(
                f"{flow!r} does not name a flow: write it as in flows.quickstart:flow", flow=flow
            ) from error
        _raise_failed("cannot be imported", flow, error)
    except (Exception, SystemExit) as error:
        _raise_failed("cannot be imported", flow, error)
    file = getattr(module, "__file__", None)
    if path is not None and (file is None or Path(file).resolve() != path.resolve()):
        raise RunError(
            f"there already is a module {module_name} ({file or 'built in'}), so {path} cannot be "
            "imported: rename it",
            flow=flow,
        )
    return module


def _call(factory: object, flow: str) -> object:
    assert callable(factory)
    try:
        return factory()
    except (Exception, SystemExit) as error:
        _raise_failed("cannot be made", flow, error)


def _raise_failed(what: str, flow: str, error: Exception | SystemExit) -> NoReturn:
    if isinstance(error, JetStreamPipelineError):
        raise error  # it says what to do
    if isinstance(error, ValidationError | SettingsError):
        raise RunError(f"flow {flow}: {settings_error(error)}", flow=flow) from error
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):
        where = ""  # its text has it
    text = " ".join(str(error).split()) or "no text"
    raise RunError(
        f"flow {flow} {what}: {type(error).__name__}: {text}{where}; correct it, or see the "
        "traceback with --debug",
        flow=flow,
    ) from error

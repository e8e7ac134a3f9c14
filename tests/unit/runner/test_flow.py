"""A flow is found by its name, and a wrong one is one sentence."""

from pathlib import Path

import bytewax.operators as op
import pytest
from bytewax.connectors.files import FileSink
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import TestingSource

from bytewax_jetstream.errors import RunError, StreamError
from bytewax_jetstream.runner.flow import call_when_built, load
from tests.support.dataflows import run

FLOW = """
import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.connectors.stdio import StdOutSink
from bytewax.testing import TestingSource

def build():
    flow = Dataflow("f")
    op.output("out", op.input("in", flow, TestingSource([1])), StdOutSink())
    return flow

flow = build()
"""
SETTINGS = """
from pydantic_settings import BaseSettings

class OrderSettings(BaseSettings):
    model_config = {"env_prefix": "ORDERS_"}
    topic: str

def make():
    return OrderSettings()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, from which modules are imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_variable_a_function_and_a_file_are_flows(folder: Path) -> None:
    (folder / "f_good.py").write_text(FLOW)

    for name in ("f_good:flow", "f_good", "f_good:build", "f_good.py:flow", "./f_good.py:build"):
        assert isinstance(load(name), Dataflow)


def test_a_file_in_a_package_is_imported_as_part_of_it(folder: Path) -> None:
    package = folder / "f_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "names.py").write_text("NAME = 1")
    (package / "f_inner.py").write_text("from .names import NAME\n" + FLOW)

    assert isinstance(load("f_package/f_inner.py:flow"), Dataflow)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("f_nowhere:flow", None, "there is no flow f_nowhere:flow: no module f_nowhere"),
        ("f_nowhere.py:flow", None, r"there is no file f_nowhere\.py"),
        ("", None, "'' does not name a flow"),
        (":flow", None, "':flow' does not name a flow"),
        (".f:flow", None, "does not name a flow"),
        ("f_typo:folw", FLOW, "f_typo has no folw; it has flow"),
        ("f_int:flow", "flow = 3", "is of type int, not a Dataflow"),
        ("f_import", "import f_absent", "No module named 'f_absent'.*line 1"),
        ("f_raises", "\n1 / 0", r"ZeroDivisionError: division by zero \(f_raises\.py, line 2\)"),
        ("f_syntax", "def (:", "SyntaxError"),
        ("f_factory:make", "def make():\n    raise KeyError('HOST')", "cannot be made: KeyError"),
        ("f_arguments:make", "def make(host): ...", "missing 1 required positional argument"),
        ("f_exits", "raise SystemExit(0)", r"SystemExit: 0 \(f_exits\.py, line 1\)"),
        ("f_quits:make", "def make():\n    exit('bye')", "cannot be made: SystemExit: bye"),
        ("f_none:make", "def make(): ...", "is of type NoneType"),
        (
            "f_setting:make",
            SETTINGS,
            "ORDERS_TOPIC is missing: set it",
        ),
    ],
)
def test_what_is_no_flow_is_one_sentence(
    folder: Path, name: str, text: str | None, said: str
) -> None:
    if text is not None:
        (folder / f"{name.partition(':')[0]}.py").write_text(text)

    with pytest.raises(RunError, match=said) as raised:
        load(name)
    assert "\n" not in str(raised.value)


def test_an_error_of_this_package_is_passed_on(folder: Path) -> None:
    (folder / "f_refused.py").write_text(
        "from bytewax_jetstream.errors import StreamError\nraise StreamError('no stream')"
    )

    with pytest.raises(StreamError, match="no stream") as raised:
        load("f_refused")
    assert raised.value.__cause__ is None


def test_a_file_with_the_name_of_another_module_is_not_mistaken(folder: Path) -> None:
    (folder / "json.py").write_text(FLOW)

    with pytest.raises(RunError, match=r"there already is a module json .*rename it"):
        load("json.py:flow")


class _Seen(DynamicSink[int]):
    """Notes when it is built, and what it gets."""

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_SeenPart":
        self._events.append("built")
        return _SeenPart(self._events)


class _SeenPart(StatelessSinkPartition[int]):
    def __init__(self, events: list[str]) -> None:
        self._events = events

    def write_batch(self, items: list[int]) -> None:
        self._events.append("items")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("last", ["dynamic", "partitioned"])
def test_it_is_told_once_when_all_workers_have_built_a_flow(
    tmp_path: Path, last: str, workers: int
) -> None:
    events: list[str] = []
    flow = Dataflow("f")
    numbers = op.input("in", flow, TestingSource(range(3)))
    op.output("first", numbers, _Seen(events))
    if last == "dynamic":
        op.output("last", numbers, _Seen(events))
    else:
        keyed = op.map("text", op.key_on("key", numbers, str), lambda pair: (pair[0], str(pair[1])))
        op.output("last", keyed, FileSink(tmp_path / "out"))

    call_when_built(flow, workers, lambda: events.append("told"))
    run(flow, workers=workers)

    assert events.count("told") == 1
    told = events.index("told")
    assert events[:told].count("built") == workers * (2 if last == "dynamic" else 1)
    assert "items" in events[told:]
    assert last == "dynamic" or (tmp_path / "out").read_text().split() == ["0", "1", "2"]

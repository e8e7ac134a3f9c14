"""A flow is found by its name, and a wrong one is one sentence."""

from pathlib import Path

import pytest
from bytewax.dataflow import Dataflow

from bytewax_jetstream.errors import RunError, StreamError
from bytewax_jetstream.runner.flow import load

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

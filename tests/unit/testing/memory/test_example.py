"""The example in the docs of the broker in memory is a test, and passes."""

import inspect
import textwrap
from collections.abc import Callable

from bytewax_jetstream.testing import memory


def test_the_example_of_the_module_passes() -> None:
    doc = inspect.getdoc(memory) or ""
    lines = doc[doc.index("    import bytewax") : doc.index("The faults of a broker")]
    names: dict[str, Callable[[], None]] = {}

    exec(textwrap.dedent(lines), names)
    tests = [name for name in names if name.startswith("test_")]
    assert tests == ["test_an_order_that_is_too_large_is_a_dead_letter"]
    names[tests[0]]()

from collections.abc import Callable
from functools import partial
from itertools import count

import pytest

from tests.support.streams import remake_stream

_numbers = count(1)


@pytest.fixture
def names() -> Callable[[], str]:
    """Names for streams that no other test uses."""
    return lambda: f"S{next(_numbers)}"


@pytest.fixture(params=[False, True], ids=["one by one", "whole flights"])
def whole(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Every promise of a module that uses this is one of both ways: of streams that take whole
    flights or not.
    """
    monkeypatch.setattr(
        request.module, "make_stream", partial(remake_stream, allow_batched=request.param)
    )
    return bool(request.param)

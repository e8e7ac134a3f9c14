from collections.abc import Callable
from itertools import count

import pytest

_numbers = count(1)


@pytest.fixture
def names() -> Callable[[], str]:
    """Names for streams that no other test uses."""
    return lambda: f"S{next(_numbers)}"

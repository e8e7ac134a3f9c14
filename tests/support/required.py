"""What a test needs beyond pip: found, or the test is skipped; in CI it fails."""

import os
from typing import NoReturn

import pytest

__all__ = ["missing"]


def missing(reason: str) -> NoReturn:
    """Skip the test, or fail it where everything must be there (`REQUIRE_BROKERS=1`).

    :arg reason: What is missing, and how to get it.
    """
    if os.environ.get("REQUIRE_BROKERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Given


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    """Sets variables of ours, such as `servers=…` or `kafka_brokers=…`; nothing else is set."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper().startswith("BYTEWAX_JETSTREAM_"):
            monkeypatch.delenv(name)

    def give(**settings: Any) -> None:
        for name, value in settings.items():
            text = json.dumps(value) if isinstance(value, list) else str(value)
            monkeypatch.setenv(f"BYTEWAX_JETSTREAM_{name.upper()}", text)

    return give

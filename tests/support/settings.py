"""Settings written to each source they are read from, and what a refusal says."""

from pathlib import Path
from typing import Any

import pytest
from pydantic_settings import BaseSettings

__all__ = ["CANARY", "PREFIX", "dotenv", "refusal", "secrets"]

CANARY = "canary-4f1d"
"""A secret that nothing may show."""
PREFIX = "BYTEWAX_JETSTREAM_"


def dotenv(*lines: str) -> None:
    """Write `.env` in the current directory."""
    Path(".env").write_text("\n".join(lines) + "\n")


def secrets(monkeypatch: pytest.MonkeyPatch, **files: str) -> Path:
    """Write a directory of secrets, and name it in the environment; returns it."""
    directory = Path("secrets").absolute()
    directory.mkdir(exist_ok=True)
    for name, value in files.items():
        (directory / name).write_text(value + "\n")
    monkeypatch.setenv(PREFIX + "SECRETS_DIR", str(directory))
    return directory


def refusal(of: type[BaseSettings], **fields: Any) -> str:
    """Why settings are refused."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # pydantic's is one, and so is ours
        of(**fields)
    return str(caught.value)

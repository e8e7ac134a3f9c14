"""Where settings come from: arguments, then environment variables, `.env`, a secrets directory.

Names begin with `BYTEWAX_JETSTREAM_`, those of the pool with `BYTEWAX_JETSTREAM_POOL_`, those of
Kafka with `BYTEWAX_JETSTREAM_KAFKA_`. A name with this prefix that no settings class knows is an
error, because a misspelt deadline must not silently become the default. Other keys in `.env` are
ignored. Secrets are `SecretStr` and never printed.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import BeforeValidator, Field
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

__all__ = ["PREFIX", "Count", "Seconds", "Settings", "StreamStrategy", "Words"]

PREFIX = "BYTEWAX_JETSTREAM_"
SECRETS_DIR = PREFIX + "SECRETS_DIR"


def _split(value: object) -> object:
    """Split `a,b` into two words, because NATS servers are commonly written like that."""
    return (
        tuple(word.strip() for word in value.split(",") if word.strip())
        if isinstance(value, str)
        else value
    )


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
StreamStrategy = Literal["create", "create_or_update", "validate", "skip"]


class Settings(BaseSettings):
    """What all settings classes share: their sources, and the check for misspelt names."""

    model_config = SettingsConfigDict(
        env_file=".env",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then variables, then `.env`, then the secrets directory."""
        secrets = _checked_secrets_dir(cls.model_config.get("env_file"))
        if secrets is not None:
            file_secret_settings = SecretsSettingsSource(settings_cls, secrets_dir=secrets)
        # Keys of other classes and programs in `.env` would be "extra" to this class, so only its
        # own keys are read.
        own = _OwnKeys(settings_cls, dotenv_settings)
        return init_settings, env_settings, own, file_secret_settings


class _OwnKeys(PydanticBaseSettingsSource):
    """The fields of one class from a `.env` file that many programs share."""

    def __init__(
        self, settings_cls: type[BaseSettings], source: PydanticBaseSettingsSource
    ) -> None:
        super().__init__(settings_cls)
        self._source = source

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self._source.get_field_value(field, field_name)

    def __call__(self) -> dict[str, Any]:
        fields = self.settings_cls.model_fields
        return {name: value for name, value in self._source().items() if name in fields}


def _checked_secrets_dir(env_file: Any) -> Path | None:
    """Check every name with our prefix, in all sources; returns the secrets directory, if any.

    :raises ValueError: when a name is unknown, or the secrets directory does not exist.
    """
    known = {SECRETS_DIR} | {
        (str(cls.model_config.get("env_prefix")) + field).upper()
        for cls in Settings.__subclasses__()
        for field in cls.model_fields
    }
    written = {**(dotenv_values(env_file) if env_file else {}), **os.environ}
    named = next(
        (value for name, value in written.items() if name.upper() == SECRETS_DIR and value), None
    )
    secrets = Path(named).expanduser() if named else None
    if secrets is not None and not secrets.is_dir():
        raise ValueError(
            f"{SECRETS_DIR} is {secrets}, which is not a directory: create it, or correct the path"
        )
    names = (
        [*written, *(file.name for file in secrets.iterdir())]
        if secrets is not None
        else list(written)
    )
    unknown = sorted(
        name for name in names if name.upper().startswith(PREFIX) and name.upper() not in known
    )
    if unknown:
        raise ValueError(
            f"unknown setting {', '.join(unknown)}: correct the name or remove it; the known "
            f"settings are {', '.join(sorted(known))}"
        )
    return secrets

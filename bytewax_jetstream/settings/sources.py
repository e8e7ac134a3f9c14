"""Where settings come from: arguments, then environment variables, `.env`, a secrets directory.

Names begin with `BYTEWAX_JETSTREAM_`, those of the pool with `BYTEWAX_JETSTREAM_POOL_`, those of
Kafka with `BYTEWAX_JETSTREAM_KAFKA_`. A name with this prefix that no settings class knows is an
error, because a misspelt deadline must not silently become the default. Other keys in `.env` are
ignored, and so are the variables that Kubernetes sets for a Service of such a name. Secrets are
`SecretStr` and never printed.

A value ends before its line end, as `echo secret > file` writes one; blanks stay. A variable or a
file that is empty or blank counts as not there, and an optional field of that value as not given:
templates write `TOKEN=""` for "no token".
"""

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from dotenv import dotenv_values
from pydantic import BeforeValidator, Field, PrivateAttr, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
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
            file_secret_settings = _SecretFiles(settings_cls, secrets_dir=secrets)
        for source in (env_settings, dotenv_settings):
            # A blank variable must not hide a value of the next source, nor be read as JSON.
            assert isinstance(source, EnvSettingsSource)
            source.env_vars = {
                name: value for name, value in source.env_vars.items() if not _is_blank(value)
            }
        # Keys of other classes and programs in `.env` would be "extra" to this class, so only its
        # own keys are read.
        own = _OwnKeys(settings_cls, dotenv_settings)
        return init_settings, env_settings, own, file_secret_settings

    _files: dict[str, Path] = PrivateAttr(default_factory=dict)
    """Fields whose values are those of files in the secrets directory."""

    def model_post_init(self, context: Any) -> None:
        """Remember which values came from files, so that they can be read again."""
        self._files = {
            field: path
            for field, path in _secret_files(type(self)).items()
            if _read_secret(path) == _revealed(getattr(self, field))
        }

    def renewed(self) -> Self:
        """The same settings, with the secrets that are in the secrets directory by now: they may
        have been replaced while the process runs. What cannot be read stays as it was.
        """
        read = {field: _read_secret(path) for field, path in self._files.items()}
        changed = {
            field: SecretStr(text) if isinstance(getattr(self, field), SecretStr) else text
            for field, text in read.items()
            if text and text != _revealed(getattr(self, field))
        }
        return self.model_copy(update=changed) if changed else self

    @model_validator(mode="before")
    @classmethod
    def _without_line_ends(cls, values: Any) -> Any:
        """Take line ends off all values, and leave out optional ones that are empty."""
        if not isinstance(values, Mapping):
            return values
        cut = {name: _without_line_end(value) for name, value in values.items()}
        optional = {name for name, field in cls.model_fields.items() if field.default is None}
        return {
            name: value
            for name, value in cut.items()
            if name not in optional or _revealed(value) != ""
        }


def _secret_files(cls: type[Settings]) -> dict[str, Path]:
    """The files in the secrets directory that have a text for a field of this class."""
    env_file: Any = cls.model_config.get("env_file")
    written = {**(dotenv_values(env_file) if env_file else {}), **os.environ}
    named = next((value for name, value in written.items() if name.upper() == SECRETS_DIR), None)
    if named is None or _is_blank(named):
        return {}
    folder = Path(_without_line_end(named)).expanduser()
    try:
        files = {file.name.upper(): file for file in folder.iterdir()}
    except OSError:
        return {}
    prefix = str(cls.model_config.get("env_prefix")).upper()
    texts = [
        name
        for name, field in cls.model_fields.items()
        if field.annotation in (str, str | None, SecretStr, SecretStr | None)
    ]
    return {name: files[path] for name in texts if (path := prefix + name.upper()) in files}


def _read_secret(path: Path) -> str | None:
    """What is in such a file; None if it cannot be read."""
    try:
        return str(_without_line_end(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _is_blank(value: str | None) -> bool:
    return value is None or not value.strip()


def _revealed(value: object) -> object:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _without_line_end(value: Any) -> Any:
    if type(value) in (tuple, list):
        return tuple(map(_without_line_end, value))
    text = _revealed(value)
    if not isinstance(text, str) or not text.endswith(("\r", "\n")):
        return value
    cut = text.rstrip("\r\n")
    return SecretStr(cut) if isinstance(value, SecretStr) else cut


class _SecretFiles(SecretsSettingsSource):
    """A directory of secrets, each file as it is: pydantic would strip a password's own blanks."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        value, key, is_complex = super().get_field_value(field, field_name)
        if not value:  # not there, or blank
            return None, key, is_complex
        (directory,) = self.secrets_paths
        names = [name for _, name, _ in self._extract_field_info(field, field_name)]
        found = (self.find_case_path(directory, name, self.case_sensitive) for name in names)
        path = next(path for path in found if path is not None)
        return path.read_text(encoding="utf-8"), key, is_complex


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
        (
            value
            for name, value in written.items()
            if name.upper() == SECRETS_DIR and value and not _is_blank(value)
        ),
        None,
    )
    secrets = Path(_without_line_end(named)).expanduser() if named else None
    if secrets is not None and not secrets.is_dir():
        raise ValueError(
            f"{SECRETS_DIR} is {secrets}, which is not a directory: create it, or correct the path"
        )
    names = (
        [*written, *(file.name for file in secrets.iterdir())]
        if secrets is not None
        else list(written)
    )
    ours = {name for name in names if name.upper().startswith(PREFIX)}
    services = _service_variables({name.upper(): value for name, value in written.items()})
    unknown = sorted(name for name in ours if name.upper() not in known | services)
    if unknown:
        alike = get_close_matches(unknown[0].upper(), known, n=1)
        like = f" (the nearest is {alike[0]})" if alike else ""
        raise ValueError(
            f"unknown setting {', '.join(unknown)}{like}: correct the name or remove it"
        )
    return secrets


SERVICE_URL = re.compile(r"(tcp|udp|sctp)://\S+:\d+").fullmatch
SERVICE_NAME = re.compile(
    r"SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?"
).fullmatch


def _service_variables(variables: Mapping[str, str | None]) -> set[str]:
    """The variables that Kubernetes sets in every container of a namespace for a Service whose name
    begins with ours, such as `bytewax-jetstream` or `bytewax-jetstream-nats`.

    A Service has `<NAME>_PORT` with a URL, which no setting has, and `<NAME>_SERVICE_HOST`; alone,
    any of these names is a misspelt setting.
    """
    bases = [
        name.removesuffix("PORT")
        for name, value in variables.items()
        if name.startswith(PREFIX) and name.endswith("_PORT") and SERVICE_URL(value or "")
    ]
    return {
        name
        for base in bases
        if f"{base}SERVICE_HOST" in variables
        for name in variables
        if name.startswith(base) and SERVICE_NAME(name.removeprefix(base))
    }

"""`settings_error`: wrong settings in one sentence, by the names of their variables."""

import os
import re
import types
from collections.abc import Iterable
from typing import Any, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsError

from ..settings import KafkaTopicSettings, StreamSettings

__all__ = ["is_of_settings", "settings_error"]

FOLLOWS = "default_factory_not_called"
"""The default of a field follows from another, which is wrong."""
FIELD = re.compile(r'field "([^"]+)"').search


def is_of_settings(error: ValidationError) -> bool:
    """Whether it is about settings, and not about a model of the flow, such as a message's."""
    fields = {str(each["loc"][0]) for each in error.errors() if each["loc"]}
    parts = (StreamSettings.__name__, KafkaTopicSettings.__name__)
    return error.title in parts or _class_of(error.title, fields) is not None


def settings_error(error: ValidationError | SettingsError) -> str:
    """What is wrong with the settings, and which variable to set or correct; no value is shown,
    because it may be a secret.
    """
    if isinstance(error, SettingsError):
        return _not_json(error)
    fields = {str(each["loc"][0]) for each in error.errors() if each["loc"]}
    cls = _class_of(error.title, fields)
    return "; ".join(
        _one(cls, each["loc"], each["type"], each["msg"])
        for each in error.errors(include_url=False, include_input=False)
        if each["type"] != FOLLOWS
    )


def _one(cls: type[BaseSettings] | None, loc: tuple[int | str, ...], kind: str, text: str) -> str:
    text = text.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if not loc:
        return text  # a check of several fields, which says what to do
    name = _variable(cls, loc)
    if kind == "missing":
        return f"{name} is missing: set it"
    if kind == "extra_forbidden":
        return f"{name} is not a setting: correct the name or remove it"
    if kind == "value_error":
        return f"{name}: {text}"  # a check of our own, which says what to do
    return f"{name} cannot be used ({text[:1].lower()}{text[1:]}): correct it"


def _variable(cls: type[BaseSettings] | None, loc: tuple[int | str, ...]) -> str:
    """The variable of a field; for example `BYTEWAX_JETSTREAM_STREAMS, 0, name` of an item."""
    field, *inner = loc
    if cls is not None and inner:
        nested = _settings_class(cls.model_fields[str(field)].annotation)
        if nested is not None:
            return _variable(nested, tuple(inner))
    prefix = str(cls.model_config.get("env_prefix", "")) if cls is not None else ""
    return ", ".join([f"{prefix}{field}".upper(), *map(str, inner)])


def _not_json(error: SettingsError) -> str:
    """A variable whose value should be JSON, and is not."""
    found = FIELD(str(error))
    field = found[1] if found else ""
    names = [
        name
        for cls in _subclasses(BaseSettings)
        if field in cls.model_fields
        and (name := f"{cls.model_config.get('env_prefix', '')}{field}".upper()) in os.environ
    ]
    name = names[0] if names else field.upper() or "a setting"
    return f'{name} is not valid JSON: correct it, as in \'[{{"name": "ORDERS"}}]\' for a list'


def _class_of(title: str, fields: set[str]) -> type[BaseSettings] | None:
    """The class of that name, which has these fields: two modules may have a `Settings` each."""
    named = [cls for cls in _subclasses(BaseSettings) if cls.__name__ == title]
    fitting = [cls for cls in named if fields <= cls.model_fields.keys()]
    return next(iter(fitting or named), None)


def _settings_class(annotation: Any) -> type[BaseSettings] | None:
    if get_origin(annotation) in (Union, types.UnionType):
        return next(filter(None, map(_settings_class, get_args(annotation))), None)
    is_one = isinstance(annotation, type) and issubclass(annotation, BaseSettings)
    return annotation if is_one else None


def _subclasses(cls: type[BaseSettings]) -> Iterable[type[BaseSettings]]:
    for each in cls.__subclasses__():
        yield each
        yield from _subclasses(each)

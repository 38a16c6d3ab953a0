"""Reading the entries of a published `config.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from evspec_ros.errors import CheckpointError

Number = TypeVar("Number", int, float)


def number(config: Mapping[str, Any], name: str, default: Number) -> Number:
    """Entry `name` as the type of `default`, which stands in where the entry is absent or null.

    Raises CheckpointError where it is something else.
    """
    value = config.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, type(default))):
        raise CheckpointError(
            f"The entry {name} of config.json is {value!r} instead of one number; "
            "restore config.json from the model's publisher."
        )
    return type(default)(value)


def whole_numbers(config: Mapping[str, Any], name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """Entry `name`, which is one whole number or a list of them; `default` where it is absent or null.

    Raises CheckpointError where it is something else.
    """
    value = config.get(name)
    if value is None:
        return default
    found = value if isinstance(value, list) else [value]
    if not all(type(one) is int for one in found):
        raise CheckpointError(
            f"The entry {name} of a checkpoint's config is {value!r} instead of a whole number or a list of "
            "them; restore the file from the model's publisher."
        )
    return tuple(found)


def section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The nested object `name`; raises CheckpointError where it is absent or no object."""
    value = config.get(name)
    if not isinstance(value, Mapping):
        raise CheckpointError(
            f"config.json has no section {name}; restore config.json from the model's publisher."
        )
    return value


def refuse_other(architecture: str, **entries: tuple[Any, Any]) -> None:
    """Raise CheckpointError for every entry (found, implemented) whose two values differ."""
    others = [f"{name}={found!r}" for name, (found, implemented) in entries.items() if found != implemented]
    if others:
        raise CheckpointError(
            f"The config asks for {', '.join(others)}, which the {architecture} here does not implement; "
            "use a checkpoint of the published architecture."
        )


_OF_A_HEAD: Mapping[str, tuple[Callable[[Any], bool], str]] = {  # by how a dataclass writes its types
    "int": (lambda value: type(value) is int and value >= 0, "a whole number of at least 0"),
    "float": (lambda value: type(value) in (int, float) and value > 0, "a number above 0"),
    "str": (lambda value: type(value) is str, "a text"),
    "bool": (lambda value: type(value) is bool, "true or false"),
    "tuple[int, ...]": (
        lambda value: isinstance(value, list | tuple) and all(type(one) is int for one in value),
        "a list of whole numbers",
    ),
}


def entries(kind: type[Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a draft head's `config.json` that a dataclass has as fields; CheckpointError without
    one, and for one of another type.
    """
    found = {}
    for field in fields(kind):
        if field.name not in config:
            raise CheckpointError(
                f"The draft head's config has no entry {field.name!r}; complete it or train the head again."
            )
        value = found[field.name] = config[field.name]
        allowed, wanted = _OF_A_HEAD[str(field.type)]
        if not allowed(value):
            raise CheckpointError(
                f"The entry {field.name} of the draft head's config is {value!r} instead of {wanted}; "
                "restore it or train the head again."
            )
    return found

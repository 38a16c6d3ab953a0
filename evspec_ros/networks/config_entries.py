"""Reading the entries of a published `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
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


def entries(kind: type[Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a draft head's `config.json` that a dataclass has as fields; CheckpointError without
    one.
    """
    try:
        return {field.name: config[field.name] for field in fields(kind)}
    except KeyError as error:
        raise CheckpointError(
            f"The draft head's config has no entry {error}; complete it or train the head again."
        ) from error

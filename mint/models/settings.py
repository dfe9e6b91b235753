"""Reading the settings of ``config.json`` into dataclasses."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, TypeVar

from mint.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


def read_settings(cls: type[Settings], raw: dict, kind: str, /, **derived) -> Settings:
    """An instance of the dataclass ``cls`` from the entries of ``raw`` that are its fields, lists as tuples.

    Fields that ``raw`` lacks keep their defaults. derived: fields that the caller computed. Raises InputError for a
    field without a default that is missing.
    """
    values = {f.name: raw[f.name] for f in fields(cls) if f.name in raw} | derived
    missing = [f.name for f in fields(cls) if f.name not in values and f.default is f.default_factory is MISSING]
    if missing:
        raise InputError(f"config.json of a {kind} model lacks {missing[0]!r}")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def check_choice(kind: str, name: str, value: object, known: Collection) -> None:
    """Raises InputError unless ``value`` is one of ``known``."""
    if value not in known:
        raise InputError(f"{kind}: {name} {value!r} is not supported; known are {', '.join(map(str, known))}")


def check_heads(kind: str, width: int, heads: int) -> None:
    """Raises InputError unless the heads divide the width."""
    if width % heads:
        raise InputError(f"{kind}: {heads} heads do not divide a width of {width}")

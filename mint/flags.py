"""Settings of a command: a dataclass, filled from its defaults, a TOML file and the command line, in that order.

A field is declared once, with :func:`option`; the flag, its help and the check of the TOML file follow from it.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Sequence
from pathlib import Path

from mint.cli import Parser
from mint.errors import InputError
from mint.files import read_toml
from mint.ranges import shown

Setting = bool | int | float | str
GROUPS = ("data", "model", "adapter", "loss", "optimisation", "hardware", "output")


def option(group: str, default, help: str, choices: Sequence[str] | None = None, metavar: str | None = None):
    """A dataclass field that is also a flag, in a group of ``--help``; a dictionary has a flag that may be repeated."""
    metadata = {"group": group, "help": help, "choices": choices, "metavar": metavar}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@functools.cache
def loss_settings() -> dict[str, dict[str, Setting]]:
    """The name of every registered loss, and its settings with their defaults.

    Read from the signatures in the source files, since importing the losses imports PyTorch, which takes seconds.
    """
    found: dict[str, dict[str, Setting]] = {}
    for file in (Path(__file__).parent / "losses").glob("*.py"):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        for function in (node for node in body if isinstance(node, ast.FunctionDef)):
            for call in function.decorator_list:
                if isinstance(call, ast.Call) and getattr(call.func, "id", None) == "register":
                    fixed = {keyword.arg for keyword in call.keywords}
                    defaults = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
                    values = {a.arg: d.value for a, d in defaults if isinstance(d, ast.Constant) and a.arg not in fixed}
                    settings = {name: value for name, value in values.items() if isinstance(value, Setting)}
                    found[ast.literal_eval(call.args[0])] = settings
    return dict(sorted(found.items()))


class _Switch(argparse.BooleanOptionalAction):
    """``--flag`` and ``--no-flag``, and where there are choices ``--flag CHOICE``."""

    def __init__(self, option_strings, dest, choices=None, **settings):
        super().__init__(option_strings, dest, **settings)
        if choices:
            self.nargs, self.choices = "?", choices

    def __call__(self, parser, namespace, values, option_string=None):
        if not values:
            super().__call__(parser, namespace, values, option_string)
        elif option_string.startswith("--no-"):
            parser.error(f"{option_string} takes no value")
        else:
            setattr(namespace, self.dest, values)


def parse(config_class: type, argv: Sequence[str] | None, description: str):
    """An instance of ``config_class`` from flags and, with ``--config FILE``, a TOML file; flags win.

    Raises InputError for a file that cannot be read, keys that are no setting and values of the wrong type.
    """
    parser = Parser(
        usage="%(prog)s [options]", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.ranges = None  # settings come from a file too: ``check`` of the dataclass
    groups = {name: parser.add_argument_group(name, _describe_losses() if name == "loss" else None) for name in GROUPS}
    groups["data"].add_argument("--config", metavar="FILE", help="TOML file with any of these settings; flags win")
    kinds = {name: _kind(hint) for name, hint in typing.get_type_hints(config_class).items() if name.islower()}
    for field in dataclasses.fields(config_class):
        kind, shape = kinds[field.name], {name: field.metadata[name] for name in ("choices", "metavar")}
        text = field.metadata["help"].replace("%", "%%")
        if field.default is not None and kind not in (bool, dict):
            text += f" (default {field.default})"
        if kind is bool:
            shape = {"action": _Switch, "choices": shape["choices"]}
        elif kind is dict:
            shape |= {"action": "append"}
        else:
            shape |= {"type": kind}
        groups[field.metadata["group"]].add_argument(
            flag_of(field.name, kind), dest=field.name, default=argparse.SUPPRESS, help=text, **shape
        )
    given = vars(parser.parse_args(argv))
    path = given.pop("config", None)
    values = _read_toml(path, config_class, kinds) if path else {}
    named = values.get("loss")
    if named and given.get("loss", named) != named:
        values.pop("loss_args", None)  # they belong to the loss that the file names
    for name in [name for name in given if kinds[name] is dict]:
        given[name] = values.get(name, {}) | _assignments(flag_of(name, dict), given[name])
    config = config_class(**{**values, **given})
    config.check()
    return config


def flag_of(name: str, kind: type = str) -> str:
    return f"--{(name.removesuffix('s') if kind is dict else name).replace('_', '-')}"


def _describe_losses() -> str:
    """A line for every loss: its settings and their defaults."""
    lines = [
        f"  {name:<9} " + (", ".join(f"{key} {value}" for key, value in settings.items()) or "no settings")
        for name, settings in loss_settings().items()
    ]
    return "settings of each loss, with defaults; given as --NAME or --loss-arg NAME=VALUE:\n" + "\n".join(lines)


def _assignments(flag: str, texts: Sequence[str]) -> dict:
    """{name: value} from NAME=VALUE: a number, true or false, or else a string. Raises InputError for another form."""
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"{flag} takes NAME=VALUE, as tau=2, not {text!r}")
        if name in values:
            raise InputError(f"{flag} {name} is given twice")
        try:
            values[name] = value == "true" if value in ("true", "false") else ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            values[name] = value
    return values


def _kind(hint) -> type:
    """The plain type of an annotation such as ``int | None``."""
    if isinstance(hint, types.UnionType):
        return next(part for part in hint.__args__ if part is not types.NoneType)
    return typing.get_origin(hint) or hint


def _read_toml(path: str, config_class: type, kinds: dict[str, type]) -> dict:
    try:
        values = read_toml(path)
    except InputError as error:
        raise InputError(f"--config {error}") from None
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    if isinstance(values.get("loss"), dict):  # a table: the loss's name, and its settings
        settings = values.pop("loss")
        values |= {"loss": settings.pop("name")} if "name" in settings else {}
        values["loss_args"] = settings
    for name, value in values.items():
        if name not in fields:
            raise InputError(f"{path}: {name!r} is not a setting; see --help for the names")
        if kinds[name] is float and type(value) is int:
            values[name] = value = float(value) if abs(value) < 2**1000 else math.inf
        choices = fields[name].metadata["choices"]
        plain = type(value) is kinds[name] and (not choices or kinds[name] is bool)
        if not plain and (not choices or value not in choices):
            wanted = f"one of {', '.join(choices)}" if choices else f"of type {kinds[name].__name__}"
            wanted += ", true or false" if choices and kinds[name] is bool else ""
            raise InputError(f"{path}: {name} must be {wanted}, not {shown(value)}")
    return values


def to_toml(config) -> str:
    """The settings as TOML, one line each; settings that are None are left out. A loss with settings is a table."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    values = {name: value for name, value in values.items() if value is not None}
    settings = values.pop("loss_args", {})
    if settings:
        values["loss"] = {"name": values["loss"], **settings}
    return "".join(f"{name} = {_toml_value(value)}\n" for name, value in values.items())


def _toml_value(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in escaped) + '"'
    if isinstance(value, dict):
        keys = {name: name if name.isascii() else _toml_value(name) for name in value}  # identifiers
        return "{" + ", ".join(f"{keys[name]} = {_toml_value(item)}" for name, item in value.items()) + "}"
    return repr(value)

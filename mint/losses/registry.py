"""Loads a loss by name: a registered one, or a function from a Python file."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from mint.errors import InputError
from mint.losses.interface import LOSSES, PRESETS, STATISTICS, LossOutput, Needs

LARGEST = 1e300  # absolute value of a setting
Setting = bool | int | float | str
NOUNS = {bool: "true or false", str: "a string", int: "an integer", float: "a number"}


@dataclass(frozen=True)
class Loss:
    """A loss function, what it needs, and its settings."""

    name: str
    function: Callable[..., LossOutput]
    needs: Needs
    options: dict[str, Setting]

    def __call__(self, **inputs) -> LossOutput:
        """inputs: the statistics and fields in ``needs``."""
        return self.function(**inputs, **self.options)

    def takes(self, name: str) -> bool:
        """Whether the function has a parameter of this name."""
        return name in inspect.signature(self.function).parameters

    def requires(self, name: str) -> bool:
        """Whether the function has a parameter of this name without a default."""
        return self.takes(name) and inspect.signature(self.function).parameters[name].default is inspect.Parameter.empty


def loss_names() -> list[str]:
    """The values of ``--loss`` other than files."""
    return sorted([*LOSSES, *PRESETS])


def load_loss(name: str, options: dict[str, Setting] | None = None) -> Loss:
    """The loss called ``name`` (one of ``loss_names``, or ``path/to/file.py:function``) with its settings.

    A custom function declares what it needs with :func:`mint.losses.needs`; without it, it receives ``chosen`` and
    ``rejected`` with ``logps`` and ``mask``. Every other parameter is a setting; its value must match its annotation or
    the type of its default. Raises InputError for an unknown name; a file or function that does not exist or cannot be
    imported; an unknown or missing setting, or one of the wrong type; and parameters that do not match the needs.
    """
    function, preset = PRESETS.get(name, (LOSSES.get(name), {}))
    function = function or from_file(name)
    if getattr(function, "__qualname__", "") == "needs.<locals>.mark":
        raise InputError(f"the loss {name!r} is decorated with @needs: write @needs()")
    wants, by_settings = getattr(function, "needs", Needs()), getattr(function, "needs_by_settings", None)
    parameters = dict(inspect.signature(function).parameters)
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not anything:
        _check_inputs(name, wants, set(named))
    settings = {n: p for n, p in named.items() if n not in STATISTICS and n not in wants.fields}
    accepted = [option for option in settings if option not in preset]
    hints = _hints(function)
    given = dict(preset)
    for option, value in (options or {}).items():
        if option not in accepted and not (anything and option not in named):
            raise InputError(f"the loss {name!r} has no setting {option!r}; it takes: {', '.join(accepted) or 'none'}")
        given[option] = _fit(f"{option} of the loss {name!r}", value, hints.get(option), settings.get(option))
    empty = inspect.Parameter.empty
    if missing := [n for n, p in settings.items() if p.default is empty and n not in given]:
        advice = " ".join(f"--loss-arg {n}=VALUE" for n in missing)
        raise InputError(
            f"the loss {name!r} needs a value for {', '.join(missing)}: give {advice}; or, if the records hold it, "
            f"add @needs(fields=({missing[0]!r},))"
        )
    if by_settings is not None:
        try:
            wants = replace(wants, **by_settings(**{**{n: p.default for n, p in settings.items()}, **given}))
        except Exception as error:
            what = describe(error, name.rpartition(":")[0])
            raise InputError(f"the loss {name!r}: the function given to @needs fails: {what}") from error
    return Loss(name, function, wants, given)


def _check_inputs(name: str, wants: Needs, parameters: set[str]) -> None:
    """Raises InputError unless the parameters are the statistics and fields that the loss needs."""
    advice = {
        "rejected": ("rejected=False", "rejected=True"),
        "prompt": ("prompt=False", "prompt=True"),
        "corrupted_chosen": ("corrupted_chosen=False", "corrupted_image=True, corrupted_chosen=True"),
        "corrupted_rejected": ("corrupted_rejected=False", "corrupted_image=True, corrupted_rejected=True"),
    }
    for field in wants.fields:
        if field in STATISTICS:
            raise InputError(f"the loss {name!r} asks for a field {field!r}, which is the name of a statistic")
        if field not in parameters:
            raise InputError(f"the loss {name!r} asks for the field {field!r} and has no parameter of that name")
    for statistic in STATISTICS:
        asked, taken = statistic in wants.statistics, statistic in parameters
        if asked and not taken:
            instead = f", or add @needs({advice[statistic][0]})" if statistic in advice else ""
            raise InputError(f"the loss {name!r} has no parameter {statistic!r}: add it{instead}")
        if taken and not asked:
            missing = advice[statistic][1]
            raise InputError(f"the loss {name!r} takes {statistic!r} and does not ask for it: add @needs({missing})")


def _hints(function: Callable) -> dict:
    try:
        return typing.get_type_hints(function)
    except Exception:  # an annotation that only a type checker can resolve
        return {}


def _fit(what: str, value: Setting, hint, parameter: inspect.Parameter | None) -> Setting:
    """``value`` converted to the type of the annotation, or of the default. Raises InputError if it does not match."""
    if hint is None and parameter is not None and isinstance(parameter.default, (bool, int, float, str)):
        hint = type(parameter.default)
        hint = int | float if hint is int else hint  # a default of 1 does not exclude 0.5
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    words = []
    for kind in kinds:
        if typing.get_origin(kind) is typing.Literal:
            if value in typing.get_args(kind):
                return value
            words.append("one of " + ", ".join(map(str, typing.get_args(kind))))
        elif kind in (bool, str) and isinstance(value, kind):
            return value
        elif kind in (int, float) and isinstance(value, int) and abs(value) > LARGEST:
            words.append(f"at most {LARGEST:g} in size")
        elif kind is int and not isinstance(value, (bool, str)) and float(value).is_integer():
            return int(value)
        elif kind is float and not isinstance(value, (bool, str)):
            return float(value)
        elif kind in NOUNS:
            words.append(NOUNS[kind])
        elif kind is not types.NoneType:
            return value  # an annotation that is not checked
    raise InputError(f"{what} must be {' or '.join(words)}, not {value!r}")


def from_file(name: str, kind: str = "loss") -> Callable:
    """The function or class that FILE.py:NAME names. kind: what it is, in errors.

    Raises InputError for a file that cannot be imported or does not have it.
    """
    path, colon, attribute = name.rpartition(":")
    if not colon:
        raise InputError(f"unknown loss {name!r}: use one of {', '.join(loss_names())}, or FILE.py:FUNCTION")
    if not Path(path).is_file():
        raise InputError(f"the {kind} file {path} does not exist")
    function = getattr(_import_file(path, kind), attribute, None)
    if not callable(function):
        raise InputError(f"{path} has no {'function' if kind == 'loss' else 'class'} {attribute!r}")
    return function


def _import_file(path: str, kind: str) -> types.ModuleType:
    """The module in a file, imported anew at every call, so that its global variables have their first values."""
    module_name = f"custom_{kind}_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file; a custom {kind} is given as FILE.py:NAME")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # where dataclasses look up the annotations of their fields
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the file may call sys.exit
        del sys.modules[module_name]
        raise InputError(f"the {kind} file {path} cannot be imported: {describe(error, path)}") from error
    return module


def describe(error: BaseException, path: str) -> str:
    """The error in one line, with the line of ``path`` that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == Path(path).resolve()]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{where}"

"""From the name on the command line to a loss: a built-in one, or a function from a file of the user's."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from mint.errors import InputError
from mint.losses.base import LossOutput, Needs
from mint.losses.cpo import cpo_loss
from mint.losses.dpo import dpo_loss
from mint.losses.fire import fire_loss
from mint.losses.mdpo import mdpo_loss
from mint.losses.orpo import orpo_loss
from mint.losses.rrpo import rrpo_loss
from mint.losses.sft import sft_loss
from mint.losses.simpo import simpo_loss

LOSSES: dict[str, Callable[..., LossOutput]] = {
    "orpo": orpo_loss,
    "dpo": dpo_loss,
    "sft": sft_loss,
    "rrpo": rrpo_loss,
    "fire": fire_loss,
    "simpo": simpo_loss,
    "cpo": cpo_loss,
    "mdpo": mdpo_loss,
}
PRESETS = {"mask-dpo": ("fire", {"alpha": 0.0, "gamma": 0.0})}  # name -> a loss, and its settings
STATISTICS = ("chosen", "rejected", "corrupted_chosen", "corrupted_rejected", "prompt")


@dataclass(frozen=True)
class Loss:
    """A loss function, what it needs, and the settings it is called with."""

    name: str
    function: Callable[..., LossOutput]
    needs: Needs
    options: dict[str, float | str]

    def __call__(self, **statistics) -> LossOutput:
        return self.function(**statistics, **self.options)


def load_loss(name: str, options: dict[str, float | str] | None = None) -> Loss:
    """The loss called ``name`` (a key of ``LOSSES`` or ``PRESETS``, or ``path/to/file.py:function``) with its settings.

    A function of the user's says what it needs with :func:`mint.losses.needs`; without it, it receives ``chosen``
    and ``rejected`` with ``logps`` and ``mask``. Raises InputError for an unknown name, a file or function that does
    not exist, or a setting the loss does not take.
    """
    base, preset = PRESETS.get(name, (name, {}))
    function = LOSSES[base] if base in LOSSES else _from_file(base)
    defaults = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.name not in STATISTICS}
    accepted = [option for option in defaults if option not in preset]
    for option in options or {}:
        if option not in accepted:
            known = ", ".join(accepted) or "none"
            raise InputError(f"the loss {name!r} has no setting {option!r}; it takes: {known}")
    options = {**preset, **(options or {})}
    wants, by_settings = getattr(function, "needs", Needs()), getattr(function, "needs_by_settings", None)
    if by_settings is not None:
        wants = replace(wants, **by_settings(**{**defaults, **options}))
    return Loss(name, function, wants, options)


def _from_file(name: str) -> Callable[..., LossOutput]:
    path, colon, attribute = name.rpartition(":")
    if not colon:
        raise InputError(f"unknown loss {name!r}: use one of {', '.join([*LOSSES, *PRESETS])}, or FILE.py:FUNCTION")
    if not Path(path).is_file():
        raise InputError(f"the loss file {path} does not exist")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file; a custom loss is given as FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(f"{path} has no function {attribute!r}")
    return function

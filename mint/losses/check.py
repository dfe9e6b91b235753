"""Checks a loss on small made-up statistics, to find its errors before a model is loaded."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from mint.errors import InputError
from mint.losses.interface import AnswerStats, LossOutput, Needs
from mint.losses.registry import Loss, describe
from mint.losses.testing import answer_stats

# log pi of the tokens of two pairs. The sides differ in length, as in training.
LOGPS = {
    "chosen": [[-0.5, -1.0, -0.2], [-0.7, -0.3]],
    "rejected": [[-1.5, -0.4, -2.0, -0.6], [-1.1]],
    "prompt": [[-0.9, -1.3], [-0.8]],
    "corrupted_chosen": [[-0.8, -1.1, -0.4], []],  # the second pair has no corrupted image
    "corrupted_rejected": [[-1.2, -0.5, -1.9, -0.3], []],
}
# Keys of the training log that a loss cannot set.
RESERVED = {"loss", "step", "lr", "grad_norm", "tokens", "pairs", "epoch", "step_seconds", "skipped"}
REQUESTS = {
    "ref_logps": "@needs(reference=True)",
    "kl_forward": "@needs(reference=True, kl_forward=True)",
    "kl_reverse": "@needs(reference=True, kl_reverse=True)",
    "span": "@needs(spans=True)",
}


class _Watched(AnswerStats):
    """Statistics that record reads of absent ones."""

    def __getattribute__(self, name: str):
        value = super().__getattribute__(name)
        if value is None and name in REQUESTS:
            self.__dict__.setdefault("absent", []).append(name)
        return value


def check_loss(loss: Loss, prompt: bool = False) -> None:
    """Calls ``loss`` with the statistics that it needs and no others.

    prompt: whether the run provides the prompt's tokens. Raises InputError if the function fails, uses a statistic that
    it does not need, or does not return a LossOutput with a finite scalar loss that requires a gradient.
    """
    for marked in (True, False) if loss.needs.spans else (False,):
        sides = _made_up(loss.needs, marked)
        if not prompt:
            sides.pop("prompt", None)
        fields = {name: torch.tensor([1.0, 0.5]) for name in loss.needs.fields}
        try:
            output = loss(**sides, **fields)
        except InputError:
            raise
        except Exception as error:
            raise InputError(_explain(loss, sides, error)) from error
        for name, side in sides.items():
            if "span" in side.__dict__.get("absent", []) and not loss.needs.spans:
                raise InputError(f"the loss {loss.name!r} reads the span of {name}: add {REQUESTS['span']}")
        _check_output(loss.name, output)


def _made_up(wants: Needs, marked: bool) -> dict[str, AnswerStats]:
    """The sides that the loss needs. marked: with spans; otherwise ``span`` is None, as in a batch without spans."""
    sides: dict[str, AnswerStats] = {}
    for name in wants.statistics:
        rows = LOGPS[name]
        kl = [[0.05] * len(row) for row in rows] if name == "chosen" else None
        side = answer_stats(
            rows,
            ref_logps=[[logp - 0.1 for logp in row] for row in rows] if wants.reference else None,
            span=[[place == 0 for place in range(len(row))] for row in rows] if marked else None,
            kl_forward=kl if wants.kl_forward else None,
            kl_reverse=kl if wants.kl_reverse else None,
            dtype=torch.float32,
        )
        sides[name] = _Watched(**{field.name: getattr(side, field.name) for field in dataclasses.fields(side)})
    return sides


def _explain(loss: Loss, sides: dict[str, AnswerStats], error: Exception) -> str:
    for name, side in sides.items():
        for statistic in reversed(side.__dict__.get("absent", [])):
            if statistic.startswith("kl") and name != "chosen":
                return f"the loss {loss.name!r} reads {name}.{statistic}: a KL is computed on the chosen answer only"
            if statistic == "span" and loss.needs.spans:
                return (
                    f"the loss {loss.name!r} fails where no answer of a batch marks a span: {name}.span is None there; "
                    "read span_or_all instead"
                )
            return (
                f"the loss {loss.name!r} reads {name}.{statistic}, which it did not ask for: add {REQUESTS[statistic]}"
            )
    advice = "; prompt is None without --nll-over sequence" if loss.needs.prompt and "prompt" not in sides else ""
    what = describe(error, loss.name.rpartition(":")[0])
    return f"the loss {loss.name!r} fails on two made-up pairs: {what}{advice}"


def _check_output(name: str, output) -> None:
    if not isinstance(output, LossOutput):
        raise InputError(f"the loss {name!r} must return a LossOutput(loss, metrics), not {_kind(output)}")
    value = output.loss
    if not isinstance(value, Tensor) or value.dim() != 0:
        raise InputError(f"the loss {name!r} must return a scalar tensor, not {_kind(value)}; take its mean()")
    if not value.requires_grad:
        raise InputError(f"the loss {name!r} returns a loss without a gradient: it depends on no log-probability or KL")
    if not math.isfinite(value.item()):
        raise InputError(f"the loss {name!r} is {value.item()} on two made-up pairs of log-probabilities in [-2, -0.2]")
    if not isinstance(output.metrics, dict):
        raise InputError(f"the loss {name!r}: metrics must be a dict, not {_kind(output.metrics)}")
    for key, metric in output.metrics.items():
        if key in RESERVED or not isinstance(key, str) or key.startswith("eval/"):
            raise InputError(f"the loss {name!r}: a metric cannot be called {key!r}: the training log uses it")
        if isinstance(metric, bool) or not (
            isinstance(metric, (int, float)) or isinstance(metric, Tensor) and metric.numel() == 1
        ):
            raise InputError(f"the loss {name!r}: the metric {key!r} must be a number, not {_kind(metric)}")


def _kind(value) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"

"""The demos: small models and synthetic data, for ``train.py`` without a model and data of the user's."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from mint.config import TrainConfig
from mint.errors import InputError


def run_demo(config: TrainConfig, train: Callable) -> None:
    """Runs ``--demo``, by default the one that fits the loss; mistakes are reported before anything is built.

    train: what trains on settings (:func:`train.train`). Raises InputError for settings that the demo cannot use.
    """
    from mint.demo.tiny_model import base_config
    from mint.models.checkpoint import build_model
    from mint.models.lora import find_targets
    from mint.training.run_directory import check_run
    from mint.training.setup import choose_loss

    loss = choose_loss(config)
    name = config.demo or ("radiograph" if loss.needs.corrupted_image else "disease")
    demo = importlib.import_module(f"mint.demo.{name}_demo")
    check_run(config)
    if config.best and name != "disease" and not config.eval_data:
        raise InputError(f"--best needs --eval-data: the {name} demo has no evaluation pairs of its own")
    if config.lora_targets and not config.full:
        find_targets(build_model(base_config("demo", vision=demo.VISION), name), config.lora_targets)
    demo.run(config, train)

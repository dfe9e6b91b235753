"""Linear probes of an image tower: what a linear classifier of its features can tell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mint.data.image_features import ImageReader
from mint.models.llama import CausalLM

PENALTY = 1e-3  # of the squared weights, per standardised feature
BATCH = 64


@torch.no_grad()
def tower_features(model: CausalLM, reader: ImageReader, files: Sequence[str]) -> Tensor:
    """[N, patches * width]: the tower's features of images, as the projector receives them."""
    parts = []
    for start in range(0, len(files), BATCH):
        images = model.encode_images(reader(files[start : start + BATCH]))
        assert images is not None
        found = images["features"]
        parts.append((found[images["order"]] if "order" in images else found).flatten(1).float())
    return torch.cat(parts)


def probe(features: Tensor, labels: Tensor, unseen: Tensor, truth: Tensor) -> Tensor:
    """[N] bool: whether a softmax regression fitted to ``features`` [M, D] tells the classes of ``unseen`` [N, D].

    labels [M], truth [N]: classes from 0. Features are standardised; the weights have an L2 penalty.
    """
    mean, scale = features.mean(0), features.std(0).clamp_min(1e-6)
    x, z = (features - mean) / scale, (unseen - mean) / scale
    weight = nn.Parameter(torch.zeros(int(labels.max()) + 1, x.shape[1]))
    bias = nn.Parameter(torch.zeros(len(weight)))
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(x @ weight.T + bias, labels) + PENALTY * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return (z @ weight.T + bias).argmax(1) == truth

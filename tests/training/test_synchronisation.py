"""A training step waits for its device at most twice: to read the metrics, and the norm of the gradients.

The device is ``meta``, whose tensors have no values: an operation whose result depends on values cannot run there, as
it makes the host wait on CUDA. The reads that a step may do are counted and answered with ones.
"""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
from mint.config import TrainConfig
from mint.data.batch import EncodedPair
from mint.losses import load_loss
from mint.models import init_model
from mint.models.lora import add_lora
from mint.optim import clip_gradients, make_optimizer
from mint.training.forward import Forward
from tests.reference.weights import TINY_LLAMA

aten = torch.ops.aten
BY_VALUE = (aten.nonzero, aten.masked_select, aten.unique_consecutive, aten._unique2, aten.equal)
TRANSFERS = (aten._to_copy, aten.copy_)
ON = torch.device("meta")


class Waits(TorchDispatchMode):
    """Counts reads of the device, and transfers to it that wait. Raises AssertionError for an indexing by mask, and an
    operation whose output has a size that depends on values.
    """

    def __init__(self):
        super().__init__()
        self.reads, self.transfers = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, packet = kwargs or {}, func._overloadpacket
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_device = [x for x in tensors if x.device == ON]
        if not on_device and kwargs.get("device") != ON:
            return func(*args, **kwargs)
        masks = packet in (aten.index, aten.index_put, aten.index_put_) and [x for x in args[1] if x is not None]
        assert packet not in BY_VALUE and not any(x.dtype == torch.bool or x.device != ON for x in masks or ()), func
        if packet is aten._local_scalar_dense:
            self.reads += 1
            return torch.ones((), dtype=args[0].dtype).item()
        if packet in TRANSFERS:
            to = args[0].device if packet is aten.copy_ else kwargs.get("device") or args[0].device
            source = args[1] if packet is aten.copy_ else args[0]
            if to != ON:
                self.reads += 1
                return torch.ones_like(source, device="cpu")
            waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
            self.transfers += source.device != ON and waits
        return func(*args, **kwargs)


def make_step(model, loss, pairs, images=None, **shape):
    """An optimiser step of two micro-batches on the meta device, as the training loop does it."""
    model.attention_backend = "dense"
    forward = Forward(model.to(ON), loss, len(pairs) // 2, shape=shape, images=images)
    with pytest.MonkeyPatch.context() as patch:
        adamw = torch.optim.AdamW
        patch.setattr(torch.optim, "AdamW", lambda groups, **given: adamw(groups, **given | {"fused": False}))
        optimizer = make_optimizer(model, TrainConfig())
    optimizer_step = torch.no_grad()(lambda: optimizer.step())

    def step():
        train.accumulate_gradients(forward, forward.collate(pairs))
        float(clip_gradients(model, 1.0))
        optimizer_step()
        optimizer.zero_grad()

    return step


def count_waits(step):
    """Of the second step; the first one transfers what then stays on the device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # the device has none
        for _ in range(2):
            with Waits() as waits:
                step()
    return waits


def pairs_of(count):
    marks = [True, False, True]
    return [EncodedPair(str(n), [1] * (5 + n), [2, 3, 4], [5, 6, 7], marks, marks) for n in range(count)]


@pytest.mark.parametrize("loss, shape", [("orpo", {}), ("dpo", {"row_lengths": (32,)}), ("fire", {})])
def test_a_step_on_text_waits_twice(loss, shape):
    model = add_lora(init_model(TINY_LLAMA), 4, 8)
    waits = count_waits(make_step(model, load_loss(loss), pairs_of(4), **shape))
    assert (waits.reads, waits.transfers) == (2, 0)


def test_what_waits_is_found():
    """Each of these makes the host wait on CUDA."""
    x, host = torch.ones(3, device=ON), torch.ones(3)
    for act in (lambda: x.item() if x.dim() == 0 else x.sum().item(), lambda: x.cpu(), lambda: x.tolist()):
        with Waits() as waits:
            act()
        assert waits.reads == 1
    with Waits() as waits:
        host.to(ON), torch.empty(3, device=ON).copy_(host)
        assert waits.transfers == 2
    for act in (lambda: x[x > 0], lambda: x.nonzero(), lambda: x[torch.tensor([1])], lambda: x.masked_select(x > 0)):
        with Waits(), pytest.raises(AssertionError):
            act()

"""A training step waits for its device once: to read the metrics and the norm of the gradients.

The device is ``meta``, whose tensors have no values: an operation whose result depends on values cannot run there, as
it makes the host wait on CUDA. The reads that a step may do are counted and answered with ones.
"""

import contextlib
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
from mint.data.batch import EncodedPair, collate
from mint.losses import load_loss
from mint.models import init_model
from mint.models.lora import add_lora
from mint.training.forward import Forward
from tests.models import test_llava, test_mllama, test_qwen_vl
from tests.reference import llava_inputs
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


def make_step(model, loss, pairs, size, images=None, **shape):
    """An optimiser step in micro-batches of ``size`` pairs on the meta device, as the training loop does it."""
    model.attention_backend = "dense"
    forward = Forward(model.to(ON), loss, size, shape=shape, images=images)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.1)  # AdamW's fused kernel does not exist on this device

    def step():
        train.accumulate_gradients(forward, forward.collate(pairs), 1.0)
        optimizer.step()
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


@pytest.mark.parametrize(
    "loss, shape", [("orpo", {}), ("dpo", {"rows": 1, "multiple": 32, "budget": 32}), ("fire", {})]
)
def test_a_step_on_text_waits_once(loss, shape):
    model = add_lora(init_model(TINY_LLAMA), 4, 8)
    waits = count_waits(make_step(model, load_loss(loss), pairs_of(4), 2, **shape))
    assert (waits.reads, waits.transfers) == (1, 0)


class Reader:
    """Reads the images of ``seen`` as ``ImageReader`` does: their features if the vision encoder is frozen."""

    def __init__(self, model, seen):
        self.model, self.seen, self.kept = model, seen, {}

    def holds(self, files):
        return True

    def __call__(self, files):
        if files not in self.kept:
            images = self.seen(files)
            if self.model.vision_is_frozen:
                images = {n: x for n, x in self.model.encode_images(images).items() if n != "pixel_values"}
            self.kept[files] = images
        return self.kept[files]


def llava_pairs():
    return [EncodedPair("a", [1, *[llava_inputs.IMAGE] * llava_inputs.PATCHES, 5, 6], [2], [3], images=("a",))]


def llava_seen(files):
    return {"pixel_values": llava_inputs.pixels()[:1], "order": torch.zeros(len(files), dtype=torch.int64)}


def mllama_seen(files):
    distinct = list(dict.fromkeys(files))
    pictures = [test_mllama.PICTURES[file] for file in distinct]
    tensors = {name: torch.cat([picture[name] for picture in pictures]) for name in pictures[0]}
    return {**tensors, "order": torch.tensor([distinct.index(file) for file in files])}


FAMILIES = {
    "llava": (lambda: test_llava.build(llava_inputs.TINY), llava_pairs, llava_seen),
    "mllama": (lambda: init_model(test_mllama.TINY), test_mllama.pairs, mllama_seen),
    "qwen_vl": (lambda: test_qwen_vl.build("qwen_vl"), test_qwen_vl.pairs, test_qwen_vl.seen),
    "qwen3_vl": (lambda: test_qwen_vl.build("qwen3_vl"), test_qwen_vl.pairs, test_qwen_vl.seen),
}


@pytest.mark.parametrize(
    "family, full", [("llava", False), ("mllama", False), ("mllama", True), ("qwen_vl", True), ("qwen3_vl", False)]
)
def test_a_step_on_images_waits_once(family, full):
    """FiRe-MPO, with corrupted twins and a text pair; the vision encoder is frozen, or trained too."""
    build, pairs, seen = FAMILIES[family]
    model = build()
    model = model.requires_grad_(True) if full else add_lora(model, 4, 8, targets="gate_proj")
    assert full != model.vision_is_frozen
    marked = [replace(p, chosen_span=[True] * len(p.chosen), rejected_span=[True] * len(p.rejected)) for p in pairs()]
    with_twins = [replace(pair, twin=pair) if pair.images else pair for pair in marked]
    reader = Reader(model, seen)
    reader(collate(with_twins).image_files)  # encoded once a run
    waits = count_waits(make_step(model, load_loss("fire"), with_twins, 9, reader))
    assert (waits.reads, waits.transfers) == (1, 0)


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

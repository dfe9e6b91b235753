"""Memory and operations of one training step, traced on fake tensors: shapes without values, on any machine.

The parameters and all that is computed from them are fake (``FakeTensorMode``). The integer tensors of a batch are
real, since packing, masks and image grids depend on their values. For CUDA the fake tensors are on the CPU too, and say
that they are on CUDA: PyTorch builds for the CPU have no autograd for CUDA tensors, not even for fake ones.

PyTorch's ``MemTracker`` allows one call of a module per step, and here a layer is called for every micro-batch and
again for the reference. The hooks of its ``FlopCounterMode`` keep recomputed activations acounter. So a mode of our own
counts live storages, and operations by PyTorch's formulas.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import varlen  # noqa: F401 (its operations are in the registry then)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mint.data.batch import EncodedPair
from mint.losses import logprobs
from mint.losses.logprobs import HALVES
from mint.models.llama import CausalLM
from mint.models.lora import lora_layers
from mint.optim import clip_gradients
from mint.training.forward import Forward

aten = torch.ops.aten
WEIGHTS, ADAPTER, REFERENCE = "weights", "adapter", "reference"
GRADIENTS, OPTIMIZER, ACTIVATIONS, HEAD = "gradients", "optimizer state", "activations", "LM head"
KINDS = (WEIGHTS, ADAPTER, REFERENCE, GRADIENTS, OPTIMIZER, ACTIVATIONS, HEAD)


@dataclass(frozen=True)
class StepTrace:
    """Bytes of live tensors by kind (``KINDS``), and operations of matrix products and attention.

    peak: at the moment of the largest sum. highest: of each kind, at its own moment. ``LM head`` is what
    ``mint.losses.logprobs`` computes, ``activations`` everything else that a step makes.
    """

    peak: dict[str, int]
    highest: dict[str, int]
    flops: int

    @property
    def total(self) -> int:
        """Bytes of all live tensors at the peak."""
        return sum(self.peak.values())


class Fakes:
    """Makes fake tensors that can be combined with each other and with real ones."""

    def __init__(self):
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    def like(self, tensor: Tensor) -> Tensor:
        """A fake tensor of the shape and dtype of ``tensor``, on the CPU, without memory."""
        with self._mode:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")

    def floats(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """``tensors`` with fake ones in the place of those that hold floating-point numbers."""
        return {name: self.like(tensor) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}

    def fill(self, model: nn.Module) -> None:
        """Replaces the parameters, buffers and reference adapters of a model on the meta device, in place."""
        made: dict[int, nn.Parameter] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    fake = made.setdefault(id(parameter), nn.Parameter(self.like(parameter), parameter.requires_grad))
                    module._parameters[name] = fake
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else self.like(buffer)
        for layer in lora_layers(model).values():
            layer.start = layer.start and (self.like(layer.start[0]), self.like(layer.start[1]))


def _attention(query: Tensor, key: Tensor, *_, **__) -> int:
    batch, heads, queries, width = query.shape
    return 4 * batch * heads * queries * key.shape[2] * width  # two products


def _attention_backward(grad: Tensor, query: Tensor, key: Tensor, *_, **__) -> int:
    return _attention(query, key) * 5 // 2


OPERATIONS = flop_registry | {  # of an operator: from its arguments and its result (``out_val``)
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class StepCounter(TorchDispatchMode):
    """Counts operations, and the bytes of live tensors by kind: of those given to ``add`` and those made inside."""

    def __init__(self):
        super().__init__()
        self.flops = 0
        self.now = dict.fromkeys(KINDS, 0)
        self.peak, self.highest = dict(self.now), dict(self.now)
        self._live: dict[int, tuple[weakref.ref, int, str]] = {}  # of each storage: reference, bytes, kind

    def add(self, tensors: Iterable[Tensor | None], kind: str, again: bool = False) -> None:
        """Counts the storages of ``tensors`` as ``kind``. again: also those that are counted as another kind."""
        for tensor in tensors:
            if tensor is None:
                continue
            storage = tensor.untyped_storage()
            key = id(storage)
            if key in self._live:
                if not again:
                    continue
                self._drop(key)
            size = storage.nbytes()
            self._live[key] = weakref.ref(storage, functools.partial(self._drop, key)), size, kind
            self.now[kind] += size
            self.highest[kind] = max(self.highest[kind], self.now[kind])
        if sum(self.now.values()) > sum(self.peak.values()):
            self.peak = dict(self.now)

    def _drop(self, key: int, _: weakref.ref | None = None) -> None:
        _, size, kind = self._live.pop(key)
        self.now[kind] -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if (formula := OPERATIONS.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **kwargs, out_val=made)
        self.add((x for x in tree_leaves(made) if isinstance(x, Tensor)), HEAD if _in_head() else ACTIVATIONS)
        return made


def _in_head() -> bool:
    """Whether a function of ``mint.losses.logprobs`` is being called."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename != logprobs.__file__:
        frame = frame.f_back
    return frame is not None


class _KnownIndices(TorchDispatchMode):
    """Lets fake tensors be indexed by real masks, be read as the number 1, which only logs depend on, and be equal to
    others, as the embeddings of absent tiles are in published checkpoints of Llama 3.2 Vision.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return torch.ones((), dtype=args[0].dtype).item()
        if func is aten.equal.default and isinstance(args[0], FakeTensor):
            return True
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            if isinstance(args[0], FakeTensor):
                args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
        return func(*args, **(kwargs or {}))


def _places(index: Tensor | None) -> Sequence[Tensor | None]:
    """The indices that a mask stands for."""
    if index is None or index.dtype != torch.bool or isinstance(index, FakeTensor):
        return [index]
    return index.nonzero(as_tuple=True)


@contextlib.contextmanager
def _as_cuda(dtype: torch.dtype | None) -> Iterator[None]:
    """Every tensor says that it is on CUDA. dtype: autocast there is enabled, with this dtype."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    Tensor.is_cuda = True  # of the class, before the property that it inherits
    if dtype is not None:
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        del Tensor.is_cuda
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


def trace_step(
    forward: Forward, pairs: Sequence[EncodedPair], optimizer: torch.optim.Optimizer, max_norm: float, cuda: bool
) -> StepTrace:
    """The memory and operations of an optimiser step on ``pairs``, not the first one: the optimiser has its state.

    forward: with fake models (:class:`Fakes`). cuda: as on a CUDA device, with FlashAttention for half precision; the
    layers are not compiled.
    """
    model, counter = forward.model, StepCounter()
    with contextlib.ExitStack() as stack:
        if cuda:
            for network in (model, forward.frozen):
                if isinstance(network, CausalLM):
                    dtype = forward.autocast or network.head_weight.dtype
                    network.attention_backend = "flash" if dtype in HALVES else "split"
            stack.enter_context(_as_cuda(forward.autocast))
        stack.enter_context(_KnownIndices())
        for p in (p for p in model.parameters() if p.requires_grad):  # a first step, which makes the state
            p.grad = torch.empty_like(p)
            p.register_post_accumulate_grad_hook(lambda p: counter.add([p.grad], GRADIENTS, again=True))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for batch, _, _ in forward.micro_batches(pairs):
            if forward.images is not None and batch.image_files:
                forward.images(batch.image_files)  # features of a frozen encoder are computed once a run
        _add_held(counter, forward, optimizer)
        stack.enter_context(counter)
        for batch, tokens, share in forward.micro_batches(pairs):
            output = forward(batch, tokens)
            (output.loss * share).backward()
        clip_gradients(model, max_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return StepTrace(counter.peak, counter.highest, counter.flops)


def _add_held(counter: StepCounter, forward: Forward, optimizer: torch.optim.Optimizer) -> None:
    """Counts what is held between steps."""
    layers = lora_layers(forward.model).values()
    counter.add((x for layer in layers for x in (layer.lora_A.weight, layer.lora_B.weight)), ADAPTER)
    counter.add((x for layer in layers for x in layer.start or ()), REFERENCE)
    counter.add(forward.model.parameters(), WEIGHTS)
    counter.add(forward.model.buffers(), WEIGHTS)
    counter.add(forward.frozen.parameters() if forward.frozen is not None else (), REFERENCE)
    counter.add((x for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor)), OPTIMIZER)

"""``--shard``: FSDP2 keeps a part of the weights in every process and gathers each layer when it is computed.

Below an adapter the decoder is sharded. The adapter, and an image encoder with its projector, are whole in every
process: they are small beside it, and gradients of the adapter are summed as without ``--shard``. With ``--full`` all
weights are sharded, and FSDP2 sums their gradients. Files hold whole tensors in either case.

The LM head, the embedding, the final norm and whatever else is sharded form the root group, which is gathered by
``hidden_states`` and stays so until the backward pass has ended: the loss, which multiplies by the head after
``hidden_states``, finds it whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from mint import parallel
from mint.hub import MODEL_FILES, resolve_dir
from mint.models.checkpoint import build_model, placed_tensors, stored_tensors
from mint.models.llama import CausalLM, DecoderLayer
from mint.models.lora import init_lora, keep_as_reference, lora_layers, restore_adapter


def shard_and_load(model: CausalLM, name: str, adapter: str | None, device: torch.device, seed: int) -> None:
    """Shards a model on the meta device over all processes, and reads its weights, in place.

    Every process reads its own rows of each sharded tensor; none holds the whole decoder. name: directory or hub id.
    adapter: the directory of the adapter to continue from; without one an adapter is drawn from ``seed``, as in one
    process. Raises InputError as ``load_model`` does.
    """
    shard(model, device)
    model.to_empty(device=device)
    load_parts(model, name)
    if adapter is None:
        torch.manual_seed(seed)
        for layer in lora_layers(model).values():
            for part in (layer.lora_A, layer.lora_B):
                nn.Linear(part.in_features, part.out_features, bias=False)  # the constructor's draw, as in one process
            init_lora(layer)
    else:
        restore_adapter(model, adapter)
        keep_as_reference(model)


def shard(model: CausalLM, device: torch.device) -> None:
    """Shards a model over all processes: a group for each layer of the decoder, one for the rest."""
    mesh = init_device_mesh(device.type, (parallel.size(),))
    whole = _whole(model)
    for layer in model.decoder.layers:
        if isinstance(layer, DecoderLayer):  # a text has no images to attend to: such a layer is not always called
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    fully_shard(model, mesh=mesh, ignored_params=whole)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # gradients are summed: a loss has its share of the step already
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "hidden_states")


def _whole(model: CausalLM) -> set[nn.Parameter]:
    """The parameters that every process keeps whole: of a model with an adapter, all outside its frozen decoder."""
    layers = lora_layers(model).values()
    if not layers:
        return set()
    adapter = {id(p) for layer in layers for p in (layer.lora_A.weight, layer.lora_B.weight)}
    decoder = {id(p) for part in (model.decoder, getattr(model, "lm_head", model.decoder)) for p in part.parameters()}
    return {p for p in model.parameters() if id(p) in adapter or id(p) not in decoder}


@torch.no_grad()
def load_parts(model: CausalLM, name: str) -> None:
    """Reads the weights of a directory or hub repository into ``model``: of sharded ones this process's rows.

    The files are mapped into memory, so only these rows are read.
    """
    if isinstance(model, FSDPModule):
        model.reshard()  # after an evaluation the root group is whole
    targets: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    plain = build_model(model.config.raw, name)  # without an adapter
    for key, tensor in placed_tensors(plain, stored_tensors(resolve_dir(name, MODEL_FILES), name), name):
        copy_rows(targets[key], tensor)


def copy_rows(target: Tensor, tensor: Tensor) -> None:
    """Copies ``tensor`` to ``target``; to a sharded one only this process's rows, the parts of ``torch.chunk``."""
    if not isinstance(target, DTensor):
        target.copy_(tensor)
        return
    local = target.to_local()
    first = parallel.rank() * -(-len(tensor) // parallel.size())
    local.copy_(tensor[first : first + len(local)])


def gather_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Whole tensors on the CPU in the first process, {} in the others; all of them call this. Other values stay."""
    found: dict[str, Any] = {}
    for name, value in tensors.items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if parallel.is_main():
            found[name] = whole.detach().cpu() if isinstance(whole, Tensor) else whole
    return found


def gather_moments(optimizer: torch.optim.Optimizer) -> dict:
    """``optimizer.state_dict()`` with the whole tensors of :func:`gather_tensors`."""
    saved = optimizer.state_dict()
    return {**saved, "state": {index: gather_tensors(values) for index, values in saved["state"].items()}}


@torch.no_grad()
def part_moments(optimizer: torch.optim.Optimizer, saved: dict) -> dict:
    """A ``state_dict`` of whole tensors with this process's rows of those whose parameters are sharded."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict] = {}
    for index, values in saved["state"].items():
        state[index] = dict(values)
        for name, value in values.items():
            if isinstance(parameters[index], DTensor) and value.shape == parameters[index].shape:
                state[index][name] = torch.empty_like(parameters[index])
                copy_rows(state[index][name], value)
    return {**saved, "state": state}

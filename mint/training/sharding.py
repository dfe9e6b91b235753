"""``--shard``: FSDP2 keeps a part of the frozen weights in every process and gathers each layer when it is computed.

The adapter, and an image encoder with its projector, are whole in every process: they are small beside the decoder, and
gradients of the adapter are summed as without ``--shard``. The LM head, the embedding and the final norm form the root
group, which is gathered by ``hidden_states`` and stays so until the backward pass has ended: the loss, which multiplies
by the head after ``hidden_states``, finds it whole.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from mint import parallel
from mint.hub import MODEL_FILES, resolve_dir
from mint.models.checkpoint import build_model, placed_tensors, stored_tensors
from mint.models.llama import CausalLM, DecoderLayer
from mint.models.lora import init_lora, keep_as_reference, lora_layers, restore_adapter


def shard_and_load(model: CausalLM, name: str, adapter: str | None, device: torch.device, seed: int) -> None:
    """Shards a model with an adapter on the meta device over all processes, and reads its weights, in place.

    Every process reads its own rows of each tensor; none holds the whole decoder. name: directory or hub id. adapter:
    the directory of the adapter to continue from; without one it is drawn from ``seed``, as in one process. Raises
    InputError as ``load_model`` does.
    """
    shard(model, device)
    model.to_empty(device=device)
    load_parts(model, name)
    if adapter is None:
        torch.manual_seed(seed)
        for layer in lora_layers(model).values():
            for part in (layer.lora_A, layer.lora_B):
                part.reset_parameters()  # as their constructors do: the same random numbers follow
            init_lora(layer)
    else:
        restore_adapter(model, adapter)
        keep_as_reference(model)


def shard(model: CausalLM, device: torch.device) -> None:
    """Shards the decoder and the LM head over all processes: a group for each layer, one for the rest."""
    mesh = init_device_mesh(device.type, (parallel.size(),))
    decoder = {id(p) for part in (model.decoder, getattr(model, "lm_head", model.decoder)) for p in part.parameters()}
    adapter = {id(p) for layer in lora_layers(model).values() for p in (layer.lora_A.weight, layer.lora_B.weight)}
    whole = {p for p in model.parameters() if id(p) in adapter or id(p) not in decoder}
    for layer in model.decoder.layers:
        if isinstance(layer, DecoderLayer):  # a text has no images to attend to: such a layer is not always called
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    fully_shard(model, mesh=mesh, ignored_params=whole)
    register_fsdp_forward_method(model, "hidden_states")


@torch.no_grad()
def load_parts(model: CausalLM, name: str) -> None:
    """Reads the weights of a directory or hub repository into ``model``: of sharded ones this process's rows.

    The files are mapped into memory, so only these rows are read.
    """
    targets: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    plain = build_model(model.config.raw, name)  # without an adapter
    for key, tensor in placed_tensors(plain, stored_tensors(resolve_dir(name, MODEL_FILES), name), name):
        copy_rows(targets[key], tensor)


def copy_rows(target: Tensor | nn.Parameter, tensor: Tensor) -> None:
    """Copies ``tensor`` to ``target``; to a sharded one only this process's rows, the parts of ``torch.chunk``."""
    if not isinstance(target, DTensor):
        target.copy_(tensor)
        return
    local = target.to_local()
    first = parallel.rank() * -(-len(tensor) // parallel.size())
    local.copy_(tensor[first : first + len(local)])

"""LoRA: low-rank adapters on linear layers (Hu et al., arXiv 2106.09685), in PEFT's file layout.

    y = W x + s * B A x,    A [r, in], B [out, r],    s = alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732)

A :class:`LoRALinear` keeps ``weight`` and ``bias`` of the ``nn.Linear`` it replaces and adds two small layers, so
parameters keep the checkpoint's names and adapters have PEFT's. Each layer can compute as the
policy (A, B as they are), or as the reference: the network that training started from, which is W alone for a fresh
adapter and W with the loaded A, B where training continues from one.

Legend: T tokens, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mint.errors import InputError
from mint.models.adapter_files import (
    named_layers,
    pattern_value,
    read_adapter_config,
    read_factors,
    some,
    write_adapter,
)
from mint.models.names import current_name

ALL_LINEAR = "all-linear"
Model = TypeVar("Model", bound=nn.Module)


class LoRALinear(nn.Linear):
    """A frozen linear layer with a trainable low-rank update in float32.

    ``as_reference`` switches the forward pass to the network training started from. ``merged``: the update
    is part of ``weight``.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, dropout: float = 0.0, rslora: bool = False):
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.product = getattr(linear, "product", F.linear)  # of a quantised weight: its own
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        device, dtype = linear.weight.device, torch.promote_types(linear.weight.dtype, torch.float32)
        drawn_on = device if device.type == "meta" else "cpu"  # a seed gives the same numbers on every device
        self.lora_A = nn.Linear(linear.in_features, rank, bias=False, device=drawn_on, dtype=dtype).to(device)
        self.lora_B = nn.Linear(rank, linear.out_features, bias=False, device=drawn_on, dtype=dtype).to(device)
        self.rank, self.alpha, self.dropout, self.rslora = rank, alpha, dropout, rslora
        self.scaling = alpha / math.sqrt(rank) if rslora else alpha / rank
        self.start: tuple[Tensor, Tensor] | None = None  # A, B of the reference, where it has an adapter
        self.as_reference = False
        self.merged = False
        self.in_place = True  # whether the update is added to the product W x itself, which is then not kept

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """(A, B) as the current role has them; None where the weight alone is the layer."""
        if self.merged:
            return None
        return self.start if self.as_reference else (self.lora_A.weight, self.lora_B.weight)

    @property
    def quantized(self) -> bool:
        """Whether the weight is quantised (``mint.models.quantized``)."""
        return self.product is not F.linear

    def base(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]: the layer without its adapter."""
        return self.product(x, self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        factors = self.factors()
        if factors is None:
            return self.base(x)
        a, b = factors
        if self._folding_is_cheaper(x.numel() // self.in_features):
            return F.linear(x, torch.addmm(self.weight, b, a, alpha=self.scaling), self.bias)
        low = F.linear(F.dropout(x.reshape(-1, self.in_features), self.dropout, self.training), a.to(x.dtype))
        return self._updated(x, low, b)

    def _updated(self, x: Tensor, low: Tensor, b: Tensor) -> Tensor:
        """[..., out]: W x + s B low, for low = A x [T, r]."""
        y = self.base(x.reshape(-1, self.in_features))
        y = (y.addmm_ if self.in_place else y.addmm)(low, b.to(x.dtype).t(), alpha=self.scaling)
        return y.view(*x.shape[:-1], self.out_features)

    def update(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """(s A x [T, r], B [out, r]) for x [T, in], in the factors' dtype; their product is the layer's update of W x.

        None where the weight alone is the layer.
        """
        factors = self.factors()
        if factors is None:
            return None
        a, b = factors
        return self.scaling * F.linear(F.dropout(x, self.dropout, self.training).to(a.dtype), a), b

    def _folding_is_cheaper(self, tokens: int) -> bool:
        """Whether W + s B A, built for this call, takes fewer operations than separate products, backward included.

        Separate products take 6 T r (in + out). Folding takes 2 r in out for the sum, 2 T in out for its gradient and
        4 r in out from there to A and B. Dropout acts between x and A, so it cannot be folded; in half precision the
        sum would round small updates away, and a quantised weight is not a matrix that can be added to.
        """
        if self.quantized or (self.dropout and self.training) or self.weight.dtype in (torch.bfloat16, torch.float16):
            return False
        folded = (2 * tokens + 6 * self.rank) * self.weight.numel()
        return folded < 6 * tokens * self.rank * (self.in_features + self.out_features)

    @torch.no_grad()
    def fold(self) -> None:
        """Adds the update s B A to the weight, computed in float32. Raises InputError for a quantised weight."""
        if self.quantized:
            raise InputError("the weights are quantised: load the model without that, and merge the adapter into it")
        update = self.scaling * (self.lora_B.weight.float() @ self.lora_A.weight.float())
        self.weight.copy_((self.weight.to(update.dtype) + update).to(self.weight.dtype))
        self.merged = True

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, alpha={self.alpha}, merged={self.merged}"


def apply_layers(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """[layer(x) for layer in layers]; while gradients are enabled, all A x are one product, of the A below each other.

    A product with r columns, or over r, leaves a GPU half empty. Without gradients each layer is called by itself:
    decoding would copy the A for every token. Layers that share a product are not called, so hooks on them do not run.
    """
    if not torch.is_grad_enabled() or not all(isinstance(layer, LoRALinear) for layer in layers):
        return [layer(x) for layer in layers]
    adapted = cast(Sequence[LoRALinear], layers)
    factors = [layer.factors() for layer in adapted]
    tokens = x.numel() // x.shape[-1]
    alone = any(layer.dropout and layer.training or layer._folding_is_cheaper(tokens) for layer in adapted)
    if alone or None in factors:
        return [layer(x) for layer in layers]
    a, b = zip(*cast(list[tuple[Tensor, Tensor]], factors), strict=True)
    low = F.linear(x.reshape(tokens, -1), torch.cat([each.to(x.dtype) for each in a]))
    parts = low.split([len(each) for each in a], dim=1)
    return [layer._updated(x, *given) for layer, *given in zip(adapted, parts, b, strict=True)]


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """All adapted layers of ``model`` by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def add_lora(
    model: Model,
    rank: int = 16,
    alpha: float = 32,
    dropout: float = 0.0,
    targets: str | Iterable[str] = ALL_LINEAR,
    rslora: bool = False,
) -> Model:
    """Freezes ``model`` and puts a fresh adapter on its linear layers, in place; returns the model.

    rank: r >= 1. alpha: > 0, see the formula above. dropout: in [0, 1), on the adapter's input while training.
    targets: ``all-linear`` (every linear layer of the decoder but the LM head), or names of layers or modules
    (``q_proj``, ``mlp.up_proj``, ``vision_tower``, ``lm_head``), as a comma-separated string or a list. A starts
    Kaiming-uniform, B at zero, so the adapted model equals the base at first.
    Raises InputError for a value out of range, a target that matches no linear layer, or a model already adapted.
    """
    if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise InputError(
            f"LoRA needs a rank of at least 1, alpha > 0 and dropout in [0, 1), not {rank}, {alpha}, {dropout}"
        )
    names = find_targets(model, targets)
    model.requires_grad_(False)
    for name in names:
        init_lora(_adapt(model, name, rank, alpha, dropout, rslora))
    return model


def init_lora(layer: LoRALinear) -> None:
    """Draws A, the same numbers on every device, and sets B to zero."""
    weight = layer.lora_A.weight
    drawn = torch.empty(weight.shape, dtype=weight.dtype, device="meta" if weight.is_meta else "cpu")
    nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
    with torch.no_grad():
        weight.copy_(drawn)
    nn.init.zeros_(layer.lora_B.weight)


def find_targets(model: nn.Module, targets: str | Iterable[str]) -> list[str]:
    """Names of the linear layers of ``model`` that ``targets`` selects; see :func:`add_lora`.

    Raises InputError for a target that matches no linear layer, or a model already adapted.
    """
    if lora_layers(model):
        raise InputError("the model has an adapter already: merge it first, or continue training it")
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if targets == ALL_LINEAR:
        decoder = getattr(model, "decoder", model)
        inside = next(f"{name}." if name else "" for name, module in model.named_modules() if module is decoder)
        return [name for name in linears if name.startswith(inside) and name.rpartition(".")[2] != "lm_head"]
    wanted = [t.strip() for t in (targets.split(",") if isinstance(targets, str) else targets)]
    chosen: set[str] = set()
    for target in wanted:
        matches = [name for name in linears if f".{target}." in f".{name}."]
        if not matches and target.rpartition(".")[2] == "lm_head" and hasattr(model, "head_weight"):
            raise InputError(
                f"LoRA target {target!r}: the LM head of this model is its embedding matrix (tie_word_embeddings) and "
                "no layer of its own, so no adapter can be put on it; leave it out (all-linear adapts the rest of the "
                "decoder), or train all weights, the shared matrix included, with --full"
            )
        if not target or not matches:
            leaves = sorted({name.rpartition(".")[2] for name in linears})
            raise InputError(f"LoRA target {target!r} matches no linear layer; the model has: {', '.join(leaves)}")
        chosen.update(matches)
    return [name for name in linears if name in chosen]


def _adapt(model: nn.Module, name: str, rank: int, alpha: float, dropout: float, rslora: bool) -> LoRALinear:
    parent = model.get_submodule(name.rpartition(".")[0])
    layer = LoRALinear(cast(nn.Linear, model.get_submodule(name)), rank, alpha, dropout, rslora)
    setattr(parent, name.rpartition(".")[2], layer)
    return layer


def merge_lora(model: Model, drop: bool = False) -> Model:
    """Folds every adapter into its weight (in float32), in place; the model then runs at the base's cost.

    drop: replace the adapted layers by plain linear layers.
    """
    for name, layer in lora_layers(model).items():
        if not layer.merged:
            layer.fold()
        if drop:
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            plain.weight, plain.bias = layer.weight, layer.bias
            setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], plain)
    return model


def settle_lora(model: Model) -> Model:
    """Prepares a loaded adapter for inference, in place; returns the model.

    It is merged into float32 weights. Those in half precision would round a small update away: the factors stay beside
    them, in their dtype, as in training.
    """
    layers = lora_layers(model).values()
    if all(layer.weight.dtype == torch.float32 for layer in layers):
        return merge_lora(model, drop=True)
    for layer in layers:
        layer.lora_A.to(layer.weight.dtype)
        layer.lora_B.to(layer.weight.dtype)
    return model


def keep_as_reference(model: nn.Module) -> None:
    """Makes the current adapters part of the reference, for training that continues from them."""
    for layer in lora_layers(model).values():
        layer.start = (layer.lora_A.weight.detach().clone(), layer.lora_B.weight.detach().clone())


@contextmanager
def reference(model: Model) -> Iterator[Model]:
    """Within it, ``model`` computes as the network that training started from, without dropout."""
    layers, training = lora_layers(model).values(), model.training
    model.eval()
    for layer in layers:
        layer.as_reference = True
    try:
        yield model
    finally:
        for layer in layers:
            layer.as_reference = False
        model.train(training)


def save_adapter(model: nn.Module, folder: str | Path) -> None:
    """Writes ``adapter_model.safetensors`` and ``adapter_config.json`` as PEFT does, atomically.

    Raises InputError if the model has no adapter, or one merged into the weights.
    """
    layers = lora_layers(model)
    if not layers:
        raise InputError("the model has no adapter to save")
    if any(layer.merged for layer in layers.values()):
        raise InputError("the adapter is merged into the weights: save it before merging, or save the model")
    factors = {name: {"lora_A": layer.lora_A.weight, "lora_B": layer.lora_B.weight} for name, layer in layers.items()}
    write_adapter(folder, _peft_config(model, layers), factors)


def target_modules(model: nn.Module) -> list[str]:
    """The adapted layers as PEFT lists them: the last part of a name, or all of it where that is ambiguous."""
    layers = lora_layers(model)
    leaves = sorted({name.rpartition(".")[2] for name in layers})
    covered = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in leaves]  # of whatever kind
    return leaves if len(covered) == len(layers) else sorted(layers)


def _peft_config(model: nn.Module, layers: dict[str, LoRALinear]) -> dict:
    """The settings that differ between adapters; the base is the hub id or folder that the model was loaded from."""
    first = next(iter(layers.values()))
    odd = {name: layer for name, layer in layers.items() if (layer.rank, layer.alpha) != (first.rank, first.alpha)}
    return {
        "base_model_name_or_path": getattr(model, "source_name", None),
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": first.dropout,
        "use_rslora": first.rslora,
        "target_modules": target_modules(model),
        "rank_pattern": {name: layer.rank for name, layer in odd.items()},
        "alpha_pattern": {name: layer.alpha for name, layer in odd.items()},
    }


def load_adapter(model: Model, folder: str | Path) -> Model:
    """Puts the PEFT adapter in ``folder`` on ``model``, in place; returns the model.

    Names of older versions of the model become the present ones, as with weights. Every tensor of the file must find
    its layer and every adapted layer both its tensors. Raises InputError for a missing or unreadable file, unknown or
    unmatched keys, shapes that do not fit, and kinds of adapter other than plain LoRA.
    """
    folder = Path(folder)
    config = read_adapter_config(folder, lambda name: current_name(model, name))
    factors = read_factors(folder, lambda name: current_name(model, name))
    if lora_layers(model):
        raise InputError("the model has an adapter already: merge it before loading another")
    modules = dict(model.named_modules())
    model.requires_grad_(False)
    stray = [name for name in factors if not isinstance(modules.get(name), nn.Linear)]
    half = [name for name, pair in factors.items() if set(pair) != {"lora_A", "lora_B"}]
    linears = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    absent = [name for name in named_layers(config, linears) if name not in factors]
    for problem, names in (
        ("no linear layer called", stray),
        ("lora_A or lora_B missing for", half),
        ("target_modules of adapter_config.json names layers the file has no tensors for:", absent),
    ):
        if names:
            raise InputError(f"the adapter in {folder} does not fit this model: {problem} {some(names)}")
    if not factors:
        raise InputError(f"the adapter in {folder} is empty")
    for name, pair in factors.items():
        rank = pair["lora_A"].shape[0] if pair["lora_A"].dim() else 0
        linear = modules[name]
        if pair["lora_A"].shape != (rank, linear.in_features) or pair["lora_B"].shape != (linear.out_features, rank):
            raise InputError(
                f"{folder}: {name} has shapes {tuple(pair['lora_A'].shape)} and {tuple(pair['lora_B'].shape)}, the "
                f"layer is {linear.out_features} x {linear.in_features}; is this the model the adapter was made for?"
            )
        if rank != pattern_value(config["rank_pattern"], name, config["r"]):
            raise InputError(f"{folder}: {name} has rank {rank}, not the one in adapter_config.json")
        alpha = pattern_value(config["alpha_pattern"], name, config["lora_alpha"])
        dropout, rslora = config.get("lora_dropout") or 0.0, bool(config.get("use_rslora"))
        layer = _adapt(model, name, rank, alpha, dropout, rslora)
        with torch.no_grad():
            layer.lora_A.weight.copy_(pair["lora_A"])
            layer.lora_B.weight.copy_(pair["lora_B"])
    return model


def restore_adapter(model: nn.Module, folder: str | Path) -> None:
    """Loads the tensors of a checkpoint's adapter into the adapter of ``model``.

    Raises InputError if the two do not have the same layers and shapes.
    """
    layers, factors = lora_layers(model), read_factors(Path(folder))
    if set(layers) != set(factors):
        raise InputError(f"the adapter in {folder} covers other layers than this run's: {some(sorted(factors))}")
    for name, layer in layers.items():
        for factor, tensor in factors[name].items():
            weight = getattr(layer, factor).weight
            if weight.shape != tensor.shape:
                raise InputError(
                    f"{folder}: {name}.{factor} is {tuple(tensor.shape)}, this run's {tuple(weight.shape)}"
                )
            weight.data.copy_(tensor)


def adapter_settings(folder: str | Path) -> dict:
    """The settings of the PEFT adapter in ``folder``, under the names that ``TrainConfig`` has for them.

    Raises InputError if the folder holds no plain LoRA adapter.
    """
    config = read_adapter_config(Path(folder))
    rank, alpha, dropout = config["r"], config["lora_alpha"], config.get("lora_dropout") or 0.0
    return {"lora_rank": rank, "lora_alpha": alpha, "lora_dropout": dropout, "rslora": bool(config.get("use_rslora"))}

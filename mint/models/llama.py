"""A Llama-form text decoder: ``llama`` (2, 3, 3.1, 3.2), ``mistral``, ``qwen2`` and ``qwen3`` checkpoints.

Parameter names are the checkpoint's, so loading is a copy by name. Plain choices, one of each: pre-norm with RMSNorm in
float32, rotary positions computed once a forward pass, grouped-query attention (``qwen3`` normalises queries and keys),
SwiGLU.

Legend: B rows, T row length, H width, N heads, K key/value heads, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mint.errors import InputError
from mint.models.attention import Mask, attend, make_mask
from mint.models.cross_attention import CrossAttentionInputs
from mint.models.llama_config import LlamaConfig
from mint.models.lora import LoRALinear, apply_layers
from mint.models.names import PackedBatch, Pretrained
from mint.models.recompute import Recompute, run_layer
from mint.models.rotary import cos_sin, rope_frequencies
from mint.ops.elementwise import rms_norm, rotate, swiglu
from mint.ops.flash_attention import flash_reads
from mint.ops.transfer import upload

RECOMPILE_LIMIT = 64  # of graphs by shape, role of the adapter and mode; PyTorch has 8


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32 at least."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in (torch.bfloat16, torch.float16):
            return self.weight * F.rms_norm(x.float(), self.weight.shape, eps=self.eps).to(x.dtype)
        return rms_norm(x, self.weight, self.eps)


class KeyValueCache:
    """Keys and values of all layers during generation, [B, K, S, D]; each row writes at its own positions.

    used: the slots that are attended to, by default all S.
    """

    def __init__(self, config: LlamaConfig, rows: int, length: int, like: Tensor):
        shape = (rows, config.num_key_value_heads, length, config.head_dim)
        self.layers = [(like.new_zeros(shape), like.new_zeros(shape)) for _ in range(config.num_hidden_layers)]
        self.length = self.used = length
        self.begun = False  # whether it holds a prompt
        self.images: dict[int, tuple[Tensor, Tensor]] = {}  # of the image tiles, by cross-attention layer
        self.vision: CrossAttentionInputs | None = None  # for the tokens after the last ones
        self.shift: Tensor | None = None  # [B, 1]: rotary position minus position

    def update(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Writes k, v [B, K, T, D] at ``positions`` [B, T]; returns all that the layer holds in the slots used."""
        index = positions[:, None, :, None].expand_as(k)
        keys, values = self.layers[layer]
        keys.scatter_(2, index, k)
        values.scatter_(2, index, v)
        return keys[:, :, : self.used], values[:, :, : self.used]

    def extend(self, length: int) -> None:
        """Makes room for ``length`` slots; those in use keep theirs."""
        room = (0, 0, 0, length - self.length)  # after the slots
        self.layers = [(F.pad(keys, room), F.pad(values, room)) for keys, values in self.layers]
        self.length = length

    def keep(self, rows: Tensor) -> None:
        """Keeps only some rows, [N] indices, which take the places 0 to N - 1; one may be taken several times."""
        self.layers = [(keys[rows], values[rows]) for keys, values in self.layers]
        if self.shift is not None:
            self.shift = self.shift[rows]
        if self.vision is not None:
            self.vision = self.vision.of_rows(rows)


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.head_dim, self.layer = config.head_dim, layer
        width, query = config.hidden_size, config.num_attention_heads * config.head_dim
        key = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, query, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, key, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, key, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query, width, bias=config.o_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, N, T, D], and keys and values [B, K, T, D], the first two rotated by their positions."""
        heads = (*x.shape[:2], -1, self.head_dim)
        projected = apply_layers((self.q_proj, self.k_proj, self.v_proj), x)
        q, k, v = (y.view(heads).transpose(1, 2) for y in projected)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, *rope), rotate(k, *rope), v

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Mask, cache: KeyValueCache | None, positions: Tensor | None
    ) -> Tensor:
        q, k, v = self.project(x, rope)
        if cache is not None and positions is not None:
            k, v = cache.update(self.layer, k, v, positions)
        return self.o_proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, inner: int, bias: bool = False):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(*apply_layers((self.gate_proj, self.up_proj), x)))


class DecoderLayer(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Mask = None,
        cache: KeyValueCache | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache, positions)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """The part under ``model.`` in a checkpoint: embedding, layers, final norm.

    layers: by default those of a Llama. extra_tokens: rows of the embedding after the vocabulary.
    """

    def __init__(self, config: LlamaConfig, layers: Iterable[nn.Module] | None = None, extra_tokens: int = 0):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size + extra_tokens, config.hidden_size)
        self.layers = nn.ModuleList(layers or (DecoderLayer(config, i) for i in range(config.num_hidden_layers)))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class DeepStackFeatures(NamedTuple):
    """Added to the image tokens after each of the first layers. places: (rows, columns) of F tokens.

    features: [F, H] for each layer.
    """

    places: tuple[Tensor, Tensor]
    features: tuple[Tensor, ...]


VisionInputs = CrossAttentionInputs | DeepStackFeatures | None


class CausalLM(Pretrained):
    """A decoder with its LM head; a tied head is the embedding and has no parameter of its own.

    model: what a checkpoint keeps under ``model.``. ``Llama`` is the plain decoder. Vision-language models also encode
    images (:meth:`encode_images`) and feed the features to the embeddings (:meth:`embed`) or to layers
    (:meth:`vision_inputs`).
    """

    config: LlamaConfig

    def __init__(self, config: LlamaConfig, model: nn.Module):
        super().__init__()
        self.config, self.model = config, model
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.gradient_checkpointing: Recompute = False
        self.compiled = False
        self._rotary: Tensor | None = None
        self.attention_backend = "auto"

    @property
    def tower(self) -> nn.Module | None:
        """The image encoder."""
        return None

    @property
    def image_slots(self) -> tuple[int, int | None]:
        """(the token that stands for an image, or -1; how many an image has, None if that depends on its size)."""
        return -1, 0

    @property
    def vision_is_frozen(self) -> bool:
        """Whether the model has a vision encoder in which nothing is trained."""
        return self.tower is not None and not any(p.requires_grad for p in self.tower.parameters())

    @property
    def decoder(self) -> Decoder:
        """Embedding, layers and final norm."""
        return cast(Decoder, self.model)

    @property
    def head_weight(self) -> Tensor:
        """[V, H]: the LM head's weight, without an adapter on it (:meth:`head_update`)."""
        return self.decoder.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def head_update(self, hidden: Tensor) -> tuple[Tensor, Tensor] | None:
        """(low [N, r], B [V, r]) for final states [N, H]: an adapter on the head adds low B^T; None without one."""
        head = None if self.config.tie_word_embeddings else self.lm_head
        return head.update(hidden) if isinstance(head, LoRALinear) else None

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] of final states [..., H]."""
        if self.config.tie_word_embeddings:
            return F.linear(hidden, self.head_weight)
        return self.lm_head(hidden)

    def encode_images(self, images: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        """``images`` with the tower's ``features``, which are computed unless they are there already.

        images: tensors of the model's image processor, concatenated over the distinct images; ``order`` [I] is the
        index of the image at each place in the text (default: each once, in order). Raises InputError for a text model.
        """
        if images is None or "features" in images:
            return images
        if self.tower is None:
            raise InputError(f"a {self.config.raw['model_type']} model reads no images")
        return {**images, **self._encode(images)}

    def _encode(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """``features`` of the images, the output of ``tower``, and other tensors that later layers need."""
        raise NotImplementedError

    def embed(self, tokens: Tensor, images: dict[str, Tensor] | None = None, on_host: Tensor | None = None) -> Tensor:
        """[B, T, H]: the input of the first layer. images: with their features. on_host: ``tokens`` on the CPU."""
        return self.decoder.embed_tokens(tokens)

    def forward(self, tokens: Tensor, images: dict[str, Tensor] | None = None) -> Tensor:
        """Logits [B, T, V] of tokens [B, T], causal attention; images: tensors of the model's image processor."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        mask = None
        if self.config.sliding_window is not None:
            mask = make_mask(torch.zeros_like(tokens), positions, self.config.sliding_window, "dense")
        images = self.encode_images(images)
        x, vision = self.embed(tokens, images), self.vision_inputs(tokens, images)
        rotary = self.rotary_positions(tokens, positions, images)
        return self.logits(self._run(x, positions, mask, rotary, vision=vision))

    def attention_mask(self, batch: PackedBatch) -> Mask:
        """The mask of a packed batch."""
        dtype = self.decoder.embed_tokens.weight.dtype
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
        flash = flash_reads(batch.segments.device, dtype, self.config.head_dim)
        window, host = self.config.sliding_window, (batch.host or batch).segments
        return make_mask(batch.segments, batch.positions, window, self.attention_backend, host, flash)

    def hidden_states(self, batch: PackedBatch, mask: Mask = None) -> Tensor:
        """[B, T, H] after the final norm, for a packed batch (its tokens, positions, segments and images).

        mask: of :meth:`attention_mask`, for several passes of one batch; default: made here.
        """
        mask = self.attention_mask(batch) if mask is None else mask
        images = self.encode_images(batch.images)
        host = (
            batch.host or batch
        )  # where the images are is computed on the CPU, so that it does not wait for the device
        x = self.embed(batch.tokens, images, host.tokens)
        vision = self.vision_inputs(host.tokens, images, host.segments)
        rotary = self.rotary_positions(host.tokens, host.positions, images, host.segments)
        rotary = batch.positions if rotary is host.positions else upload(rotary, x.device)
        return self._run(x, batch.positions, mask, rotary, vision=vision)

    def forward_cached(
        self,
        tokens: Tensor,
        positions: Tensor,
        cache: KeyValueCache,
        images: dict[str, Tensor] | None = None,
        tree: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """[B, T, H] of new tokens at ``positions`` [B, T], after the tokens in ``cache``, which is updated.

        tree: for tokens that continue different ones: the slots [B, T] of the cache that they take (by default their
        positions), and [B, T, used] bool, the slots that each attends to.
        """
        if tree is None:
            slots = torch.arange(cache.used, device=tokens.device)
            places, mask = positions, slots <= positions[:, :, None]
            if self.config.sliding_window is not None:
                mask &= positions[:, :, None] - slots < self.config.sliding_window
        else:
            places, mask = tree
        images = self.encode_images(images)
        # an answer holds no image: nothing to look for, and on a GPU to wait for
        x = self.decoder.embed_tokens(tokens) if cache.begun else self.embed(tokens, images)
        vision = cache.vision if images is None else self.vision_inputs(tokens, images)
        rotary = positions if cache.shift is None else positions + cache.shift
        if images is not None:
            rotary = self.rotary_positions(tokens, positions, images)
            cache.shift = None if rotary is positions else (rotary[:, :, -1:] - positions[:, -1:]).amax(0)
        hidden = self._run(x, places, mask.unsqueeze(1), rotary, cache, vision)
        cache.vision = vision.last() if isinstance(vision, CrossAttentionInputs) else None
        cache.begun = True
        return hidden

    def vision_inputs(
        self, tokens: Tensor, images: dict[str, Tensor] | None, segments: Tensor | None = None
    ) -> VisionInputs:
        """Inputs of the decoder's layers from the images: for cross-attention, or added after the first layers.

        tokens, segments: on the CPU, or on the device, which the host then waits for.
        """
        return None

    def rotary_positions(
        self, tokens: Tensor, positions: Tensor, images: dict[str, Tensor] | None, segments: Tensor | None = None
    ) -> Tensor:
        """Positions for the rotary embedding: [B, T], or [3, B, T] (time, height, width) in Qwen-VL.

        They are on the device of the arguments, as which :meth:`vision_inputs` takes the CPU too.
        """
        return positions

    def _run(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Mask,
        rotary: Tensor,
        cache: KeyValueCache | None = None,
        vision: VisionInputs = None,
    ) -> Tensor:
        rope = cos_sin(self._angles(rotary), x.dtype)
        if self.compiled and torch.is_grad_enabled() and not x.requires_grad:
            x = x.detach().requires_grad_()  # or the first layer would need graphs of its own
        for number, layer in enumerate(self.decoder.layers):
            if isinstance(layer, DecoderLayer):
                inputs: tuple = (x, rope, mask, cache, positions)
            elif vision is not None:
                inputs = (x, vision, cache)
            else:  # cross-attention without images
                continue
            if cache is None:
                x = run_layer(layer, *inputs, recompute=self.gradient_checkpointing)
            else:  # not compiled: a few answers do not repay it
                x = layer.forward(*inputs)
            if isinstance(vision, DeepStackFeatures) and number < len(vision.features):
                x = x.index_put(vision.places, vision.features[number].to(x.dtype), accumulate=True)
        return self.decoder.norm(x)

    def _angles(self, positions: Tensor) -> Tensor:
        """[B, 1, T, D / 2] float32: the rotary angles."""
        return positions[:, None, :, None].float() * self._frequencies(positions.device)

    def _frequencies(self, device: torch.device) -> Tensor:
        """[D / 2] float32: the rotary frequencies, transferred once. ``.to(dtype)`` would round them in a buffer."""
        if self._rotary is None or self._rotary.device != device:
            self._rotary = rope_frequencies(self.config).to(device)
        return self._rotary

    def compile_blocks(self, **options) -> None:
        """Compiles every decoder layer in place; layers share their compiled code.

        The first batch's shape has code of its own, the second makes code for every shape. Decoding calls the layers as
        they are. options: as for ``torch.compile``.
        """
        self.compiled = True
        for layer in self.decoder.layers:
            layer.compile(recompile_limit=RECOMPILE_LIMIT, **options)


class Llama(CausalLM):
    """A text model."""

    def __init__(self, config: LlamaConfig):
        super().__init__(config, Decoder(config))

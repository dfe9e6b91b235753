"""LLaVA: a CLIP image tower, a projector, and a Llama-form decoder (arXiv 2304.08485, 2310.03744).

The patches' features, projected to the decoder's width, take the places of the image tokens. Parameter names are those
of transformers' LlavaForConditionalGeneration, so adapters are PEFT's; checkpoints of the years before name the same
tensors otherwise (``OLDER_NAMES``).

Legend: B rows, T row length, I images, P patches of an image, H the decoder's width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mint.errors import InputError
from mint.models.clip import ACTIVATIONS, VisionTower, VisionTowerConfig
from mint.models.llama import Decoder
from mint.models.settings import check_choice
from mint.models.vision_language import VisionLanguageConfig, VisionLanguageModel, nested_settings
from mint.ops.transfer import upload

OLDER_NAMES = (  # pattern, replacement
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1."),  # from here on: LLaVA's own form too
    (r"^multi_modal_projector\.", "model.multi_modal_projector."),
    (r"^model\.mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
    (r"^(model\.)?(vision_tower\.)+(vision_model\.)?", "model.vision_tower."),
)
TOWER_TYPE = "clip_vision_model"
# model_type in LLaVA's own file form, which mint.convert reads, and the decoder's.
OWN_FORMS = {"llava_mistral": "mistral", "llava_llama": "llama", "llava_qwen": "qwen2"}
# What the decoders' own libraries assume where a nested configuration is silent.
TEXT_DEFAULTS = {
    "llama": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "mistral": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "qwen2": {"hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32},
}
TEXT_DEFAULTS["llama"] |= {"vocab_size": 32000, "max_position_embeddings": 2048}
TEXT_DEFAULTS["mistral"] |= {"vocab_size": 32000, "max_position_embeddings": 131072, "num_key_value_heads": 8}
TEXT_DEFAULTS["qwen2"] |= {"vocab_size": 151936, "max_position_embeddings": 32768}


@dataclass(frozen=True, kw_only=True)
class LlavaConfig(VisionLanguageConfig):
    """The settings of decoder, image encoder and projector."""

    vision: VisionTowerConfig
    feature_layers: tuple[int, ...] = ()  # numbers of layers after which the encoder's states are features
    with_class_token: bool = False
    projector_act: str = "gelu"
    projector_bias: bool = True

    @classmethod
    def from_dict(cls, raw: dict) -> LlavaConfig:
        """From the content of ``config.json``. Raises InputError for a missing or unsupported setting."""
        text, vision = nested_settings(raw, "llava")
        check_choice("llava", "model_type of vision_config", vision.get("model_type", TOWER_TYPE), (TOWER_TYPE,))
        tower = VisionTowerConfig.from_dict(vision)
        strategy, act = raw.get("vision_feature_select_strategy", "default"), raw.get("projector_hidden_act", "gelu")
        check_choice("llava", "vision_feature_select_strategy", strategy, ("default", "full"))
        check_choice("llava", "projector_hidden_act", act, ACTIVATIONS)
        layers, depth = raw.get("vision_feature_layer", -2), tower.num_hidden_layers
        layers = layers if isinstance(layers, list) else [layers]
        if any(not -depth - 1 <= layer <= depth for layer in layers):
            raise InputError(f"llava: vision_feature_layer {layers} is outside a tower of {depth} layers")
        kind = text.get("model_type", "llama")
        return cls.around(
            {**TEXT_DEFAULTS.get(kind, {}), **text, "model_type": kind},
            raw,
            vision=tower,
            image_token=raw.get("image_token_index", raw.get("image_token_id", 32000)),
            feature_layers=tuple(layer % (depth + 1) for layer in layers),
            with_class_token=strategy == "full",
            projector_act=act,
            projector_bias=bool(raw.get("multimodal_projector_bias", True)),
        )


class Llava(VisionLanguageModel[VisionTower]):
    """A CLIP image encoder, a projector, and a Llama-form decoder."""

    config: LlavaConfig
    older_names = OLDER_NAMES
    tower_name = "vision_tower"

    def __init__(self, config: LlavaConfig):
        super().__init__(
            config,
            vision_tower=VisionTower(config.vision),
            multi_modal_projector=Projector(config),
            language_model=Decoder(config),
        )

    @property
    def image_slots(self) -> tuple[int, int]:
        """(the token that stands for an image, how many of it an image fills)."""
        vision = self.config.vision
        return self.config.image_token, (vision.image_size // vision.patch_size) ** 2 + self.config.with_class_token

    def _encode(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """``features`` [distinct, P, the tower's width]. images: ``pixel_values`` [distinct, 3, side, side]."""
        pixels = images["pixel_values"].to(self.tower.embeddings.class_embedding.dtype)
        states = self.tower.hidden_states(pixels, self.config.feature_layers, self.gradient_checkpointing)
        return {"features": torch.cat(states, -1)[:, 0 if self.config.with_class_token else 1 :]}

    def text_features(self, images: dict[str, Tensor]) -> Tensor:
        """[F, H]: the projected features."""
        projected = self.projector(images["features"])
        if "order" in images:
            projected = projected[upload(images["order"], projected.device)]
        return projected.flatten(0, 1)


class Projector(nn.Module):
    """Two linear layers from the tower's width to the decoder's."""

    def __init__(self, config: LlavaConfig):
        super().__init__()
        width = config.vision.hidden_size * len(config.feature_layers)
        self.linear_1 = nn.Linear(width, config.hidden_size, bias=config.projector_bias)
        self.linear_2 = nn.Linear(config.hidden_size, config.hidden_size, bias=config.projector_bias)
        self.activation = ACTIVATIONS[config.projector_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.activation(self.linear_1(x)))

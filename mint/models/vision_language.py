"""What vision-language models share: an image encoder, and a decoder under ``model.language_model``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Generic, TypeVar, cast

from torch import Tensor, nn

from mint.errors import InputError
from mint.models.llama import CausalLM, Decoder
from mint.models.llama_config import LlamaConfig, is_tied
from mint.ops.transfer import upload

Config = TypeVar("Config", bound="VisionLanguageConfig")
Tower = TypeVar("Tower", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class VisionLanguageConfig(LlamaConfig):
    """The decoder's settings and the id of the token that stands for an image; ``vision``: the image encoder's."""

    image_token: int = 0

    @classmethod
    def around(cls: type[Config], text: dict, raw: dict, **own) -> Config:
        """From the decoder's settings ``text``; ``raw``: the whole ``config.json``; own: the other fields."""
        decoder = LlamaConfig.from_dict({**text, "tie_word_embeddings": is_tied(raw)})
        return cls(**{f.name: getattr(decoder, f.name) for f in fields(decoder)} | {"raw": dict(raw), **own})


def nested_settings(raw: dict, kind: str) -> tuple[dict, dict]:
    """``text_config`` and ``vision_config``. Raises InputError if one is missing."""
    text, vision = raw.get("text_config"), raw.get("vision_config")
    if not isinstance(text, dict) or not isinstance(vision, dict):
        raise InputError(f"config.json of a {kind} model needs text_config and vision_config")
    return text, vision


class VisionLanguageModel(CausalLM, Generic[Tower]):
    """``model(tokens, images)`` -> logits. Images have as many image tokens in ``tokens`` as they have features."""

    config: VisionLanguageConfig
    tower_name: str  # of the image encoder under ``model.``

    def __init__(self, config: VisionLanguageConfig, **modules: nn.Module):
        """modules: what a checkpoint keeps under ``model.``, in its order."""
        model = nn.Module()
        for name, module in modules.items():
            model.add_module(name, module)
        super().__init__(config, model)

    @property
    def decoder(self) -> Decoder:
        return cast(Decoder, self.model.language_model)

    @property
    def projector(self) -> nn.Module:
        """From the image encoder's width to the decoder's, in families that have one."""
        return self.model.get_submodule("multi_modal_projector")

    @property
    def tower(self) -> Tower:
        return getattr(self.model, self.tower_name)

    def embed(self, tokens: Tensor, images: dict[str, Tensor] | None = None, on_host: Tensor | None = None) -> Tensor:
        """[B, T, H]: embeddings of the tokens, with the images' features at the image tokens, in order.

        Raises InputError if image tokens and features differ in number.
        """
        x = self.decoder.embed_tokens(tokens)
        places = ((tokens if on_host is None else on_host) == self.config.image_token).flatten().nonzero().squeeze(1)
        features = None if images is None else self.text_features(images)
        given, wanted = 0 if features is None else len(features), len(places)
        if given != wanted:
            raise InputError(f"the text has {wanted} image tokens, the images {given} features")
        if features is None:
            return x
        return x.flatten(0, 1).index_copy(0, upload(places, x.device), features.to(x.dtype)).view(x.shape)

    def text_features(self, images: dict[str, Tensor]) -> Tensor:
        """[F, H]: the features that take the places of the F image tokens."""
        raise NotImplementedError

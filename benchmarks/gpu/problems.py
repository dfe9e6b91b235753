"""The models and pairs of the GPU benchmark: random weights in published shapes, random ids of log-normal lengths.

It imports neither this project's package nor the peer's, so that both sides have the same problem.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from benchmarks.step_worker import BOS, EOS, random_pair

IMAGE = 5  # the id of an image token in the small vision model
LONGEST = 4096  # tokens of a prompt or an answer
LLAMA = {
    "model_type": "llama", "vocab_size": 128_256, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": True, "bos_token_id": BOS,
    "eos_token_id": EOS,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
QWEN3_VL_4B = {
    "model_type": "qwen3_vl", "image_token_id": 151_655, "tie_word_embeddings": True,
    "text_config": {
        "model_type": "qwen3_vl_text", "vocab_size": 151_936, "hidden_size": 2560, "intermediate_size": 9728,
        "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 262_144, "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True, "rope_theta": 5e6,
        },
    },
    "vision_config": {
        "model_type": "qwen3_vl", "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
        "in_channels": 3, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "out_hidden_size": 2560, "num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17],
    },
}  # fmt: skip
TINY = LLAMA | {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
}  # fmt: skip
TINY_VISION = QWEN3_VL_4B | {
    "image_token_id": IMAGE,
    "text_config": QWEN3_VL_4B["text_config"] | {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048,
        "rope_parameters": QWEN3_VL_4B["text_config"]["rope_parameters"] | {"mrope_section": [4, 2, 2]},
    },
    "vision_config": QWEN3_VL_4B["vision_config"] | {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    },
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A model and the pairs that it is trained on.

    config: the content of ``config.json``. means: tokens of prompt, chosen and rejected on average, without images.
    sigma: of their log-normal lengths. batch_size: pairs of a micro-batch; a step has ``per_step``. side: of the square
    images, one for every pair and its corrupted copy; 0 for text. sharing: pairs that have the same clean image.
    """

    config: dict
    rank: int = 256
    means: tuple[int, int, int] = (600, 110, 250)
    sigma: float = 0.35
    batch_size: int = 8
    per_step: int = 8
    side: int = 0
    sharing: int = 8

    @property
    def text(self) -> dict:
        """The decoder's settings."""
        return self.config.get("text_config", self.config)

    @property
    def image_tokens(self) -> int:
        """Of an image."""
        vision = self.config["vision_config"]
        return (self.side // (vision["patch_size"] * vision["spatial_merge_size"])) ** 2

    def pairs(self, count: int) -> list[dict[str, list[int]]]:
        """The first ``count`` pairs of ids, the same in every process."""
        draw = random.Random(0)

        def length(mean: int) -> int:
            return min(max(2, round(draw.lognormvariate(math.log(mean) - self.sigma**2 / 2, self.sigma))), LONGEST)

        return [random_pair(draw, self.text["vocab_size"], self.means, length) for _ in range(count)]


PROBLEMS = {
    "1B": Problem(
        LLAMA | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    ),
    "3B": Problem(
        LLAMA | {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24}
    ),
    "8B": Problem(
        LLAMA | {
            "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "tie_word_embeddings": False, "rope_scaling": LLAMA["rope_scaling"] | {"factor": 8.0},
        },
        batch_size=4,
    ),
    # SLAKE: images of 512 x 512, short questions and answers; the adapter is that of FiRe-MPO's paper
    "Qwen3-VL-4B": Problem(QWEN3_VL_4B, rank=128, means=(50, 20, 20), side=512),
    "tiny": Problem(TINY, 8, (60, 12, 25), batch_size=4, per_step=4),
    "tiny vision": Problem(TINY_VISION, 8, (20, 8, 8), batch_size=4, per_step=4, side=64),
}  # fmt: skip

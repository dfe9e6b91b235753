"""The command that serves an adapter: its rank, and whether the image tower takes part."""

import pytest

from mint.models import init_model
from mint.models.lora import add_lora
from mint.models.serving import vllm_command
from tests.reference import llava_inputs, qwen_vl_inputs
from tests.reference.weights import TINY_LLAMA


def command(config, folder="runs/orpo/adapter", **options):
    model = add_lora(init_model(config), **options)
    model.source_name = "owner/base"
    return vllm_command(model, folder)


@pytest.mark.parametrize("rank, served", [(1, 8), (8, 8), (9, 16), (200, 256), (257, 320), (512, 512)])
def test_the_rank_is_the_smallest_accepted_one(rank, served):
    assert command(TINY_LLAMA, rank=rank, targets="layers.0.mlp.up_proj") == (
        f"vllm serve owner/base --enable-lora --max-lora-rank {served} --lora-modules orpo=runs/orpo/adapter"
    )


def test_a_rank_beyond_all_is_not_served():
    assert command(TINY_LLAMA, rank=513, targets="layers.0.mlp.up_proj") is None


def test_the_largest_rank_of_a_pattern_counts():
    model = add_lora(init_model(TINY_LLAMA), rank=4)
    wide = add_lora(init_model(TINY_LLAMA), rank=40, targets="layers.1.mlp.down_proj")
    model.model.layers[1].mlp.down_proj = wide.model.layers[1].mlp.down_proj
    model.source_name = "owner/base"
    assert "--max-lora-rank 64 " in vllm_command(model, "adapter-of-a-run")
    assert vllm_command(model, "place/one").endswith("--lora-modules one=place/one")


@pytest.mark.parametrize(
    "inputs, targets, reached",
    [
        (llava_inputs, "all-linear", False),
        (llava_inputs, "lm_head", False),
        (llava_inputs, "multi_modal_projector", True),
        (llava_inputs, "q_proj", True),  # the tower's too
        (qwen_vl_inputs, "language_model", False),
        (qwen_vl_inputs, "visual", True),
    ],
)
def test_adapters_on_the_image_tower_or_projector_need_a_flag(inputs, targets, reached):
    config = getattr(inputs, "CONFIGS", {"llama": inputs.TINY})["llama"]
    assert ("--enable-tower-connector-lora" in command(config, rank=2, targets=targets).split()) == reached


def test_paths_are_quoted():
    text = command(TINY_LLAMA, folder="my runs/a b/adapter", rank=2)
    assert text.endswith("--lora-modules 'a b=my runs/a b/adapter'")

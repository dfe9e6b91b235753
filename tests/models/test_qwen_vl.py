"""Qwen2.5-VL and Qwen3-VL: transformers' logits for images of many shapes, in packed rows and with a cache as alone."""

import copy
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from mint.data.batch import EncodedPair, collate
from mint.errors import InputError
from mint.models import init_model
from mint.models.generate import generate
from mint.models.patches import place_patches
from mint.models.qwen3_vl import Qwen3VL, Qwen3VLConfig
from mint.models.qwen_vl import QwenVL, QwenVLConfig
from tests.reference import qwen3_vl_inputs, qwen_vl_inputs
from tests.reference.qwen_vl_inputs import HERE, IMAGE, INPUTS, TEXT, TINY, VISION, images, tokens

FAMILIES = {"qwen_vl": (QwenVL, QwenVLConfig, qwen_vl_inputs), "qwen3_vl": (Qwen3VL, Qwen3VLConfig, qwen3_vl_inputs)}


def build(family):
    kind, config, inputs = FAMILIES[family]
    model = kind(config.from_dict(inputs.TINY)).eval()
    model.load_state_dict(inputs.weights({name: p.shape for name, p in model.named_parameters()}))
    return model.requires_grad_(False)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return build(request.param)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family, name):
    expected = load_file(HERE / f"{family}.safetensors")[name]
    torch.testing.assert_close(build(family)(tokens(name), images(name)), expected, atol=3e-5, rtol=0)


def test_positions_by_hand(model):
    """Three tokens; 2 x 7 features from 3 on, in time 3, in height 3 and 4, in width 3 to 9; then 10, 11, ..."""
    ids, given = tokens("wide"), images("wide")
    rotary = model.rotary_positions(ids, torch.arange(40)[None], given)[:, 0]
    assert rotary[:, :3].tolist() == [[0, 1, 2]] * 3
    assert rotary[0, 3:17].tolist() == [3] * 14
    assert rotary[1, 3:17].tolist() == [3] * 7 + [4] * 7 and rotary[2, 3:17].tolist() == [*range(3, 10)] * 2
    assert rotary[:, 17:].tolist() == [[*range(10, 33)]] * 3


def test_an_image_changes_what_follows_it(model):
    ids, given = tokens("two_images"), images("two_images")
    changed = {**given, "pixel_values": given["pixel_values"].clone()}
    changed["pixel_values"][-1] += 1  # a patch of the second image
    moved = (model(ids, changed) - model(ids, given)).abs()[0].max(-1).values
    second = int((ids[0] == 151).nonzero()[1])
    assert moved[: second + 1].max() == 0 and moved[second + 4 :].min() > 1e-5


def pairs():
    """Three pairs: a square image, no image, and a wide one; each prompt ends three words behind its image."""

    def pair(name, length, files):
        ids = tokens(name)[0].tolist()
        return EncodedPair(
            name, ids[:length], ids[length : length + 3], [*ids[length + 1 : length + 4], 7], images=files
        )

    return [pair("square", 10, ("a",)), pair("text", 6, ()), pair("wide", 20, ("b",))]


PICTURES = {"a": "square", "b": "wide"}


def seen(files):
    """The images of files, each once, with their order."""
    distinct = list(dict.fromkeys(files))
    parts = [images(PICTURES[file]) for file in distinct]
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return {**tensors, "order": torch.tensor([distinct.index(file) for file in files])}


def test_packed_pairs_have_the_states_they_have_alone(model):
    again = EncodedPair("again", pairs()[0].prompt, pairs()[0].rejected, pairs()[0].chosen, images=("a",))
    batch = collate([*pairs(), again], row_length=64)
    together = model.hidden_states(SimpleNamespace(**vars(batch) | {"images": seen(batch.image_files)})).flatten(0, 1)
    for index, pair in enumerate([*pairs(), again]):
        for answer, role in ((pair.chosen, 1), (pair.rejected, 2)):
            ids = torch.tensor([pair.prompt + answer])
            alone = model(ids, seen(pair.images) if pair.images else None)[0, len(pair.prompt) :]
            cells = (batch.segments.flatten() == 3 * index + role).nonzero().squeeze(1)
            torch.testing.assert_close(together[cells] @ model.head_weight.T, alone, atol=3e-5, rtol=0)


def test_decoding_with_a_cache(model, each_device):
    prompts = [pair.prompt for pair in pairs()]
    own = [pair.images for pair in pairs()]
    plain = SimpleNamespace(eos_ids=set(), decode=lambda ids: list(ids))
    expected = []
    for prompt, files in zip(prompts, own, strict=True):
        row = list(prompt)
        for _ in range(6):
            logits = model(torch.tensor([row]), seen(files) if files else None)[0, -1]
            logits[IMAGE] = -torch.inf
            row.append(int(logits.argmax()))
        expected.append(row[len(prompt) :])

    def pictures(members):
        files = [file for member in members for file in own[member]]
        return seen(files) if files else None

    moved = copy.deepcopy(model).to(each_device)
    for size in (1, 3):
        assert generate(moved, plain, prompts, max_new_tokens=6, batch_size=size, images=pictures) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_part(family):
    model = init_model(FAMILIES[family][2].TINY, seed=1)
    model(tokens("rows"), images("rows")).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_images_and_tokens_must_agree(model):
    with pytest.raises(InputError, match="4 image tokens, the images 0 features"):
        model(tokens("square"))
    with pytest.raises(InputError, match="4 image tokens, the images 14 features"):
        model(tokens("square"), images("wide"))
    with pytest.raises(InputError, match="16 patches, where the images' grids hold 56"):
        model(tokens("wide"), {**images("square"), "image_grid_thw": images("wide")["image_grid_thw"]})


def test_settings_of_one_level_are_read():
    """As the first checkpoints have them: no text_config, and the sections in rope_scaling."""
    flat = {key: value for key, value in TINY.items() if key != "text_config"} | {**TEXT, "model_type": "qwen2_5_vl"}
    rope = flat.pop("rope_parameters")
    flat |= {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
    }
    flatter = QwenVL(QwenVLConfig.from_dict(flat)).eval()
    model = build("qwen_vl")
    flatter.load_state_dict(model.state_dict())
    given = tokens("wide"), images("wide")
    torch.testing.assert_close(flatter(*given), model(*given))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vision_config": {**VISION, "hidden_act": "gelu"}}, "'gelu' is not supported"),
        ({"vision_config": {**VISION, "num_heads": 3}}, "multiple of four"),
        ({"vision_config": None}, "needs vision_config"),
        ({"text_config": {**TEXT, "rope_parameters": {"rope_theta": 1e6}}}, r"mrope_section \[\] does not sum to 5"),
    ],
)
def test_unsupported_settings(change, message):
    with pytest.raises(InputError, match=message):
        QwenVLConfig.from_dict({**TINY, **change})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_act": "gelu"}, "'gelu' is not supported"),
        ({"num_heads": 3}, "multiple of four"),
        ({"deepstack_visual_indexes": [1, 4]}, "outside a tower of 4 layers"),
        ({"num_position_embeddings": 35}, "35 positions are no square"),
    ],
)
def test_unsupported_settings_of_qwen3(change, message):
    tiny = qwen3_vl_inputs.TINY
    with pytest.raises(InputError, match=message):
        Qwen3VLConfig.from_dict({**tiny, "vision_config": {**tiny["vision_config"], **change}})


def test_positions_between_the_learned_ones_by_hand():
    """Six points a side, stretched over two rows and four columns of patches."""
    model = build("qwen3_vl")
    tower = model.tower
    learned = tower.pos_embed.weight.unflatten(0, (6, 6))
    places = place_patches(torch.tensor([[1, 2, 4]]), 2, torch.empty(8, 0))
    found = tower._positions(places).unflatten(0, (2, 2, 2))  # square, row and column in it
    # rows 0 and 1 of 2 lie on points 0 and 5; columns 0 to 3 of 4 on 0, 5/3, 10/3, 5
    torch.testing.assert_close(found[0, 1, 0], learned[5, 0])
    torch.testing.assert_close(found[0, 0, 1], learned[0, 1] / 3 + learned[0, 2] * 2 / 3)
    torch.testing.assert_close(found[1, 1, 0], learned[5, 3] * 2 / 3 + learned[5, 4] / 3)
    torch.testing.assert_close(found[1, 0, 1], learned[0, 5])

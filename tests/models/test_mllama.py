"""Llama 3.2 Vision: transformers' logits for one tile and several, one image and several, rows with and without."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from mint.data.batch import EncodedPair, collate
from mint.errors import InputError
from mint.models import init_model
from mint.models.generate import generate
from mint.models.mllama import Mllama, MllamaConfig
from tests.reference.mllama_inputs import HERE, IMAGE, INPUTS, TEXT, TINY, VISION, images, tokens, weights

RESULTS = load_file(HERE / "mllama.safetensors")


@pytest.fixture(scope="module")
def model():
    model = Mllama(MllamaConfig.from_dict(TINY)).eval()
    model.load_state_dict(weights({name: p.shape for name, p in model.named_parameters()}))
    return model.requires_grad_(False)


def one(picture, place=0, row=0):
    """The images of one sample, cut out of an input."""
    return {name: value[row : row + 1, place : place + 1] for name, value in images(picture).items()}


@pytest.mark.parametrize("name", INPUTS)
def test_logits_equal_transformers(model, name):
    torch.testing.assert_close(model(tokens(name), images(name)), RESULTS[name], atol=2e-5, rtol=0)


def test_the_tower_equals_transformers(model):
    given = images("several_tiles")
    states = model.model.vision_model(
        given["pixel_values"][:, 0], given["aspect_ratio_ids"][:, 0], given["aspect_ratio_mask"][:, 0]
    )
    torch.testing.assert_close(states, RESULTS["tower"].view(states.shape), atol=2e-5, rtol=0)


def test_an_image_changes_what_follows_it(model):
    """Of two images, the second changes the tokens from its own place on; before all images it counts like the first."""
    ids, given = tokens("two_images"), images("two_images")
    changed = {**given, "pixel_values": given["pixel_values"].clone()}
    changed["pixel_values"][0, 1, 0] += 1
    moved = (model(ids, changed) - model(ids, given)).abs()[0].max(-1).values
    assert moved[6:].min() > 1e-4 and moved[0] > 1e-6
    absent = {**given, "pixel_values": given["pixel_values"].clone()}
    absent["pixel_values"][0, 0, 2:] += 1  # tiles that the first image does not have
    assert given["aspect_ratio_mask"][0, 0].tolist() == [1, 1, 0, 0]
    torch.testing.assert_close(*(model.look(ids, model.encode_images(some)).mask for some in (absent, given)))


def pairs():
    """Three pairs: the image of one input, none, and the image of another one."""

    def pair(name, row, image):
        ids = tokens(name)[row].tolist()
        return EncodedPair(name, ids[:8], ids[8:11], [*ids[9:12], 7], images=image)

    return [pair("one_tile", 0, ("a",)), pair("text", 0, ()), pair("several_tiles", 0, ("b",))]


def test_packed_pairs_have_the_states_they_have_alone(model):
    """Each answer, in a row with other pairs, sees its own image and no other; distinct images are given once."""
    pictures = {"a": one("one_tile"), "b": one("several_tiles")}

    def given(files):
        distinct = list(dict.fromkeys(files))
        tensors = {name: torch.cat([pictures[file][name] for file in distinct]) for name in pictures["a"]}
        return {**tensors, "order": torch.tensor([distinct.index(file) for file in files])}

    twice = [*pairs(), EncodedPair("again", *[pairs()[0].prompt, pairs()[0].rejected, pairs()[0].chosen], images=("a",))]
    batch = collate(twice, row_length=32)
    images = given(batch.image_files)
    assert images["pixel_values"].shape[0] == 2 and len(images["order"]) == 3
    together = model.hidden_states(SimpleNamespace(**vars(batch) | {"images": images})).flatten(0, 1)
    for index, pair in enumerate(twice):
        for answer, role in ((pair.chosen, 1), (pair.rejected, 2)):
            ids = torch.tensor([pair.prompt + answer])
            alone = model(ids, pictures[pair.images[0]] if pair.images else None)[0, len(pair.prompt) :]
            cells = (batch.segments.flatten() == 3 * index + role).nonzero().squeeze(1)
            logits = together[cells] @ model.head_weight.T
            torch.testing.assert_close(logits, alone, atol=2e-5, rtol=0)


def test_decoding_with_a_cache(model):
    """Greedy answers with a cache, in a batch or alone, are the argmax of the whole text, and hold no image token."""
    names = ["one_tile", "text", "several_tiles"]
    prompts = [tokens(name)[0, : 5 + 2 * i].tolist() for i, name in enumerate(names)]
    plain = SimpleNamespace(eos_ids=set(), decode=lambda ids: list(ids))

    def seen(members):
        own = [one(names[i]) for i in members if names[i] != "text"]
        if not own:
            return None
        tensors = {name: torch.cat([images[name] for images in own]) for name in own[0]}
        return {**tensors, "order": torch.arange(len(own))}

    expected = []
    for name, prompt in zip(names, prompts, strict=True):
        row = list(prompt)
        for _ in range(6):
            row.append(int(model(torch.tensor([row]), None if name == "text" else one(name))[0, -1].argmax()))
        expected.append(row[len(prompt) :])
    for size in (1, 3):
        assert generate(model, plain, prompts, max_new_tokens=6, batch_size=size, images=seen) == expected


def test_gradients_reach_every_part():
    model = init_model(TINY, seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name and "proj" not in name:
                parameter.fill_(0.5)
    model.gradient_checkpointing = True
    model(tokens("rows"), images("rows")).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_images_and_tokens_must_agree(model):
    with pytest.raises(InputError, match="1 image tokens, and there are no images"):
        model(tokens("one_tile"))
    with pytest.raises(InputError, match="at most 1 images"):
        model(tokens("two_images"), images("one_tile"))
    with pytest.raises(InputError, match="images of 1 samples for 2 rows"):
        model(tokens("rows"), images("one_tile"))
    with pytest.raises(InputError, match="2 images in other places"):
        model(tokens("one_tile"), images("two_images"))
    with pytest.raises(InputError, match="there are 2 images"):
        model(tokens("one_tile"), {**images("one_tile"), "order": torch.tensor([0, 0])})
    with pytest.raises(InputError, match="this model reads 4 of 32 x 32"):
        model(tokens("one_tile"), {**images("one_tile"), "pixel_values": torch.zeros(1, 1, 4, 3, 16, 16)})


@pytest.mark.parametrize(
    "part, change, message",
    [
        ("vision_config", {"hidden_act": "relu"}, "'relu' is not supported"),
        ("vision_config", {"attention_heads": 5}, "5 heads do not divide"),
        ("vision_config", {"intermediate_layers_indices": [3]}, "outside the image tower"),
        ("text_config", {"cross_attention_layers": [4]}, "outside a decoder of 4"),
    ],
)
def test_unsupported_settings(part, change, message):
    with pytest.raises(InputError, match=message):
        MllamaConfig.from_dict({**TINY, part: {**(VISION if part == "vision_config" else TEXT), **change}})
    with pytest.raises(InputError, match="needs text_config and vision_config"):
        MllamaConfig.from_dict({**TINY, part: None})


def test_settings_that_a_configuration_leaves_out():
    """The library's own are those of the 11 B model."""
    config = MllamaConfig.from_dict({"model_type": "mllama", "text_config": {}, "vision_config": {}})
    assert (config.hidden_size, config.num_hidden_layers, config.rope_theta) == (4096, 40, 500_000.0)
    assert config.vision.output_size == 7680 and config.vision.patches == 1025 and config.image_token == 128256
    assert IMAGE == TEXT["vocab_size"]

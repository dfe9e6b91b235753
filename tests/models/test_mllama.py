"""Llama 3.2 Vision: transformers' logits for one tile and several, one image and several, rows with and without."""

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mint.data.batch import EncodedPair, collate
from mint.errors import InputError
from mint.models import init_model
from mint.models.cross_attention import CrossAttentionInputs, Run, attend_to_tiles
from mint.models.generate import generate
from mint.models.mllama import CrossAttentionLayer, Mllama, MllamaConfig
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
    """The second of two images changes the tokens after it; tokens before all images attend to both."""
    ids, given = tokens("two_images"), images("two_images")
    changed = {**given, "pixel_values": given["pixel_values"].clone()}
    changed["pixel_values"][0, 1, 0] += 1
    moved = (model(ids, changed) - model(ids, given)).abs()[0].max(-1).values
    assert moved[6:].min() > 1e-4 and moved[0] > 1e-6
    absent = {**given, "pixel_values": given["pixel_values"].clone()}
    absent["pixel_values"][0, 0, 2:] += 1  # tiles that the first image does not have
    assert given["aspect_ratio_mask"][0, 0].tolist() == [1, 1, 0, 0]
    runs = [model.vision_inputs(ids, model.encode_images(some)).runs for some in (absent, given)]
    assert runs[0] == runs[1]


def pairs():
    """Three pairs: the image of one input, none, and the image of another one."""

    def pair(name, row, image):
        ids = tokens(name)[row].tolist()
        return EncodedPair(name, ids[:8], ids[8:11], [*ids[9:12], 7], images=image)

    return [pair("one_tile", 0, ("a",)), pair("text", 0, ()), pair("several_tiles", 0, ("b",))]


PICTURES = {"a": one("one_tile"), "b": one("several_tiles")}


def with_images(batch):
    """The batch with its distinct images, each given once."""
    distinct = list(dict.fromkeys(batch.image_files))
    tensors = {name: torch.cat([PICTURES[file][name] for file in distinct]) for name in PICTURES["a"]}
    order = torch.tensor([distinct.index(file) for file in batch.image_files])
    return dataclasses.replace(batch, images={**tensors, "order": order})


def test_packed_pairs_have_the_states_they_have_alone(model):
    """Each answer, in a row with other pairs, sees its own image and no other; distinct images are given once."""
    twice = [
        *pairs(),
        EncodedPair("again", *[pairs()[0].prompt, pairs()[0].rejected, pairs()[0].chosen], images=("a",)),
    ]
    batch = with_images(collate(twice, row_length=32))
    assert batch.images["pixel_values"].shape[0] == 2 and len(batch.images["order"]) == 3
    together = model.hidden_states(batch).flatten(0, 1)
    for index, pair in enumerate(twice):
        for answer, role in ((pair.chosen, 1), (pair.rejected, 2)):
            ids = torch.tensor([pair.prompt + answer])
            alone = model(ids, PICTURES[pair.images[0]] if pair.images else None)[0, len(pair.prompt) :]
            cells = (batch.segments.flatten() == 3 * index + role).nonzero().squeeze(1)
            logits = together[cells] @ model.head_weight.T
            torch.testing.assert_close(logits, alone, atol=2e-5, rtol=0)


def test_packed_pairs_have_the_gradients_they_have_alone():
    """Three pairs in one row, one without an image, padding at the end: the sum of the gradients of each alone."""
    model = Mllama(MllamaConfig.from_dict(TINY)).double()
    model.load_state_dict(weights({name: p.shape for name, p in model.named_parameters()}))
    parameters = list(model.parameters())

    def gradients(some, **shape):
        batch = with_images(collate(some, **shape)) if any(pair.images for pair in some) else collate(some)
        states = model.hidden_states(batch).flatten(0, 1)[batch.predict]
        loss = (states @ model.head_weight.T).log_softmax(-1).gather(1, batch.targets[:, None]).sum()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)  # without an image the tower is not used
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

    together = gradients(pairs(), row_length=56, rows=1)
    alone = [sum(parts) for parts in zip(*(gradients([pair]) for pair in pairs()), strict=True)]
    for ours, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-9, rtol=1e-9)


def test_a_token_attends_to_the_tiles_of_its_own_images_alone(model, monkeypatch):
    """Scores computed for three pairs in one row, by hand; no mask and no grouped heads, which rule out fused kernels.

    Of 15 tokens each, ``a`` has 1 tile of 17 patches, ``b`` 4; the 2 tokens before ``a`` and the 1
    before ``b`` attend to all 4 tiles. Both layers have 2 key/value heads for 4 heads.
    """
    scores = []

    def count(q, k, v, **options):
        assert not options
        scores.append(q.shape[1] * q.shape[2] * k.shape[2])
        return F.scaled_dot_product_attention(q, k, v)

    batch = with_images(collate(pairs(), row_length=56, rows=1))
    batch.images.update(model.encode_images(batch.images))
    monkeypatch.setattr("mint.models.cross_attention.F", SimpleNamespace(scaled_dot_product_attention=count))
    model.hidden_states(batch)
    lengths = [len(pair) for pair in pairs()]
    assert lengths == [15, 15, 15]
    assert sum(scores) == 2 * 4 * 17 * ((2 * 4 + 13 * 1) + (1 * 4 + 14 * 4))


def test_grouped_queries_are_grouped_heads():
    """Against scaled_dot_product_attention with repeated keys under a mask, in float64."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((2, 7, 6, 4), (5, 3, 2, 4), (5, 3, 2, 4))
    q, k, v = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in shapes)
    runs = (Run(2), Run(5, ((1, 3), (4, 5)), True), Run(6, ((0, 2),), True), Run(1, ((4, 5), (4, 5))))
    tiles = [[0] * 5] * 2 + [[0, 1, 1, 0, 1]] * 5 + [[1, 1, 0, 0, 0]] * 6 + [[0, 0, 0, 0, 1]]
    keys, values = (x.flatten(0, 1).repeat_interleave(3, 1).transpose(0, 1).expand(2, -1, -1, -1) for x in (k, v))
    mask = torch.tensor(tiles).view(2, 7, 5).bool().repeat_interleave(3, -1)[:, None]
    expected = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=mask).transpose(1, 2).clone()
    expected[0, :2] = 0
    vision = CrossAttentionInputs.of(k, runs, rows=2)
    torch.testing.assert_close(attend_to_tiles(q, k, v, vision), expected)
    assert vision.has_prior_image[..., 0].tolist() == [[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]]
    assert vision.last().runs == (Run(1, ((1, 3), (4, 5)), True), Run(1, ((4, 5), (4, 5))))
    assert vision.last().states is None


def test_batches_with_other_images_are_not_compiled_again():
    """Compiled code must not depend on where the images of a batch are."""
    torch._dynamo.reset()
    layer, graphs = CrossAttentionLayer(MllamaConfig.from_dict(TINY), 1), []
    layer.compile(backend=lambda graph, _: graphs.append(graph) or graph.forward)
    x, states = torch.randn(1, 6, 40), torch.randn(4, 17, 40)
    layer(x, CrossAttentionInputs.of(states, [Run(6, ((0, 4),), True)], rows=1))
    compiled = len(graphs)
    assert compiled > 0
    for runs in ([Run(2, ((0, 1),)), Run(4, ((1, 3),), True)], [Run(3), Run(3, ((0, 2), (3, 4)), True)]):
        layer(x, CrossAttentionInputs.of(states, runs, rows=1))
    assert len(graphs) == compiled


def test_padding_tiles_that_are_alike_are_kept_once():
    """As in published checkpoints, where the embeddings of tiles that a ratio does not have are zero."""
    model = Mllama(MllamaConfig.from_dict(TINY)).requires_grad_(False)
    model.load_state_dict(weights({name: p.shape for name, p in model.named_parameters()}))
    ids, given = tokens("two_images"), images("two_images")  # of 2 and 3 tiles
    assert model.encode_images(given)["tile_counts"].tolist() == [4, 4]
    tower, tiles = model.model.vision_model, TINY["vision_config"]["max_num_tiles"]
    with torch.no_grad():
        for part in (tower.pre_tile_positional_embedding, tower.post_tile_positional_embedding):
            part.embedding.weight.unflatten(1, (tiles, -1))[2, 2:] = 0
        tower.gated_positional_embedding.tile_embedding.weight.unflatten(1, (tiles, -1))[2, 2:] = 0
        seen = model.encode_images(given)
        assert seen["tile_counts"].tolist() == [3, 4] and len(seen["features"]) == 7
        fewer = model(ids, seen)
    with torch.enable_grad():
        assert model.encode_images(given)["tile_counts"].tolist() == [4, 4]
        torch.testing.assert_close(fewer, model(ids, given), atol=1e-5, rtol=0)
    given["pixel_values"][0, 0, 3] += 1  # another padding tile than the rest
    with torch.no_grad():
        assert model.encode_images(given)["tile_counts"].tolist() == [4, 4]


def test_decoding_projects_an_image_once(model):
    """Keys and values of the image tiles are computed for the prompt, and used for every generated token."""
    calls, prompt = [], tokens("one_tile")[0].tolist()
    layers = [layer.cross_attn for layer in model.decoder.layers if hasattr(layer, "cross_attn")]
    handles = [proj.register_forward_hook(lambda *_: calls.append(1)) for x in layers for proj in (x.k_proj, x.v_proj)]
    plain = SimpleNamespace(eos_ids=set(), decode=list)
    generate(model, plain, [prompt], max_new_tokens=5, images=lambda _: {**one("one_tile"), "order": torch.tensor([0])})
    for handle in handles:
        handle.remove()
    assert len(calls) == 2 * len(layers)


def test_decoding_with_a_cache(model, each_device):
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
    moved = copy.deepcopy(model).to(each_device)
    for size in (1, 3):
        assert generate(moved, plain, prompts, max_new_tokens=6, batch_size=size, images=seen) == expected


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

"""Where a model looks: the numbers by hand, the mask as the model sees it, the command on a tiny model."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from mint.data.chat import load_tokenizer
from mint.data.image_features import ImageReader
from mint.data.images import load_processor
from mint.data.preferences import read_preferences, write_jsonl
from mint.data.processors.clip import ClipImageProcessor
from mint.data.processors.mllama import MllamaImageProcessor
from mint.data.processors.qwen_vl import QwenVLImageProcessor
from mint.data.record_images import ImageSlots, find_images
from mint.errors import InputError
from mint.models import load_model
from mint.models.attention_maps import attention_to
from mint.synthetic.radiograph_set import write_radiographs
from mint.tasks.attention_layers import layer_means, plot_layers
from mint.tasks.attention_on_lesion import (
    attention_map,
    attention_maps,
    by_layer,
    compare_maps,
    encode_plain,
    overlay,
    seen_mask,
    token_grid,
)
from tests.test_train_images import setting  # noqa: F401


def test_numbers_by_hand():
    """Half of the attention on one of four places, which is the lesion."""
    attention, mask = np.array([[2.0, 1.0], [0.5, 0.5]]), np.array([[1.0, 0.0], [0.0, 0.0]])
    found = compare_maps(attention, mask)
    assert found["share"] == pytest.approx(0.5) and found["area"] == 0.25
    assert found["attention_ratio"] == pytest.approx(0.5 / (0.5 / 3))
    assert found["kl"] == pytest.approx(math.log(1 / 0.5))
    middle = [0.75, 0.125, 0.0625, 0.0625]
    given = zip((0.5, 0.25, 0.125, 0.125), middle, strict=True)
    js = 0.5 * math.log(1 / 0.75) + 0.5 * sum(a * math.log(a / m) for a, m in given)
    assert found["js"] == pytest.approx(js)
    even = compare_maps(np.ones((2, 2)), mask)
    assert even["attention_ratio"] == pytest.approx(1) and even["share"] == pytest.approx(even["area"])
    same = compare_maps(mask + 1e-12, mask)
    assert same["kl"] == pytest.approx(0, abs=1e-6) and same["js"] == pytest.approx(0, abs=1e-6)


def cross_entropy(p, q):
    return -math.fsum(a * math.log(b) for a, b in zip(p.flat, q.flat, strict=True) if a)


def by_entropies(attention, mask):
    """(ratio, KL, JS) by other formulas: weighted means; cross-entropy less entropy; entropy of the mixture."""
    p, q = mask / mask.sum(), attention / attention.sum()
    ratio = np.average(attention, weights=mask) / np.average(attention, weights=1 - mask)
    mixed = cross_entropy((p + q) / 2, (p + q) / 2)
    entropies = cross_entropy(p, p), cross_entropy(q, q)
    return ratio, cross_entropy(p, q) - entropies[0], mixed - sum(entropies) / 2


def test_layers_are_measured_one_by_one():
    """Each metric of each layer and query; a mask with parts of tokens; even attention beside them."""
    rng = np.random.default_rng(0)
    maps = {"prompt": rng.random((3, 12)), "span": rng.random((3, 12)), "mean": rng.random(12)}
    mask = np.array([[1, 0.5, 0, 0], [0.25, 1, 0, 0], [0, 0, 0, 0]])
    found = by_layer(maps, mask)
    for query in ("prompt", "span"):
        for layer in range(3):
            expected = by_entropies(maps[query][layer].reshape(3, 4), mask)
            numbers = [found[query][metric][layer] for metric in ("attention_ratio", "kl", "js")]
            assert numbers == pytest.approx(expected, rel=1e-9)
    even = [found["even"][metric] for metric in ("attention_ratio", "kl", "js")]
    assert [value for (value,) in even] == pytest.approx(by_entropies(np.ones((3, 4)), mask), rel=1e-9)


def test_queries_are_the_last_prompt_token_and_those_that_predict_the_marked_words(setting):  # noqa: F811
    """Read up to each of these tokens alone, the last one attends as it does within the whole answer."""
    model, reader = load_model(setting / "model").eval(), ImageReader(load_processor(setting / "model"))
    slots, tokenizer = ImageSlots(*model.image_slots, reader.processor), load_tokenizer(setting / "model")
    row = {"prompt": "What is it?", "images": ["tiles/red.png"], "rejected": "No <mask>blue</mask>."}
    write_jsonl(setting / "one.jsonl", [row | {"chosen": "It is <mask>red and</mask> so on."}])
    (preference,) = find_images(read_preferences(setting / "one.jsonl"), setting / "one.jsonl")
    pair, plain = encode_plain(preference, tokenizer, slots, 400)
    marked = [i for i, inside in enumerate(pair.chosen_span) if inside]
    assert 0 < marked[0] and 0 < len(marked) < len(pair.chosen) - 2

    def last_of(one, answered):
        tokens = torch.tensor([[*one.prompt, *one.chosen[:answered]]])
        keys = (tokens[0] == model.image_slots[0]).nonzero().flatten()
        return attention_to(model, tokens, torch.tensor([tokens.shape[1] - 1]), keys, reader(one.images))[:, 0].numpy()

    def of(one):
        span = np.mean([last_of(one, answered) for answered in marked], 0)
        return {"prompt": last_of(one, 0), "span": span, "mean": span.mean(0)}

    found, own, other = attention_maps(model, reader, pair, plain), of(pair), of(plain)
    for name in ("prompt", "span", "mean"):
        np.testing.assert_allclose(found[name], own[name] / other[name], rtol=1e-4)
    assert found["prompt"].shape == found["span"].shape and len(found["span"]) == len(model.decoder.layers)
    np.testing.assert_array_equal(attention_map(model, reader, pair, plain), found["mean"])


def test_means_over_records_by_hand(tmp_path):
    """A geometric mean of ratios, means of the others; records of an earlier version have no layers."""
    rows = [
        {"layers": {q: {"attention_ratio": [r], "kl": [k], "js": [0.1]} for q in ("prompt", "span", "even")}}
        for r, k in ((1.0, 2.0), (4.0, 3.0))
    ]
    means = layer_means(rows)
    assert means["span"]["attention_ratio"][0]["value"] == pytest.approx(2.0)
    (kl,) = means["prompt"]["kl"]
    assert kl["value"] == 2.5 and (kl["low"], kl["high"]) == (2.0, 3.0)
    grouped = layer_means(rows, ["a", "a"])["span"]["kl"][0]
    assert grouped["low"] == grouped["high"] == 2.5
    plot_layers(means, "two records", tmp_path / "layers.png")
    with Image.open(tmp_path / "layers.png") as picture:
        assert picture.width > 1000
    assert layer_means([{}]) == layer_means([]) == {}


def test_the_mask_as_the_model_sees_it():
    """CLIP keeps the middle of a broad image; Qwen sees all of it, on a grid of its own shape."""
    mask = np.zeros((40, 80), dtype=bool)
    mask[0:20, 20:40] = True  # the upper left quarter of the middle square
    clip = ClipImageProcessor({"size": {"shortest_edge": 20}, "crop_size": {"height": 20, "width": 20}})
    np.testing.assert_allclose(seen_mask(mask, clip, (2, 2)), [[1, 0], [0, 0]], atol=0.01)
    whole = ClipImageProcessor({"size": {"height": 20, "width": 20}, "do_center_crop": False})
    np.testing.assert_allclose(seen_mask(mask, whole, (2, 4)), [[0, 1, 0, 0], [0, 0, 0, 0]], atol=0.01)
    qwen = QwenVLImageProcessor({"patch_size": 5, "merge_size": 2, "min_pixels": 100, "max_pixels": 10_000})
    np.testing.assert_allclose(seen_mask(mask, qwen, (4, 8)).sum(), 4, atol=0.05)
    with pytest.raises(InputError, match="is not followed back"):
        seen_mask(mask, MllamaImageProcessor({"size": {"height": 20, "width": 20}, "max_image_tiles": 4}), (2, 2))


def test_grids(tmp_path):
    Image.new("RGB", (80, 40)).save(tmp_path / "a.png")
    qwen = QwenVLImageProcessor({"patch_size": 5, "merge_size": 2, "min_pixels": 100, "max_pixels": 10_000})
    assert token_grid(qwen, f"{tmp_path}/a.png", 32) == (4, 8)
    assert token_grid(ClipImageProcessor({}), f"{tmp_path}/a.png", 16) == (4, 4)
    with pytest.raises(InputError, match="no square"):
        token_grid(ClipImageProcessor({}), f"{tmp_path}/a.png", 17)


def test_the_picture_is_red_where_it_looks(tmp_path):
    Image.new("RGB", (40, 40), (90, 90, 90)).save(tmp_path / "a.png")
    whole = ClipImageProcessor({"size": {"height": 40, "width": 40}, "do_center_crop": False})
    pixels = np.asarray(overlay(f"{tmp_path}/a.png", whole, np.array([[0.0, 1.0], [0.0, 0.0]])), dtype=int)
    assert pixels[5, 35, 0] > 150 and pixels[35, 5, 0] == 90


def test_the_command(setting, tmp_path, capsys):  # noqa: F811
    """Every record with a place is measured; the others are left out; none at all is an error."""
    write_radiographs(tmp_path / "set", 1, 1, 6)
    command = ["attention", "--model", f"{setting}/model", "--device", "cpu", "--out", f"{tmp_path}/out"]
    data = tmp_path / "set" / "contrasts.jsonl"
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    assert evaluate.main([*command, "--data", f"{data}", "--name", "tiny"]) == 0
    printed = capsys.readouterr().out
    assert f"{len(rows)} records of {len(rows)}" in printed and "| tiny |" in printed
    looks = [json.loads(line) for line in (tmp_path / "out" / "looks.jsonl").read_text().splitlines()]
    assert [look["id"] for look in looks] == [row["id"] for row in rows]
    assert all(0 < look["share"] < 1 and 0 < look["area"] < 1 and look["js"] > 0 for look in looks)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    ratio = math.exp(np.mean([math.log(look["attention_ratio"]) for look in looks]))
    assert metrics["scores"]["attention_ratio"]["value"] == pytest.approx(ratio)
    spans = np.array([look["layers"]["span"]["kl"] for look in looks])  # [records, layers]
    assert [e["value"] for e in metrics["layers"]["span"]["kl"]] == pytest.approx(list(spans.mean(0)))
    assert "layers.png" in printed and (tmp_path / "out" / "layers.png").is_file()
    assert f"| tiny | {ratio:.2f} (" in printed and f"attention ratio {ratio:.2f}," in printed
    answers = tmp_path / "out" / "answers.jsonl"  # as after an interruption: one record is left
    answers.write_text("".join(answers.read_text().splitlines(keepends=True)[:-1]))
    assert evaluate.main([*command, "--data", f"{data}", "--name", "tiny", "--resume"]) == 0
    assert [json.loads(line) for line in (tmp_path / "out" / "looks.jsonl").read_text().splitlines()] == looks
    capsys.readouterr()
    command[-1] = f"{tmp_path}/none"
    write_jsonl(data, ({key: value for key, value in row.items() if key != "mask"} for row in rows))
    assert evaluate.main([*command, "--data", f"{data}"]) == 2
    assert "no record with images tells where" in capsys.readouterr().err

"""The loop on images: what is trained sees them, what cannot be read is refused before anything trains."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import train
from mint.config import TrainConfig
from mint.data.batch import PROMPT, collate
from mint.data.chat import load_tokenizer
from mint.data.encode import encode_pairs
from mint.data.image_features import ImageReader
from mint.data.images import load_processor
from mint.data.preferences import read_preferences, write_jsonl
from mint.data.record_images import ImageSlots, find_images
from mint.demo.tiny_model import write_base
from mint.errors import FileProblems, InputError
from mint.losses import load_loss
from mint.models import init_model, load_model, save_model
from mint.models.generate import generate
from mint.models.lora import load_adapter
from mint.objective import preference_loss
from mint.training import monitor
from tests.reference import mllama_inputs, qwen3_vl_inputs, qwen_vl_inputs

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220)}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TOWER |= {"image_size": 16, "patch_size": 8}
PATCHES = 4
OTHERS = ("mllama", "qwen2_5_vl", "qwen3_vl")


def records(count):
    names = list(COLOURS)
    for i in range(count):
        name = names[i % 3]
        yield {
            "id": f"tile-{i}",
            "prompt": [{"role": "user", "content": "Which colour is it?"}],
            "images": [f"tiles/{name}.png"],
            "chosen": f"It is {name}.",
            "rejected": f"It is {names[(i + 1) % 3]}.",
        }


@pytest.fixture
def setting(tmp_path):
    """A blank LLaVA, three plain images and pairs that only the image decides."""
    (tmp_path / "tiles").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (20, 16), colour).save(tmp_path / "tiles" / f"{name}.png")
    write_jsonl(tmp_path / "pairs.jsonl", records(12))
    texts = [str(record) for record in records(12)] * 20
    write_base(tmp_path / "model", texts, "demo", 400, vision=TOWER)
    return tmp_path


def arguments(setting, *extra):
    common = ["--model", f"{setting}/model", "--data", f"{setting}/pairs.jsonl", "--out", f"{setting}/run"]
    return [*common, "--device", "cpu", "--batch-size", "6", "--lr", "3e-3", *extra]


def encoded(setting, name="pairs.jsonl"):
    model = load_model(setting / "model")
    slots = ImageSlots(*model.image_slots, load_processor(setting / "model"))
    preferences = find_images(read_preferences(setting / name), setting / name)
    pairs, report = encode_pairs(preferences, load_tokenizer(setting / "model"), 200, slots=slots)
    return model, pairs, report


def test_the_images_of_a_single_record_have_no_bar(setting, monkeypatch, capsys):
    """Records are looked up one by one with --stream, while the bar of the steps is shown."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    preferences = read_preferences(setting / "pairs.jsonl")
    capsys.readouterr()
    assert find_images(preferences[:1], setting / "pairs.jsonl")[0].images == (f"{setting}/tiles/red.png",)
    assert capsys.readouterr().err == ""
    find_images(preferences, setting / "pairs.jsonl")
    assert "images" in capsys.readouterr().err


@pytest.mark.parametrize("loss", ["orpo", "dpo"])
def test_the_image_decides_what_is_learnt(setting, loss):
    """Prompts are the same for all pairs, so without the images no margin could be positive for every pair."""
    assert train.main(arguments(setting, "--loss", loss, "--full", "--steps", "40")) == 0
    last = [json.loads(line) for line in (setting / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["rewards/accuracies"] == 1.0
    assert sorted(path.name for path in (setting / "run" / "model").iterdir()) == sorted(
        ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
        + ["generation_config.json", "preprocessor_config.json", "README.md"]
    )


@pytest.mark.parametrize("targets", ["all-linear", "vision_tower,q_proj"])
def test_samples_see_their_images(setting, targets, monkeypatch):
    """With a frozen vision encoder, whose features are kept, and with one that is trained."""
    monkeypatch.setattr(monitor, "MAX_TOKENS", 6)
    more = ("--lora-targets", targets, "--lora-rank", "4", "--lr", "2e-2", "--steps", "3", "--sample-every", "3")
    assert train.main(arguments(setting, "--loss", "sft", *more)) == 0
    samples = [json.loads(line) for line in (setting / "run" / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["id"]) for row in samples] == [(3, f"tile-{i}") for i in range(3)]
    _, pairs, _ = encoded(setting)
    model = load_adapter(load_model(setting / "model"), setting / "run" / "adapter")
    reader = ImageReader(load_processor(setting / "model"))
    for pair, row in zip(pairs, samples, strict=False):
        images = reader(pair.images)
        tokenizer = load_tokenizer(setting / "model")
        [answer] = generate(model, tokenizer, [pair.prompt], 6, images=lambda _: images)  # noqa: B023
        assert row["answer"] == answer


@pytest.mark.parametrize("family", OTHERS)
def test_the_other_families_learn_from_images_too(setting, family):
    """Through the same command: tiles or patches from the processor, image tokens by size, the loss that falls."""
    become(setting, family)
    assert train.main(arguments(setting, "--loss", "orpo", "--full", "--steps", "60")) == 0
    rows = [json.loads(line) for line in (setting / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["rewards/accuracies"] == 1.0 and rows[-1]["loss"] < 0.5 * rows[0]["loss"]


def become(setting, family):
    """Another model, with random weights, in the place of the LLaVA, whose tokenizer it keeps."""
    folder = setting / "model"
    base = json.loads((folder / "config.json").read_text())
    token = base["image_token_index"]
    text = {**base["text_config"], "tie_word_embeddings": False, "initializer_range": 0.06}
    if family == "mllama":
        text |= {"cross_attention_layers": [1], "rope_parameters": {"rope_theta": 10_000.0}}
        vision = {**mllama_inputs.VISION, "intermediate_layers_indices": [0]}
        config = {"text_config": text, "vision_config": vision, "image_token_index": token}
        processor = {"image_processor_type": "MllamaImageProcessor", **mllama_inputs.PROCESSOR}
    else:
        half = text["hidden_size"] // text["num_attention_heads"] // 2
        text |= {"rope_parameters": {"rope_theta": 10_000.0, "mrope_section": [half - 8, 4, 4]}}
        text["head_dim"] = 2 * half
        vision = qwen_vl_inputs.VISION if family == "qwen2_5_vl" else qwen3_vl_inputs.VISION
        vision = {**vision, "out_hidden_size": text["hidden_size"]}
        config = {"text_config": text, "vision_config": vision, "image_token_id": token}
        processor = {"image_processor_type": "Qwen2VLImageProcessor", **qwen_vl_inputs.PROCESSOR}
    model = init_model({"model_type": family, **config}, seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name and "proj" not in name:
                parameter.fill_(0.5)
    model.source_dir = folder
    save_model(model, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


@pytest.mark.parametrize("family", ["llava", *OTHERS])
def test_changing_the_image_changes_the_loss(setting, family):
    if family != "llava":
        become(setting, family)
    model, pairs, _ = encoded(setting)
    reader = ImageReader(load_processor(setting / "model"))

    def loss(files):
        batch = collate(pairs[:3])
        images = reader([files.get(Path(file).stem, file) for file in batch.image_files])
        return preference_loss(model, replace_images(batch, images), load_loss("orpo")).loss.item()

    other = {"red": str(setting / "tiles" / "blue.png")}
    assert loss({}) == loss({}) and abs(loss(other) - loss({})) > 1e-6


def replace_images(batch, images):
    return replace(batch, images=images)


def test_an_image_is_encoded_once_and_put_into_every_place(setting):
    """Six pairs of three images: three are encoded, and each pair's states are those it has alone."""
    model, pairs, _ = encoded(setting)
    reader = ImageReader(load_processor(setting / "model"))
    batch = collate(pairs[:6])
    images = reader(batch.image_files)
    assert images["pixel_values"].shape == (3, 3, 16, 16) and images["order"].shape == (6,)
    together = model.hidden_states(replace_images(batch, images)).flatten(0, 1)
    for index, pair in enumerate(pairs[:6]):
        alone = collate([pair])
        states = model.hidden_states(replace_images(alone, reader(alone.image_files)))[0]
        mine = (batch.segments.flatten() // 3 == index).nonzero().squeeze(1)
        torch.testing.assert_close(together[mine], states, atol=1e-5, rtol=1e-5)


def test_placeholders_stand_before_the_text_and_are_never_cut(setting):
    model, pairs, _ = encoded(setting)
    token, count = model.image_slots
    assert count == PATCHES and all(pair.prompt.count(token) == PATCHES for pair in pairs)
    first = pairs[0].prompt.index(token)
    assert pairs[0].prompt[first : first + PATCHES] == [token] * PATCHES
    assert "<|image|>" not in load_tokenizer(setting / "model").decode(pairs[0].prompt[first + PATCHES :], False)
    preferences = find_images(read_preferences(setting / "pairs.jsonl"), setting / "pairs.jsonl")
    tokenizer = load_tokenizer(setting / "model")
    slots = ImageSlots(token, count, load_processor(setting / "model"))
    longest = max(map(len, pairs))
    with pytest.raises(InputError, match="12 dropped as longer"):
        encode_pairs(preferences, tokenizer, len(pairs[0].prompt), "truncate-prompt", slots=slots)
    assert encode_pairs(preferences, tokenizer, longest, "truncate-prompt", slots=slots)[1].kept == 12


def test_no_placeholder_is_a_target(setting):
    """With the NLL over the prompt too, its text is predicted, the images are not."""
    model, pairs, _ = encoded(setting)
    batch = collate(pairs[:2], prompt_targets=True)
    prompt = batch.side == PROMPT
    assert int(prompt.sum()) == sum(len(pair.prompt) - 1 - PATCHES for pair in pairs[:2])
    assert not (batch.targets == model.image_slots[0]).any()
    assert train.main(arguments(setting, "--loss", "orpo", "--nll-over", "sequence", "--steps", "2")) == 0


def test_max_pixels_make_fewer_image_tokens(setting, capsys):
    """Records that are too long are reported with their image tokens; the limit is kept with the run's settings."""
    become(setting, "qwen2_5_vl")
    Image.new("RGB", (80, 80), COLOURS["red"]).save(setting / "tiles" / "red.png")
    processor = json.loads((setting / "model" / "preprocessor_config.json").read_text())
    (setting / "model" / "preprocessor_config.json").write_text(json.dumps({**processor, "max_pixels": 10**6}))
    _, pairs, _ = encoded(setting)
    token = load_model(setting / "model").image_slots[0]
    large, small = (pairs[index].prompt.count(token) for index in (0, 1))
    assert large == (80 // (2 * processor["patch_size"])) ** 2 > 4 * small
    total = len(pairs[0].prompt) + max(len(pairs[0].chosen), len(pairs[0].rejected))
    limit = ["--max-length", str(total - 1), "--steps", "1", "--loss", "orpo"]
    assert train.main(arguments(setting, *limit)) == 0
    report = f"4 dropped as longer than --max-length: tile-0 ({large} of {total} tokens are image tokens), tile-3 ("
    found = capsys.readouterr().out
    assert report in found and "; a lower --max-pixels gives fewer image tokens\n" in found
    assert train.main(arguments(setting, *limit, "--overlength", "error", "--out", f"{setting}/other")) == 2
    found = capsys.readouterr().err
    assert f"{total - 1}; a lower --max-pixels gives" in found
    assert f"(tile-0): {total} tokens, {large} of them image tokens" in found
    assert train.main(arguments(setting, *limit, "--max-pixels", "600", "--out", f"{setting}/other")) == 0
    assert "12 pairs\n" in capsys.readouterr().out
    assert "max_pixels = 600\n" in (setting / "other" / "config.toml").read_text()


def test_max_pixels_of_a_model_without_that_notion(setting, capsys):
    assert train.main(arguments(setting, "--max-pixels", "4096")) == 2
    assert "--max-pixels is for Qwen-VL models" in capsys.readouterr().err
    assert train.main(["--max-pixels", "4096"]) == 2
    assert "--max-pixels needs --model" in capsys.readouterr().err
    write_base(setting / "model", [str(record) for record in records(12)] * 20, "demo", 400)
    assert train.main(arguments(setting, "--max-pixels", "4096")) == 2
    assert "--max-pixels is for models that read images" in capsys.readouterr().err


def test_images_of_a_fixed_number_of_tokens_are_reported_without_advice(setting):
    """A LLaVA's image has four tokens, whatever its size."""
    model, pairs, _ = encoded(setting)
    preferences = find_images(read_preferences(setting / "pairs.jsonl"), setting / "pairs.jsonl")
    slots = ImageSlots(*model.image_slots, load_processor(setting / "model"))
    with pytest.raises(InputError) as error:
        encode_pairs(preferences, load_tokenizer(setting / "model"), len(pairs[0].prompt), slots=slots)
    assert f"tile-0 ({PATCHES} of " in str(error.value) and "--max-pixels" not in str(error.value)


def test_a_note_that_names_the_image_token_is_only_text(setting):
    record = next(records(1))
    record["prompt"][0]["content"] = "<|image|> Which <|image|> is it?"
    write_jsonl(setting / "odd.jsonl", [record, {**record, "id": "string", "prompt": "Which <|image|>?"}])
    model, pairs, _ = encoded(setting, "odd.jsonl")
    assert all(pair.prompt.count(model.image_slots[0]) == PATCHES for pair in pairs)


def test_images_that_cannot_be_used_are_named_with_their_lines(setting, capsys):
    """Each bad image gives one message with the record's line, before anything trains."""
    tiles, good = setting / "tiles", next(records(1))
    whole = (tiles / "red.png").read_bytes()
    bad = {
        "empty.png": (b"", "cannot be read"),
        "text.png": (b"no image at all", "cannot be read"),
        "cut.png": (whole[: len(whole) // 2], "cannot be read"),
    }
    for name, (content, _) in bad.items():
        (tiles / name).write_bytes(content)
    Image.new("1", (20_000, 20_000)).save(tiles / "bomb.png")
    outside = setting.parent / "outside.png"
    outside.write_bytes(whole)
    os.symlink(outside, tiles / "link.png")
    named = {f"tiles/{name}": message for name, (_, message) in bad.items()}
    named |= {"tiles/missing.png": "does not exist", "tiles/bomb.png": "more than"}
    named |= {"../outside.png": "outside the folder", "tiles/link.png": "outside the folder"}
    named |= {str(outside): "outside the folder"}
    rows = [{**good, "id": name, "images": [name]} for name in named]
    write_jsonl(setting / "bad.jsonl", [good, *rows])
    with pytest.raises(FileProblems) as error:
        find_images(read_preferences(setting / "bad.jsonl"), setting / "bad.jsonl")
    assert len(error.value.problems) == len(named)
    for line, (problem, message) in enumerate(zip(error.value.problems, named.values(), strict=True), start=2):
        assert problem.startswith(f"{setting / 'bad.jsonl'}:{line}: the image ") and message in problem
    assert train.main(arguments(setting, "--data", f"{setting}/bad.jsonl", "--steps", "1")) == 2
    assert "bad.jsonl:2: the image" in capsys.readouterr().err and not (setting / "run").exists()
    anywhere = find_images(read_preferences(setting / "bad.jsonl")[-1:], setting / "bad.jsonl", anywhere=True)
    assert anywhere[0].images == (str(outside.resolve()),)


def test_a_model_that_reads_no_images_refuses_them(setting):
    write_base(setting / "text", [str(record) for record in records(12)] * 20, "demo", 400)
    config = TrainConfig(
        model=str(setting / "text"), data=str(setting / "pairs.jsonl"), out=str(setting / "run"), steps=1
    )
    with pytest.raises(InputError, match="images, which this model does not read"):
        train.train(config)


def test_a_template_without_images_is_an_error(setting):
    path = setting / "model" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["chat_template"] = "{{ messages[0]['content'][-1]['text'] }}<|eot_id|>"
    path.write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"line 1 \(tile-0\): the chat template writes 0 image tokens for 1 images"):
        encoded(setting)


def test_the_image_reader_is_closed_when_training_fails(setting, monkeypatch):
    closed = []
    monkeypatch.setattr(ImageReader, "close", lambda reader: closed.append(reader))
    monkeypatch.setattr(train, "accumulate_gradients", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.main(arguments(setting, "--steps", "1"))
    assert len(closed) == 1

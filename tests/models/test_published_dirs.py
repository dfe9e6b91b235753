"""Published model directories from end to end, against transformers: template, processor, loading, training, decoding.

The directories hold the published files (old parameter names, templates in two places, nested configurations) and drawn
weights.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import train
from mint.data.batch import collate
from mint.data.chat import load_tokenizer
from mint.data.encode import encode_pairs
from mint.data.image_features import ImageReader
from mint.data.images import load_processor
from mint.data.preferences import read_preferences
from mint.data.record_images import ImageSlots, encode_with_images, find_images
from mint.losses import load_loss
from mint.models import load_model
from mint.models.generate import generate
from mint.models.lora import add_lora, lora_layers
from mint.models.vilt import label_settings
from mint.objective import preference_loss
from tests.reference import published_inputs as published

RECORDS = json.loads((published.HERE / "published.json").read_text())
RESULTS = load_file(published.HERE / "published.safetensors")
TEXT_TARGETS = "language_model"


@pytest.fixture(scope="module", params=published.WRITERS)
def case(request, shared_data, tmp_path_factory):
    """A directory, its model, tokenizer, processor and pair, and the reference numbers."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param) / "model"
    source, record = shared_data / "published_dirs", RECORDS[request.param]
    published.copy_files(source, name, folder)
    published.write_weights(folder, record["shapes"], published.WRITERS[name])
    made = SimpleNamespace(name=name, folder=folder, record=record, model=load_model(folder))
    made.tokenizer, made.processor = load_tokenizer(folder), load_processor(folder)
    made.slots = ImageSlots(*made.model.image_slots, made.processor)
    made.pairs_file = published.record_lines(folder.parent)
    made.image = str(folder.parent / "image.png")
    preferences = find_images(read_preferences(made.pairs_file), made.pairs_file)
    made.pairs, _ = encode_pairs(preferences, made.tokenizer, 2048, slots=made.slots)
    return made


def prompts(case) -> dict[str, list[int]]:
    question = [{"role": "user", "content": published.QUESTION}]
    return {
        "image": encode_with_images(case.tokenizer, question, [case.image], case.slots),
        "text": case.tokenizer.encode_chat(published.TURNS),
    }


def test_prompts_and_answers_have_the_ids_of_transformers(case):
    assert prompts(case) == {what: case.record[f"{what}_ids"] for what in ("image", "text")}
    pair = case.pairs[0]
    assert pair.prompt == case.record["image_ids"]
    assert (pair.chosen, pair.rejected) == (case.record["chosen_ids"], case.record["rejected_ids"])


def test_pixels_and_logits(case):
    made = case.processor([published.image()])
    pixels = made["pixel_values"]
    assert pixels.numel() == torch.tensor(case.record["pixel_shape"]).prod()
    torch.testing.assert_close(published.sample(pixels), RESULTS[f"{case.name}.pixels"], atol=1e-5, rtol=0)
    with torch.no_grad():
        for what, ids in prompts(case).items():
            images = ImageReader(case.processor)([case.image]) if what == "image" else None
            logits = case.model(torch.tensor([ids]), images)[0, -1, :: published.EVERY]
            torch.testing.assert_close(logits, RESULTS[f"{case.name}.{what}.logits"], atol=1e-4, rtol=1e-4)


def test_greedy_answers(case):
    """Both prompts in one batch, one of them without an image."""
    both, reader = prompts(case), ImageReader(case.processor)

    def images(members):
        return reader([case.image for member in members if member == 0]) if 0 in members else None

    answers = generate(case.model, case.tokenizer, list(both.values()), published.NEW_TOKENS, images=images)
    assert answers == [case.record["image_answer"], case.record["text_answer"]]


def test_a_training_step(case):
    """ORPO and DPO under an adapter, the norm of DPO's gradient, and its loss after a step of gradient descent."""
    model = add_lora(load_model(case.folder), published.RANK, published.ALPHA, targets=TEXT_TARGETS)
    parameters = {}
    for name, layer in lora_layers(model).items():
        parameters |= {f"{name}.{part}.weight": getattr(layer, part).weight for part in ("lora_A", "lora_B")}
    shapes = {name: list(parameter.shape) for name, parameter in parameters.items()}
    assert shapes == case.record["adapter_shapes"]
    with torch.no_grad():
        for name, value in published.adapter(shapes).items():
            parameters[name].copy_(value)
    batch, reader = collate(case.pairs), ImageReader(case.processor)
    batch = replace(batch, images=reader(batch.image_files))
    losses = {name: load_loss(name, {"beta": 0.1}) for name in ("orpo", "dpo")}
    with torch.no_grad():
        assert float(preference_loss(model, batch, losses["orpo"]).loss) == pytest.approx(case.record["orpo"], abs=1e-4)
    first = preference_loss(model, batch, losses["dpo"]).loss
    first.backward()
    norm = torch.stack([parameter.grad.norm() for parameter in parameters.values()]).norm()
    with torch.no_grad():
        for parameter in parameters.values():
            parameter -= case.record["learning_rate"] * parameter.grad
        after = preference_loss(model, batch, losses["dpo"]).loss
    found = {"dpo": float(first.detach()), "gradient_norm": float(norm), "dpo_after": float(after)}
    assert found == pytest.approx({name: case.record[name] for name in found}, abs=2e-4)


def test_train_py_starts_from_the_same_loss(case, tmp_path):
    """The command itself: a fresh adapter changes nothing, so ORPO's first loss is the plain model's."""
    arguments = ["--loss", "orpo", "--model", str(case.folder), "--data", str(case.pairs_file), "--steps", "1"]
    assert train.main([*arguments, "--out", str(tmp_path / "run"), "--device", "cpu", "--lora-rank", "2"]) == 0
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert row["loss"] == pytest.approx(case.record["orpo_plain"], abs=1e-4)


@pytest.mark.parametrize("name", published.ENCODERS)
def test_encoders(name, shared_data, tmp_path):
    """CLIP with null and with filled ``*_config_dict``, and ViLT, with their published processors."""
    record = RECORDS[name]
    published.copy_files(shared_data / "published_dirs", name, tmp_path)
    is_vilt = name == "vilt"
    published.write_weights(tmp_path, published.vilt_shapes(record["shapes"]) if is_vilt else record["shapes"], [])
    made = load_processor(tmp_path)([published.image()])
    assert list(made["pixel_values"].shape) == record["pixel_shape"]
    torch.testing.assert_close(published.sample(made["pixel_values"]), RESULTS[f"{name}.pixels"], atol=1e-5, rtol=0)
    ids = torch.tensor(record["ids"])
    with torch.no_grad():
        if is_vilt:
            model = load_model(tmp_path, settings=label_settings(["a", "b"]), fresh=("classifier.", "mlm_score."))
            features = {"pooled": model.vilt(ids, made["pixel_values"], made.get("pixel_mask"), None)}
        else:
            model = load_model(tmp_path)
            features = {"image": model.encode_image(made), "text": model.encode_text(ids)}
    for key, value in features.items():
        torch.testing.assert_close(value, RESULTS[f"{name}.{key}"], atol=1e-5, rtol=1e-4)

"""A frozen image tower reads each image once; a trained one as often as its weights differ."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import train
from mint.config import TrainConfig
from mint.data import image_features
from mint.data.batch import EncodedPair
from mint.data.image_features import FeatureStore, ImageReader, check_image_features, fingerprint, image_reader
from mint.data.images import load_processor
from mint.errors import InputError
from mint.losses import load_loss
from mint.models.lora import add_lora, lora_layers
from mint.objective import preference_loss
from mint.training.forward import Forward
from tests.test_train_images import arguments, become, collate, encoded, replace_images, setting  # noqa: F401

FAMILIES = ("llava", "mllama", "qwen2_5_vl", "qwen3_vl")


def counted(model):
    """How many images the tower has been given, call by call."""
    calls = []
    encode = model._encode

    def count(images):
        calls.append(int(images["order"].max()) + 1 if "order" in images else 1)
        return encode(images)

    model._encode = count
    return calls


def adapted(model, targets):
    add_lora(model, rank=2, alpha=4, targets=targets)
    for i, layer in enumerate(lora_layers(model).values()):
        torch.nn.init.normal_(layer.lora_B.weight, std=0.1, generator=torch.Generator().manual_seed(i))
    return model.train()


@pytest.fixture(params=FAMILIES)
def family(setting, request):  # noqa: F811
    if request.param != "llava":
        become(setting, request.param)
    return setting


def test_a_frozen_tower_reads_each_image_once_for_policy_and_reference(family):
    """Six pairs of three images, four forward passes over answers and references: three images are encoded."""
    model, pairs, _ = encoded(family)
    adapted(model, "all-linear")
    reader = ImageReader(load_processor(family / "model"))
    batch = collate(pairs[:6])
    batch = replace_images(batch, reader(batch.image_files))
    calls = counted(model)
    shared = preference_loss(model, batch, load_loss("dpo"))
    assert calls == [3]
    original = copy.deepcopy(model)
    for layer in lora_layers(original).values():
        torch.nn.init.zeros_(layer.lora_B.weight)
    torch.testing.assert_close(preference_loss(model, batch, load_loss("dpo"), frozen=original).loss, shared.loss)


def test_features_are_what_the_model_sees(family):
    """A reader that encodes gives the losses of one that does not."""
    model, pairs, _ = encoded(family)
    adapted(model, "all-linear")
    processor, batch = load_processor(family / "model"), collate(pairs[:5])
    losses = [
        preference_loss(model, replace_images(batch, reader(batch.image_files)), load_loss("orpo")).loss
        for reader in (ImageReader(processor), image_reader(model, processor, None, family))
    ]
    torch.testing.assert_close(losses[0], losses[1])


def test_a_trained_tower_is_asked_by_policy_and_reference(setting):  # noqa: F811
    model, pairs, _ = encoded(setting)
    adapted(model, "vision_tower")
    reader = image_reader(model, load_processor(setting / "model"), None, setting)
    batch = collate(pairs[:6])
    batch = replace_images(batch, reader(batch.image_files))
    calls = counted(model)
    preference_loss(model, batch, load_loss("dpo")).loss.backward()
    assert calls == [3, 3] and "pixel_values" in batch.images
    with pytest.raises(InputError, match="the vision encoder is trained"):
        check_image_features(model)


def test_features_are_kept_from_one_run_to_the_next(family, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    model, _, _ = encoded(family)
    model.requires_grad_(False)
    processor = load_processor(family / "model")
    files = [str(family / "tiles" / f"{name}.png") for name in ("red", "green", "red")]
    calls = counted(model)
    first = image_reader(model, processor, folder, folder)(files)
    assert calls == [1, 1] and len(list(folder.rglob("*.safetensors"))) == 2
    again = image_reader(model, processor, folder, folder)(files)
    assert calls == [1, 1] and all(torch.equal(value, again[name]) for name, value in first.items())
    Image.new("RGB", (20, 16), (1, 2, 3)).save(files[0])  # other content under the same name
    image_reader(model, processor, folder, folder)(files)
    assert calls == [1] * 3
    for stored in folder.rglob("*.safetensors"):
        stored.write_bytes(stored.read_bytes()[:-50])  # damaged
    image_reader(model, processor, folder, folder)(files)
    assert calls == [1] * 5
    with torch.no_grad():
        next(iter(model.tower.parameters())).add_(1)  # another tower
    image_reader(model, processor, folder, folder)(files)
    assert len(list(folder.iterdir())) == 2


def test_what_the_memory_cannot_hold_is_stored_for_the_run(family, tmp_path_factory, monkeypatch):
    """Room for one image of two: each is encoded once all the same, and nothing is left behind."""
    run = tmp_path_factory.mktemp("run")
    model, _, _ = encoded(family)
    model.requires_grad_(False)
    processor = load_processor(family / "model")
    files = [str(family / "tiles" / f"{name}.png") for name in ("red", "green")]
    size = (
        sum(value.nbytes for value in image_reader(model, processor, None, run)(files[:1]).values()) - 8
    )  # without order
    monkeypatch.setattr(image_features, "KEPT_BYTES", int(1.5 * size))
    calls = counted(model)
    reader = image_reader(model, processor, None, run)
    first = reader(files)
    for _ in range(3):
        again = reader(files)
        assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert calls == [1, 1] and len(list(run.rglob("*.safetensors"))) == 1
    reader.close()
    assert not list(run.iterdir())
    monkeypatch.setattr(image_features, "DISK_SHARE", 0)
    reader(files)
    reader(files)
    assert len(calls) == 4 and not list(run.iterdir())  # a full disk costs time, nothing else


def test_the_store_takes_a_share_of_the_free_disk(tmp_path, monkeypatch, capsys):
    """By hand: of 4,000 bytes, at first free, half: two entries of 900 bytes and not a third, nor in the next run."""
    held = lambda: sum(file.stat().st_size for file in (tmp_path / "features").rglob("*.safetensors"))  # noqa: E731
    monkeypatch.setattr(image_features.shutil, "disk_usage", lambda _: SimpleNamespace(free=4000 - held()))
    entry = {"features": torch.zeros(210)}  # 840 bytes, and a header
    for stored in ([True, True, False, False], [False]):
        store = FeatureStore(tmp_path / "features", lambda: "tower")
        for number, expected in enumerate(stored):
            image = tmp_path / f"{number}.png"
            Image.new("RGB", (4, 4 + number + 10 * len(stored))).save(image)
            assert store.put(str(image), entry) == expected
        assert capsys.readouterr().err.count("which is 50 % of the free disk space; further images are encoded") == 1
    assert len(list((tmp_path / "features").rglob("*"))) == 5  # two files and their folders


def test_images_without_room_in_the_store_are_encoded_each_time(setting, tmp_path_factory, monkeypatch):  # noqa: F811
    """Room for one image of two, and none in memory: the second one costs time, and gives what it gave."""
    folder = tmp_path_factory.mktemp("features")
    model, _, _ = encoded(setting)
    model.requires_grad_(False)
    files = [str(setting / "tiles" / f"{name}.png") for name in ("red", "green")]
    reader = image_reader(model, load_processor(setting / "model"), folder, folder)
    first = reader(files)
    monkeypatch.setattr(image_features, "KEPT_BYTES", 0)
    next(folder.rglob("*.safetensors")).unlink()
    monkeypatch.setattr(image_features, "DISK_SHARE", 0)
    calls = counted(model)
    reader = image_reader(model, load_processor(setting / "model"), folder, folder)
    for _ in range(2):
        again = reader(files)
        assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert calls == [1, 1] and len(list(folder.rglob("*.safetensors"))) == 1


def test_padding_tiles_are_not_stored(setting, tmp_path_factory):  # noqa: F811
    """An image of one tile of four, in a model with the embeddings of published checkpoints: two are stored, not four.

    The second stands for the three padding tiles, to which, as in transformers, the tokens before the image attend.
    """
    become(setting, "mllama")
    folder, (model, pairs, _) = tmp_path_factory.mktemp("features"), encoded(setting)
    adapted(model, "language_model")
    tower, real = model.tower, [0, 1, 2, 3, 4, 2, 4, 3, 4]  # tiles of the aspect ratio of each id
    with torch.no_grad():
        parts = [tower.pre_tile_positional_embedding.embedding, tower.post_tile_positional_embedding.embedding]
        for part in (*parts, tower.gated_positional_embedding.tile_embedding):
            for ratio, tiles in enumerate(real):
                part.weight.view(9, 4, -1)[ratio, tiles:] = 0
    processor, batch = load_processor(setting / "model"), collate(pairs[:3])
    readers = [ImageReader(processor), image_reader(model, processor, folder, folder)]
    batches = [replace_images(batch, reader(batch.image_files)) for reader in readers]
    torch.testing.assert_close(*(preference_loss(model, some, load_loss("dpo")).loss for some in batches))
    stored = [load_file(file) for file in folder.rglob("*.safetensors")]
    assert [len(tensors["features"]) for tensors in stored] == [2, 2, 2]
    assert all(tensors["aspect_ratio_mask"].sum() == 1 and "pixel_values" not in tensors for tensors in stored)


def test_the_features_of_a_run_are_removed_when_it_fails(setting, monkeypatch):  # noqa: F811
    """They are in the run's folder, where the memory has no room for them."""
    monkeypatch.setattr(image_features, "KEPT_BYTES", 0)

    def fail(*_):
        assert list((setting / "run" / "features-overflow").rglob("*.safetensors"))
        raise KeyboardInterrupt

    monkeypatch.setattr("mint.optim.clip_gradients", fail)
    files = {"model": f"{setting}/model", "data": f"{setting}/pairs.jsonl", "out": f"{setting}/run"}
    config = TrainConfig(**files, steps=1, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train.train(config)
    assert not (setting / "run" / "features-overflow").exists()


def test_a_damaged_entry_is_made_again(tmp_path):
    image = tmp_path / "x.png"
    Image.new("RGB", (4, 4)).save(image)
    store = FeatureStore(tmp_path / "features", lambda: "tower")
    assert store.get(str(image)) is None
    store.put(str(image), {"features": torch.arange(6.0).view(2, 3).T})
    assert torch.equal(store.get(str(image))["features"], torch.arange(6.0).view(2, 3).T)
    next((tmp_path / "features").rglob("*.safetensors")).write_bytes(b"cut")
    assert store.get(str(image)) is None
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        FeatureStore(tmp_path / "file", lambda: "tower").put(str(image), {"features": torch.zeros(1)})


def test_a_fingerprint_tells_towers_and_processors_apart(setting):  # noqa: F811
    processor, weight = load_processor(setting / "model"), torch.arange(4.0)
    known = fingerprint([("w", weight)], processor)
    assert known == fingerprint([("w", weight.clone())], load_processor(setting / "model"))
    others = [[("w", weight + 1)], [("v", weight)], [("w", weight.view(2, 2))], [("w", weight.bfloat16())]]
    processor.mean = processor.mean + 0.1
    names = {known, fingerprint([("w", weight)], processor), *(fingerprint(other, processor) for other in others)}
    assert len(names) == 6


def test_runs_share_features(setting, capsys):  # noqa: F811
    """The second run finds them, and learns the same."""
    losses = []
    for out in ("a", "b"):
        more = ["--loss", "dpo", "--steps", "3", "--image-features", f"{setting}/features", "--out", f"{setting}/{out}"]
        assert train.main(arguments(setting, *more)) == 0
        rows = (setting / out / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(row)["loss"] for row in rows])
        assert len(list((setting / "features").rglob("*.safetensors"))) == 3
    assert losses[0] == losses[1]
    more = ["--loss", "dpo", "--full", "--steps", "1", "--image-features", f"{setting}/features"]
    assert train.main(arguments(setting, *more)) == 2
    assert "the vision encoder is trained" in capsys.readouterr().err and not (setting / "run").exists()


def test_images_are_read_ahead_and_encoded_in_the_forward_pass(tmp_path):
    """The thread that collates does not run the model."""
    file = str(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(file)
    pair = EncodedPair("a", [1, 9], [2], [3], images=(file,), image_token=9)

    def read(reader):
        model = SimpleNamespace(head_weight=torch.zeros(1))
        (batch,) = Forward(model, None, 1, images=reader).collate([pair]).batches
        return batch.images

    calls = []

    def processor(images):
        calls.append(len(images))
        return {"pixel_values": torch.ones(len(images), 2)}

    assert read(ImageReader(processor))["pixel_values"].tolist() == [[1, 1]]
    reader = ImageReader(processor, lambda images: {"features": 2 * images["pixel_values"]})
    calls.clear()
    for _ in range(2):  # two steps before the first is computed
        assert read(reader) is None and not reader.holds([file]) and calls == [1]
    reader([file])  # in the forward pass
    assert reader.holds([file]) and read(reader)["features"].tolist() == [[2, 2]] and calls == [1]


def test_few_pixels_wait_to_be_encoded(tmp_path, monkeypatch):
    """Images beyond them are read when they are encoded."""
    files = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for file in files:
        Image.new("RGB", (4, 4)).save(file)
    opened = []
    reader = ImageReader(lambda images: opened.append(1) or {"pixel_values": torch.ones(1, 2)}, lambda images: images)
    monkeypatch.setattr("mint.data.image_features.KEPT_BYTES", 8)
    for _ in range(2):
        reader.read_ahead(files)
        assert len(opened) == 1
    assert len(reader(files)["pixel_values"]) == 2 == len(opened) and not reader._pixels

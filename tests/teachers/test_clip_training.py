"""The contrastive objective by hand, and a CLIP that learns three colours."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import generate_prefs
from mint.data.tiles import Tile
from mint.errors import InputError
from mint.models.clip import Clip
from mint.teachers import clip_training
from mint.teachers.clip_teacher import load_zero_shot
from mint.teachers.clip_training import ClipSettings, contrastive_loss, fit_clip

COLOURS = {"Colon": (200, 60, 60), "Liver": (60, 180, 70), "Lung": (60, 80, 210)}
SETTINGS = ClipSettings(epochs=30, batch_size=12, lr=3e-3)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")
    result = []
    for number in range(12):
        for name, colour in COLOURS.items():
            noise = np.random.default_rng([number, *colour]).normal(0, 30, (16, 16, 3))
            path = folder / f"{name}-{number}.png"
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)
            result.append(Tile(path.stem, path, name, split="train"))
    return result


@pytest.fixture(scope="module")
def small():
    """Towers small enough for a test."""
    with pytest.MonkeyPatch.context() as patch:
        tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        patch.setattr(clip_training, "TOWERS", {"text_config": tower, "vision_config": tower})
        patch.setattr(clip_training, "SIDE", 16)
        yield


def test_the_objective_by_hand():
    """Two pairs with cosines [[1, 0], [0, 1]] and scale s: each row's loss is log(1 + exp(-s))."""
    features, scale = torch.eye(2, dtype=torch.float64), torch.tensor(2.0)
    loss = contrastive_loss(features, features, scale, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))
    shared = contrastive_loss(features, features, scale, torch.tensor([0, 0]))  # each is half of the other's own
    assert shared.item() == pytest.approx(math.log(1 + math.exp(-2)) + 0.5 * 2)


def test_it_learns_and_is_saved_as_a_model_directory(tiles, small, tmp_path):
    teacher = fit_clip(tiles, tmp_path / "clip", SETTINGS, list(COLOURS))
    again = load_zero_shot(tmp_path / "clip", list(COLOURS))
    scores = again.scores(tiles)
    np.testing.assert_allclose(scores, teacher.scores(tiles), atol=1e-5)
    right = [list(COLOURS)[i] == tile.tissue for i, tile in zip(scores.argmax(1), tiles, strict=True)]
    assert np.mean(right) > 0.9 and isinstance(again.model, Clip)
    record = json.loads((tmp_path / "clip" / "fit.json").read_text())
    assert (record["tiles"], record["held_out"]) == (32, 4) and record["epochs"][-1]["held_out_top_1"] > 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]
    with pytest.raises(InputError, match="holds a teacher already"):
        fit_clip(tiles, tmp_path / "clip", SETTINGS, list(COLOURS))


def test_a_seed_decides_the_result(tiles, small, tmp_path):
    short = replace(SETTINGS, epochs=1)
    first, again, other = (
        fit_clip(tiles, tmp_path / name, replace(short, seed=seed), list(COLOURS)).scores(tiles[:3])
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_mistakes(tiles, small, tmp_path):
    for settings in (replace(SETTINGS, epochs=0), replace(SETTINGS, lr=0)):
        with pytest.raises(InputError, match="must be positive"):
            fit_clip(tiles, tmp_path / "clip", settings, list(COLOURS))
    with pytest.raises(InputError, match="at least two tissues"):
        fit_clip(tiles[::3], tmp_path / "clip", SETTINGS, list(COLOURS))
    with pytest.raises(InputError, match="'Lung' of the tiles to train on is not among those to rank"):
        fit_clip(tiles, tmp_path / "clip", SETTINGS, ["Colon", "Liver"])
    assert not list(tmp_path.iterdir())


def test_the_command_fits_and_ranks(tiles, small, tmp_path, capsys):
    table = tiles[0].image.parent / "tiles.csv"
    table.write_text("image,tissue\n" + "".join(f"{tile.image.name},{tile.tissue}\n" for tile in tiles))
    arguments = [
        "clip",
        "--cases",
        str(table),
        "--fit",
        str(tmp_path / "clip"),
        "--teacher-epochs",
        "2",
        "--device",
        "cpu",
    ]
    out = tmp_path / "pairs.jsonl"
    assert generate_prefs.main([*arguments, "--out", str(out), "--top-k", "1", "--bottom-q", "2"]) == 0
    said = capsys.readouterr()
    assert "36 pairs; the true tissue is first in" in said.out and "train.py needs --images-anywhere" in said.out
    assert re.search(r"clip: saved in .*clip after epoch 2/2, loss \d\.\d{3}, held-out top-1 \d+\.\d %\n", said.out)
    epochs = re.findall(r"^clip: epoch (\d)/2, loss \d\.\d{3}, held-out top-1 ", said.err, re.MULTILINE)
    assert epochs == ["1", "2"] and re.search(r"clip: 2/2 steps, .*, loss \d\.\d{3}", said.err)
    assert generate_prefs.main([*arguments, "--out", f"{tmp_path}/again.jsonl"]) == 2
    assert "clip holds a teacher already" in capsys.readouterr().err
    assert generate_prefs.main([*arguments[:3], "--teacher", f"{tmp_path}/clip", "--out", str(out)]) == 2
    assert "pairs.jsonl exists already" in capsys.readouterr().err
    assert len(out.read_text().splitlines()) == 36 and (tmp_path / "clip" / "model.safetensors").is_file()

"""Corrupted images: what changes where, by seed, from masks, boxes, polygons and a CLIP; bad fields by line."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import generate_prefs
from mint.data.preferences import read_preferences, write_jsonl
from mint.models import init_model, save_model
from mint.prefs import saliency
from mint.prefs.contact_sheet import contact_sheet
from mint.prefs.corrupt import MODES, corrupt_image
from mint.prefs.saliency import ClipSaliency, patch_features
from tests.reference.clip_inputs import TINY

SIZE = (60, 40)  # width, height
STRONG, WEAK = 45, 12  # sigma of the noise in the paper, of 255


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "c", "d"):
        Image.fromarray(rng.integers(90, 160, (*SIZE[::-1], 3)).astype(np.uint8)).save(
            tmp_path / "images" / f"{name}.png"
        )
    mask = np.zeros(SIZE[::-1], dtype=np.uint8)
    mask[10:25, 30:50] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    common = {"prompt": "Is there a mass?", "chosen": "Yes.", "rejected": "No."}
    rows = [
        {"id": "a", "images": ["images/a.png"], "mask": "mask.png", **common},
        {"id": "b", "images": ["images/b.png"], "boxes": [[0, 0, 10, 20], [50, 30, 60, 40]], **common},
        {
            "id": "c",
            "images": ["images/c.png"],
            "polygons": [[[20, 10], [40, 10], [40, 30], [20, 30]]],
            "score": 3,
            **common,
        },
        {"id": "d", "images": ["images/d.png"], **common},
        {"id": "text", **common},
    ]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    return tmp_path


def corrupt(folder, *extra):
    out = folder / "out.jsonl"
    out.unlink(missing_ok=True)
    assert generate_prefs.main(["corrupt", "--data", f"{folder}/pairs.jsonl", "--out", str(out), *extra]) == 0
    records = {record.id: record for record in read_preferences(out)}
    changed = {}
    for name, record in records.items():
        if record.images:
            before, after = (
                np.asarray(Image.open(folder / file[0])).astype(int)
                for file in (record.images, record.corrupted_images)
            )
            changed[name] = (after - before, after) if after.shape == before.shape else (None, after)
    return records, changed


def test_only_the_place_of_the_evidence_changes(folder, capsys):
    records, changed = corrupt(folder)
    places = {name: np.zeros(SIZE[::-1], dtype=bool) for name in "abc"}
    places["a"][10:25, 30:50] = True
    places["b"][:20, :10] = places["b"][30:, 50:] = True
    places["c"][10:31, 20:41] = True  # a polygon's edges belong to it
    for name, place in places.items():
        gap = changed[name][0]
        assert not gap[~place].any() and (gap[place] != 0).mean() > 0.97
        assert abs(gap[place].std() - STRONG) < 5 and abs(gap[place].mean()) < 6
    everywhere = changed["d"][0]
    assert abs(everywhere.std() - STRONG) < 2
    assert not records["text"].corrupted_images and records["c"].extra["score"] == 3
    assert json.loads((folder / "out.jsonl").read_text().splitlines()[0])["mask"] == "mask.png"
    with Image.open(folder / "out.jsonl.sheet.png") as sheet:
        assert sheet.width > 600 and sheet.height > 4 * 200
    assert (
        "4 images; 1 by a mask, 1 by boxes, 1 by polygons, 1 over the whole image (no phrase)"
        in capsys.readouterr().out
    )


def test_the_same_seed_gives_the_same_files(folder):
    files = {}
    for run, seed in enumerate((0, 0, 1)):
        corrupt(folder, "--seed", str(seed), "--sheet", "0")
        files[run] = [path.read_bytes() for path in sorted((folder / "out.images").iterdir())]
    assert files[0] == files[1] and all(a != b for a, b in zip(files[0], files[2], strict=True))
    assert not (folder / "out.jsonl.sheet.png").exists()


@pytest.mark.parametrize("mode", MODES)
def test_every_mode(folder, mode):
    _, changed = corrupt(folder, "--mode", mode)
    gap, after = changed["a"]
    inside = np.zeros(SIZE[::-1], dtype=bool)
    inside[10:25, 30:50] = True
    if mode == "crop":
        assert 0.004 < after.shape[0] * after.shape[1] / (SIZE[0] * SIZE[1]) < 0.24
    elif mode in ("global", "weak"):
        assert abs(gap[~inside].std() / {"global": STRONG, "weak": WEAK}[mode] - 1) < 0.05
    else:
        margin = 2 if mode == "surroundings" else 0
        outside = np.ones_like(inside)
        outside[10 - margin : 25 + margin, 30 - margin : 50 + margin] = False
        assert not gap[outside].any() and gap[inside].any()
    if mode == "black":
        assert not after[inside].any()
    if mode == "blur":  # smooth, as bright as what is around
        assert after[inside].std() < 8 and abs(after[inside].mean() - after[~inside].mean()) < 8


def test_surroundings_have_the_grain_of_the_rest_and_nothing_of_the_edge():
    """A bright soft disc on a grainy grey background next to a brighter one is replaced by the background."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[0:100, 0:100]
    away = np.hypot(y - 50, x - 40)
    ground = 100 + 60 * (x > 70) + rng.normal(0, 6, (100, 100))
    film = ground + 80 / (1 + np.exp(away - 12))
    image = Image.fromarray(film.clip(0, 255).astype(np.uint8)).convert("RGB")
    found = np.asarray(corrupt_image(image, away < 13, "surroundings", "x"), dtype=float)
    hole = away < 13
    assert abs(found[hole].mean() - 100) < 2 and abs(found[hole].std() - 6) < 1
    assert (found[..., 0] == found[..., 1]).all() and not np.array_equal(found[hole], np.asarray(image)[hole])
    assert np.array_equal(found[away > 18], np.asarray(image)[away > 18])


@pytest.mark.parametrize("size", [(1, 50), (50, 1), (3, 3), (63, 65), (101, 37)])
def test_surroundings_of_masks_that_leave_little(size):
    pixels = np.full((*size, 3), 90, dtype=np.uint8)
    for known in (0, 1):  # pixels that the mask leaves
        mask = np.ones(size, dtype=bool)
        mask[0, :known] = False
        found = np.asarray(corrupt_image(Image.fromarray(pixels), mask, "surroundings", "x"))
        assert (found == (0 if mask.all() else 90)).all()


def test_surroundings_reach_the_middle_of_a_large_hole():
    """From dark to bright over 200 pixels, 120 of them hidden, beside flat black that must not silence the grain."""
    slope = np.tile(np.linspace(40, 200, 200), (300, 1))
    pixels = slope + np.random.default_rng(0).normal(0, 4, slope.shape)
    pixels[200:] = 0
    mask = np.zeros((300, 200), dtype=bool)
    mask[40:160, 40:160] = True
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert("RGB")
    gap = np.asarray(corrupt_image(image, mask, "surroundings", "x"))[mask][:, 0] - slope[mask]
    assert abs(gap.mean()) < 3 and 3 < gap.std() < 6


def test_surroundings_are_harmonic():
    """A hole between a dark and a bright side is filled with a gradient; no grain is added where there is none."""
    pixels = np.tile(np.linspace(0, 240, 13), (9, 1))[..., None].repeat(3, 2)
    mask = np.zeros((9, 13), dtype=bool)
    mask[3:6, 4:9] = True
    hidden = np.where(mask[..., None], 255, pixels).astype(np.uint8)
    found = np.asarray(corrupt_image(Image.fromarray(hidden), mask, "surroundings", "x"))
    assert np.abs(found.astype(int) - pixels).max() <= 1


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"mask": "none.png"}, "does not exist"),
        ({"mask": "../mask.png"}, "outside the folder"),
        ({"mask": 3}, "must be the name of a file"),
        ({"mask": "images/small.png"}, r"is \(5, 5\), its image \(60, 40\)"),
        ({"boxes": [[1, 2, 3]]}, "boxes of the wrong form"),
        ({"boxes": [["a", 2, 3, 4]]}, "boxes of the wrong form"),
        ({"polygons": [[[1, 2], [3, 4]]]}, "polygons of the wrong form"),
    ],
)
def test_fields_that_cannot_be_used(folder, capsys, fields, message):
    Image.new("L", (5, 5), 255).save(folder / "images" / "small.png")
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    rows[3] |= fields
    write_jsonl(folder / "pairs.jsonl", rows)
    assert generate_prefs.main(["corrupt", "--data", f"{folder}/pairs.jsonl", "--out", f"{folder}/out.jsonl"]) == 2
    error = capsys.readouterr().err
    assert "pairs.jsonl:4:" in error and re.search(message, error) and not (folder / "out.jsonl").exists()


def test_nothing_is_overwritten_and_paths_come_before_the_clip(folder, monkeypatch, capsys):
    command = ["corrupt", "--data", f"{folder}/pairs.jsonl", "--out", f"{folder}/out.jsonl"]
    monkeypatch.setattr(saliency, "ClipSaliency", lambda *_: pytest.fail("loaded before the paths were checked"))
    assert generate_prefs.main([*command, "--clip", f"{folder}"]) == 2
    assert "is not a model directory: config.json is missing" in capsys.readouterr().err
    (folder / "config.json").write_text("{}")
    record = json.loads((folder / "pairs.jsonl").read_text().splitlines()[0]) | {"mask": "missing.png"}
    (folder / "bad.jsonl").write_text(json.dumps(record) + "\n")
    bad = ["corrupt", "--data", f"{folder}/bad.jsonl", "--out", f"{folder}/out.jsonl", "--clip", f"{folder}"]
    assert generate_prefs.main(bad) == 2 and "bad.jsonl:1: " in capsys.readouterr().err
    (folder / "out.jsonl").write_text("mine")
    assert generate_prefs.main(command) == 2
    assert "out.jsonl exists already: delete it, or give another --out" in capsys.readouterr().err
    assert (folder / "out.jsonl").read_text() == "mine" and not (folder / "out.images").exists()


def test_what_has_no_place_can_be_left_alone(folder, capsys):
    command = ["corrupt", "--data", f"{folder}/pairs.jsonl", "--out", f"{folder}/out.jsonl", "--placed-only"]
    assert generate_prefs.main(command) == 0
    assert "1 left alone, without a place" in capsys.readouterr().out
    counts = {"a": 1, "b": 1, "c": 1, "d": 0, "text": 0}
    assert {r.id: len(r.corrupted_images) for r in read_preferences(folder / "out.jsonl")} == counts


def test_noise_without_a_place_is_the_papers(folder, capsys):
    """No phrase: sigma 45 everywhere. A phrase, or a mask, in which nothing was found: sigma 12. Counted apart."""
    row = {"images": ["images/d.png"], "prompt": "Is there a mass?", "chosen": "Yes.", "rejected": "No."}
    Image.new("L", SIZE).save(folder / "empty.png")
    two_views = {"images": ["images/a.png", "images/d.png"], "mask": "mask.png"}
    fields = {
        "no phrase": {},
        "blank": {"phrase": " "},
        "phrase": {"phrase": "a mass"},
        "empty": {"mask": "empty.png"},
        "views": two_views,
        "named views": {**two_views, "phrase": "a mass"},
    }
    write_jsonl(folder / "pairs.jsonl", [{"id": name, **row, **more} for name, more in fields.items()])
    records, changed = corrupt(folder)
    views = {name: records[name].corrupted_images[1] for name in ("views", "named views")}
    clean = np.asarray(Image.open(folder / "images" / "d.png")).astype(int)
    found = {name: gap.std() for name, (gap, _) in changed.items() if "views" not in name}
    found |= {name: (np.asarray(Image.open(folder / file)).astype(int) - clean).std() for name, file in views.items()}
    assert found == {
        **dict.fromkeys(("no phrase", "blank", "views"), pytest.approx(STRONG, rel=0.05)),
        **dict.fromkeys(("phrase", "empty", "named views"), pytest.approx(WEAK, rel=0.05)),
    }
    printed = capsys.readouterr().out
    assert "8 images; " in printed and "2 by a mask" in printed
    assert "3 over the whole image (no phrase)" in printed
    assert "3 weakly over the whole image (phrase not found)" in printed
    corrupt(folder, "--mode", "global")
    assert "8 images; 8 by --mode global" in capsys.readouterr().out


def test_a_clip_is_asked_for_phrases_alone(folder, monkeypatch):
    """For the question where a record has no such field, for nothing where its phrase is blank."""
    asked = []

    class Finder:
        def __init__(self, *_):
            pass

        def __call__(self, image, phrase):
            asked.append(phrase)
            return np.zeros(image.size[::-1], dtype=bool)

    monkeypatch.setattr(saliency, "ClipSaliency", Finder)
    (folder / "config.json").write_text("{}")
    row = {"images": ["images/d.png"], "prompt": "Is there a mass?", "chosen": "Yes.", "rejected": "No."}
    rows = [{"id": "a", **row}, {"id": "b", **row, "phrase": ""}, {"id": "c", **row, "phrase": "mass"}]
    write_jsonl(folder / "pairs.jsonl", rows)
    _, changed = corrupt(folder, "--clip", f"{folder}")
    assert asked == ["Is there a mass?", "mass"]
    assert [round(changed[name][0].std() / 12) for name in "abc"] == [1, 4, 1]


def test_questions_about_one_lesion_share_its_image(folder, monkeypatch):
    """Without chance the work is done once in a row; another mask, another image or noise are done anew."""
    from mint.prefs import corrupt as module

    one = json.loads((folder / "pairs.jsonl").read_text().splitlines()[0])
    boxed = {**{key: value for key, value in one.items() if key != "mask"}, "boxes": [[0, 0, 5, 5]]}
    rows = [one, {**one, "id": "a2"}, {**boxed, "id": "a3"}, {**one, "images": ["images/b.png"], "id": "a4"}]
    write_jsonl(folder / "pairs.jsonl", rows)
    done, own = [], module.corrupt_image
    monkeypatch.setattr(module, "corrupt_image", lambda *given: done.append(given[3]) or own(*given))
    for mode, count in (("blur", 3), ("noise", 4)):
        done.clear()
        records, changed = corrupt(folder, "--mode", mode)
        assert len(done) == count and len(records) == 4
        assert (np.array_equal(changed["a"][1], changed["a2"][1])) == (mode == "blur")
        assert not np.array_equal(changed["a"][1], changed["a3"][1])


def test_records_without_images(folder, capsys):
    write_jsonl(folder / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    assert generate_prefs.main(["corrupt", "--data", f"{folder}/pairs.jsonl", "--out", f"{folder}/out.jsonl"]) == 2
    assert "no record has images" in capsys.readouterr().err


def test_a_clip_finds_the_place(folder, monkeypatch):
    """The tenth of the patches that fit best, followed back through the middle that the processor keeps."""
    from mint.teachers.clip_training import _write_blank

    _write_blank(folder / "clip", ["a mass in the lung", "a medical image"], 0)
    saliency = ClipSaliency(folder / "clip")
    heat = np.zeros((8, 8))
    heat[2, 1:7] = 1  # six of 64 patches
    monkeypatch.setattr(ClipSaliency, "heat", lambda *_: heat)
    mask = saliency(Image.new("RGB", (120, 80)), "a mass")
    rows, columns = np.nonzero(mask)  # the middle 80 x 80, patches of 10: row 2 and columns 1 to 6
    assert (
        mask.shape == (80, 120) and (rows.min(), rows.max()) == (20, 29) and (columns.min(), columns.max()) == (30, 89)
    )
    records, changed = corrupt(folder, "--clip", f"{folder}/clip")
    assert 0 < (changed["d"][0] != 0).any(-1).mean() < 0.2  # no longer everywhere


def test_patch_features_are_the_values_of_the_last_layer():
    """A patch through the value and output projections; the other patches do not matter in the last layer."""
    model = init_model(TINY, seed=3)
    with torch.no_grad():
        last = model.vision_model.encoder.layers[-1]
        pixels = torch.randn(1, 3, 48, 48)
        found = patch_features(model, pixels)[0]
        hidden = model.vision_model.hidden_states(pixels, (len(model.vision_model.encoder.layers) - 1,))[0][0, 1:]
        normed = last.layer_norm1(hidden)
        for place in (0, 5):
            v = last.self_attn["out_proj"](last.self_attn["v_proj"](normed[place]))
            expected = model.visual_projection(model.vision_model.post_layernorm(v))
            torch.testing.assert_close(found[place], expected)
    assert found.shape == (9, TINY["projection_dim"])


def test_the_saliency_needs_a_clip(folder, capsys):
    save_model(init_model(TINY), folder / "bare")
    command = ["corrupt", "--data", f"{folder}/pairs.jsonl", "--out", f"{folder}/out.jsonl", "--clip", f"{folder}/bare"]
    assert generate_prefs.main(command) == 2 and "preprocessor_config.json" in capsys.readouterr().err


def test_the_contact_sheet_has_headings_and_the_noise_level():
    """Columns and rows are labelled, the last column with the level of the noise."""
    plain = Image.new("RGB", (60, 30), (200, 200, 200))
    mask = np.zeros((30, 60), dtype=bool)
    mask[10:20, 20:40] = True
    sheets = {
        (mode, placed): np.asarray(
            contact_sheet({"record": [(plain, mask if placed else None, plain, level)]}, mode, 120)
        )
        for mode, placed, level in (
            ("noise", True, "sigma 45"),
            ("noise", False, "sigma 12"),
            ("blur", True, ""),
            ("blur", False, "sigma 12"),
        )
    }
    sheet = sheets["noise", True]
    assert sheet.shape == (30 + 10 + 120 + 22 + 10, 3 * 130 + 10, 3)
    columns = [slice(10 + 130 * i, 130 + 130 * i) for i in range(3)]
    labels, images = slice(40, 62), slice(62, 122)  # 60 of 120 pixels: the images keep their aspect ratio
    assert all((sheet[:28, column] < 128).any() for column in columns)  # headings
    assert [(sheet[labels, column] < 128).any() for column in columns] == [True, False, True]
    assert (sheet[images, columns[0]] == 200).all() and (sheet[122:, columns[0]] == 255).all()
    assert (sheet[82:102, columns[1]][:, 40:80] != 200).any(-1).all()  # the mask in red
    last = {key: page[labels, columns[2]] for key, page in sheets.items()}
    assert not np.array_equal(last["noise", True], last["noise", False]) and (last["blur", True] == 255).all()
    assert np.array_equal(last["noise", False], last["blur", False])  # weak noise everywhere, whatever the mode

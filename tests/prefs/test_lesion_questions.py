"""Questions from labels and lesion masks: truths by hand, the split by image, bad tables by line, real ultrasounds."""

import json
import tarfile

import numpy as np
import pytest
from PIL import Image

import generate_prefs
from mint.data.preferences import read_preferences
from mint.data.questions import read_questions
from mint.errors import FileProblems, InputError
from mint.prefs.claims import Truth
from mint.prefs.edit_pairs import read_asked
from mint.prefs.lesion_questions import read_lesions, write_lesion_questions
from mint.prefs.rules_editor import contradictions


@pytest.fixture
def table(tmp_path):
    rows = ["image\tmask\tlabel"]
    rng = np.random.default_rng(0)
    for number in range(30):
        label = ("benign", "malignant", "normal")[number % 3]
        mask = np.zeros((40, 60), dtype=np.uint8)
        if label != "normal":
            side = int(rng.integers(5, 22))
            y, x = int(rng.integers(0, 40 - side)), int(rng.integers(0, 60 - side))
            mask[y : y + side, x : x + side] = 255
        Image.fromarray(mask).save(tmp_path / f"m{number}.png")
        Image.new("L", (60, 40), 90).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png\tm{number}.png\t{label}")
    (tmp_path / "labels.tsv").write_text("\n".join(rows) + "\n")
    return tmp_path / "labels.tsv"


def test_the_truth_is_that_of_the_mask(table, tmp_path, capsys):
    assert generate_prefs.main(["questions", "--lesions", str(table)]) == 0
    assert "in lessons.jsonl" in capsys.readouterr().out
    masks = {lesion.image.stem: lesion for lesion in read_lesions(table)}
    asked = [*read_asked(tmp_path / "questions.jsonl"), *read_asked(tmp_path / "test.jsonl")]
    assert not {a.images for a in read_asked(tmp_path / "questions.jsonl")} & {
        a.images for a in read_asked(tmp_path / "test.jsonl")
    }
    for one in asked:
        lesion, (fact,) = masks[one.id.rpartition("-")[0]], one.truth.findings
        assert not contradictions(one.answer, one.truth) and fact.present == (lesion.label != "normal")
        if fact.present:
            y, x = np.nonzero(lesion.mask)
            across, down = (x.mean() + 0.5) / 60 - 0.5, (y.mean() + 0.5) / 40 - 0.5
            assert fact.side == (None if abs(across) < 0.05 else "left" if across < 0 else "right")
            assert fact.zone == (None if abs(down) < 0.05 else "upper" if down < 0 else "lower")
            assert fact.degree == (0 if lesion.mask.mean() < 0.03 else 1 if lesion.mask.mean() < 0.1 else 2)
        if "kind" in one.truth.terms:
            assert lesion.label in one.answer and set(one.truth.kinds["kind"]) == {"benign", "malignant"}
    questions, report = read_questions(tmp_path / "test.jsonl", tmp_path)
    assert all(q.kind == "open" and q.truth for q in questions)
    for pair in read_preferences(tmp_path / "contrasts.jsonl"):
        truth = next(one.truth for one in asked if one.id == pair.id)
        plain = [side.text for side in (pair.chosen, pair.rejected)]
        assert not contradictions(plain[0], truth) and contradictions(plain[1], truth)


def test_by_hand(tmp_path):
    mask = np.zeros((10, 20), dtype=np.uint8)
    mask[7:9, 12:17] = 255  # 10 of 200
    Image.fromarray(mask).save(tmp_path / "m.png")
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("image,mask,label\na.png,m.png,malignant\n")
    write_lesion_questions(tmp_path / "t.csv", tmp_path)
    files = [tmp_path / name for name in ("lessons.jsonl", "questions.jsonl", "test.jsonl")]
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    answers = [row.get("answer", row.get("chosen")) for row in rows]
    assert answers == [
        "There is a lesion on this image.",
        "The lesion is in the lower right part.",
        "The lesion is moderate.",
        "It is a malignant lesion.",
        "There is a moderate malignant lesion in the lower right part.",
    ]


def test_views_have_the_truth_of_their_own_masks(table, tmp_path):
    """Parts that show the lesion, some mirrored; unseen images stay alone; the same seed, the same views."""
    rng = np.random.default_rng(1)
    for number in range(30):  # pixels by which a part is found again
        pixels = rng.integers(0, 200, (40, 60), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    assert generate_prefs.main(["questions", "--lesions", str(table), "--views", "6"]) == 0
    sources = {lesion.image.stem: lesion for lesion in read_lesions(table)}
    asked, mirrored = read_asked(tmp_path / "questions.jsonl"), 0
    shown = {one.images[0]: one for one in asked}
    assert len(shown) == 6 * len({name.split("/")[-1].split("-")[0].removesuffix(".png") for name in shown})
    for name, one in shown.items():
        view = np.asarray(Image.open(tmp_path / name))
        source = sources[(tmp_path / name).stem.split("-")[0]]
        whole = np.asarray(Image.open(source.image))
        if "view" not in name:
            continue
        assert view.shape[0] >= 0.6 * 40 - 1 and view.shape[1] >= 0.6 * 60 - 1
        place = [
            (p, flip) for flip in (False, True) if (p := _find(view[:, ::-1] if flip else view, whole)) is not None
        ]
        ((top, left), flip) = place[0]
        mirrored += flip
        seen = source.mask[top : top + view.shape[0], left : left + view.shape[1]]
        assert seen.sum() >= 0.8 * source.mask.sum()
        (fact,) = one.truth.findings
        if fact.present:
            x = np.nonzero(seen[:, ::-1] if flip else seen)[1]
            across = (x.mean() + 0.5) / view.shape[1] - 0.5
            assert fact.side == (None if abs(across) < 0.05 else "left" if across < 0 else "right")
            kept = np.asarray(Image.open(tmp_path / one.raw["mask"]))
            assert np.array_equal(kept, seen[:, ::-1] if flip else seen)
    assert 0.2 * len(shown) < mirrored < 0.7 * len(shown)
    assert all("view" not in one.images[0] for one in read_asked(tmp_path / "test.jsonl"))
    before = {name: (tmp_path / name).read_bytes() for name in shown}
    write_lesion_questions(table, tmp_path, views=6)
    assert all((tmp_path / name).read_bytes() == content for name, content in before.items())
    with pytest.raises(InputError, match="at least one view"):
        write_lesion_questions(table, tmp_path, views=0)


def _find(part, whole):
    """Where a part lies in the whole, None if nowhere."""
    height, width = part.shape[:2]
    part = part if part.ndim == 2 else part[..., 0]
    for top in range(whole.shape[0] - height + 1):
        for left in range(whole.shape[1] - width + 1):
            if np.array_equal(whole[top : top + height, left : left + width], part):
                return top, left
    return None


def test_tables_that_cannot_be_used(table, tmp_path):
    lines = table.read_text().splitlines()
    Image.new("L", (3, 3)).save(tmp_path / "small.png")
    lines[2] = "none.png\tm1.png\tbenign"
    lines[3] = "2.png\tsmall.png\tbenign"
    lines[4] = "../x.png\tm3.png\tbenign"
    lines[5] = "4.png\t\tbenign"
    table.write_text("\n".join(lines))
    with pytest.raises(FileProblems) as error:
        read_lesions(table)
    wanted = [":3: the image", r":4: the mask is (3, 3)", "lies outside", ":6: image, mask and label"]
    assert all(part in problem for part, problem in zip(wanted, error.value.problems, strict=True))
    table.write_text("image\tlabel\na\tb\n")
    with pytest.raises(InputError, match="needs the columns"):
        read_lesions(table)


def test_another_folder_must_hold_the_images(table, tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="do not lie in"):
        write_lesion_questions(table, tmp_path / "other")


def test_real_ultrasounds(shared_data, tmp_path):
    source = shared_data / "ultrasound_busi"
    if not source.is_dir():
        pytest.skip("the ultrasounds are not present beside the project")
    with tarfile.open(source / "images.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "labels.tsv").write_bytes((source / "labels.tsv").read_bytes())
    counts = write_lesion_questions(tmp_path / "labels.tsv", tmp_path)
    shares = [
        np.argwhere(one.mask).mean(0) / one.mask.shape
        for one in read_lesions(tmp_path / "labels.tsv")
        if one.mask.any()
    ]
    central = sum(bool((abs(share - 0.5) < 0.05).all()) for share in shares)  # neither left nor right, upper nor lower
    assert len(shares) == 457 and central < 30
    asked = sum(counts[name] for name in ("lessons.jsonl", "questions.jsonl", "test.jsonl"))
    assert abs(asked - (5 * 457 + 2 * 96 - central)) <= 1  # half a pixel lies between both ways to find the centre
    for one in read_asked(tmp_path / "test.jsonl"):
        assert not contradictions(one.answer, Truth.from_dict(one.raw["truth"]))

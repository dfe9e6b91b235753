"""Tiles in their three forms, and everything that can be wrong with them."""

import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from mint.data.splits import split_by_patient
from mint.data.tiles import PANNUKE_TISSUES, list_lengths, read_tiles, tissue_messages
from mint.errors import FileProblems, InputError


def picture(path, colour=(200, 120, 160)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


def test_the_folds_of_pannuke(tmp_path):
    """Arrays of floats become images of the same values; its spellings of tissues become their names."""
    fold = tmp_path / "Fold 1" / "images" / "fold1"
    fold.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3))
    np.save(fold / "images.npy", pixels.astype(np.float64))
    np.save(fold / "types.npy", np.array(["Adrenal_gland", "HeadNeck", "Bile-duct"]))
    tiles, report = read_tiles(tmp_path, tmp_path / "tiles")
    assert [tile.tissue for tile in tiles] == ["Adrenal gland", "Head & Neck", "Bile duct"]
    assert len({tile.id for tile in tiles}) == 3 and len(PANNUKE_TISSUES) == 19
    assert all((np.asarray(Image.open(tile.image)) == pixels[i]).all() for i, tile in enumerate(tiles))
    assert str(report) == "3 tiles of 3 tissues (Adrenal gland 1, Bile duct 1, Head & Neck 1)"
    np.save(fold / "images.npy", 255.0 - pixels)  # other arrays in the same place: nothing old is used
    again, _ = read_tiles(tmp_path, tmp_path / "tiles")
    assert all((np.asarray(Image.open(tile.image)) == 255 - pixels[i]).all() for i, tile in enumerate(again))
    with pytest.raises(InputError, match="--tiles DIR"):
        read_tiles(tmp_path)
    np.save(fold / "types.npy", np.array(["Liver"]))
    with pytest.raises(InputError, match=r"shape \(3, 8, 8, 3\), types.npy \(1,\)"):
        read_tiles(tmp_path, tmp_path / "tiles")
    np.save(fold / "types.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):  # pickles are never loaded
        read_tiles(tmp_path, tmp_path / "tiles")


def test_a_folder_for_each_tissue(tmp_path):
    for name in ("colon/a.png", "colon/b.jpg", "soft_tissue/deep/a.png"):
        picture(tmp_path / name)
    (tmp_path / "colon" / "notes.txt").write_text("x")
    tiles, report = read_tiles(tmp_path)
    assert [(tile.id, tile.tissue) for tile in tiles] == [
        ("colon/a.png", "colon"),
        ("colon/b.jpg", "colon"),
        ("soft_tissue/deep/a.png", "soft tissue"),
    ]
    assert str(report).endswith("; 1 files that are no images (passed over)")
    (tmp_path / "colon" / "b.jpg").write_bytes(b"")
    with pytest.raises(FileProblems, match=r"1 problem:\n.*b\.jpg cannot be read"):
        read_tiles(tmp_path)


TABLE = """path\torgan\tslide\tsource_split\textra
a.png\tlung\ts1\ttrain\t1
b.png\tlung\ts2\ttest\t2
c.png\tcolon\ts3\tval\t3
"""


def test_a_folder_of_links(tmp_path):
    """The usual way to make folds: the names are the folder's own, not a record's."""
    picture(tmp_path / "all" / "1.png")
    (tmp_path / "fold" / "colon").mkdir(parents=True)
    (tmp_path / "fold" / "colon" / "1.png").symlink_to(tmp_path / "all" / "1.png")
    (tile,) = read_tiles(tmp_path / "fold")[0]
    assert tile.tissue == "colon"


def test_a_table(tmp_path):
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    (tmp_path / "labels.tsv").write_text(TABLE)
    tiles, _ = read_tiles(tmp_path / "labels.tsv")
    assert read_tiles(tmp_path)[0] == tiles
    assert [(t.id, t.tissue, t.subject, t.split) for t in tiles] == [
        ("a.png", "lung", "s1", "train"),
        ("b.png", "lung", "s2", "test"),
        ("c.png", "colon", "s3", "val"),
    ]
    train, test = split_by_patient(tiles, label=lambda tile: tile.tissue)
    assert [t.id for t in train] == ["a.png"] and [t.id for t in test] == ["b.png", "c.png"]


def test_every_bad_row_is_named(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("in/a.png", "outside.png"):
        picture(tmp_path / name)
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")
    rows = [
        "a.png,lung,",
        "a.png,lung,",
        "../outside.png,lung,",
        "bad.png,lung,",
        "none.png,lung,",
        ",lung,",
        "a.png,,",
    ]
    (tmp_path / "in" / "t.csv").write_text("\n".join(["image,label,split", *rows, "a.png,lung,holdout"]))
    with pytest.raises(FileProblems) as error:
        read_tiles(tmp_path / "in" / "t.csv")
    messages = [
        "also that of t.csv:2",
        "outside the folder",
        "cannot be read",
        "does not exist",
        "no image",
        "no tissue",
        "split 'holdout' is not one of train, dev, val, test",
    ]
    assert len(error.value.problems) == len(messages)
    for line, (problem, message) in enumerate(zip(error.value.problems, messages, strict=True), 3):
        assert f"t.csv:{line}: " in problem and message in problem


@pytest.mark.parametrize(
    "content, message",
    [("image\na.png\n", "missing columns: tissue or organ or label"), ("", "is empty"), ("\xff", "t.csv:1: not UTF-8")],
)
def test_tables_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        read_tiles(tmp_path / "t.csv")


def test_nothing_to_read(tmp_path):
    with pytest.raises(InputError, match="holds no tiles"):
        read_tiles(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_tiles(tmp_path / "x")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(InputError, match="neither a folder nor a table"):
        read_tiles(tmp_path / "x.txt")


def test_the_question(tmp_path):
    (user,) = tissue_messages(["colon", "lung"], 2)
    assert user["role"] == "user" and "colon, lung" in user["content"]
    assert user["content"].endswith("MOST_LIKELY_TISSUE:\n1. 'Tissue1'\n2. 'Tissue2'")
    (user,) = tissue_messages(["colon", "lung"], 1)
    assert "Name the most likely of" in user["content"] and user["content"].endswith(":\n1. 'Tissue1'")
    (user,) = tissue_messages(["colon", "lung"], 5)
    assert "Name the 5 most likely of" in user["content"] and user["content"].endswith(
        "1. 'Tissue1'\n...\n5. 'Tissue5'"
    )


@pytest.mark.parametrize(
    "name, packed, tissues", [("histology_lc25000_lung", "images.tar", 3), ("histology_monuseg", "tiles.tar", 7)]
)
def test_real_tiles(shared_data, tmp_path, name, packed, tissues):
    """Every row of a real table is a tile, and no cluster or slide is in train and test."""
    folder = shared_data / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not present beside the project")
    with tarfile.open(folder / packed) as archive:
        archive.extractall(tmp_path, filter="data")
    shutil.copy(folder / "labels.tsv", tmp_path)
    tiles, report = read_tiles(tmp_path / "labels.tsv")
    assert len(tiles) == len((folder / "labels.tsv").read_text().splitlines()) - 1
    assert len(report.tissues) >= tissues and all(tile.subject for tile in tiles)
    train, test = split_by_patient(tiles, 0.2, label=lambda tile: tile.tissue)
    assert test and not {tile.subject for tile in train} & {tile.subject for tile in test}


def test_how_long_lists_are():
    assert [list_lengths("x" * count) for count in (19, 10, 9, 3, 2)] == [(5, 5), (5, 5), (4, 4), (1, 1), (1, 1)]
    assert list_lengths("x" * 8, top_k=5, bottom_q=3) == (5, 3)
    for wrong in ({"top_k": 5}, {"top_k": 0}, {"bottom_q": 0}):
        with pytest.raises(InputError, match="must each hold one, and not overlap"):
            list_lengths("x" * 8, **wrong)

"""Zero-shot ranking of tissues against features by hand, its pairs, and the command."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import generate_prefs
from mint.data.images import load_processor
from mint.data.phrases import train_phrases
from mint.data.preferences import read_preferences
from mint.data.record_images import find_images
from mint.data.text_encoder import TextEncoder
from mint.data.tiles import Tile
from mint.demo.tiny_model import write_base
from mint.errors import InputError
from mint.models import init_model, load_model, save_model
from mint.prefs.pairs import PairReport, PairSettings, make_pairs
from mint.tasks.tissue import Tissue
from mint.teachers.clip_teacher import load_zero_shot
from tests.reference.clip_inputs import TINY

TISSUES = ["Colon", "Liver", "Lung", "Skin"]
MARKS = ("<|startoftext|>", "<|endoftext|>")


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A CLIP with random weights and its tokenizer, and eight tiles of four tissues."""
    folder = tmp_path_factory.mktemp("setting")
    texts = [f"a tile of {name.lower()} tissue" for name in TISSUES] * 9
    tokenizer = train_phrases(texts, 60, MARKS, f"{MARKS[0]} $A {MARKS[1]}")
    end, size = tokenizer.token_to_id(MARKS[1]), tokenizer.get_vocab_size()
    text = {**TINY["text_config"], "vocab_size": size, "eos_token_id": end, "max_position_embeddings": 20}
    save_model(init_model({**TINY, "text_config": text}, seed=3), folder / "clip")
    tokenizer.save(str(folder / "clip" / "tokenizer.json"))
    crop = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
    processor = {"image_processor_type": "CLIPImageProcessor", **crop}
    (folder / "clip" / "preprocessor_config.json").write_text(json.dumps(processor))
    for name in TISSUES:
        (folder / "tiles" / name).mkdir(parents=True)
        for number in range(2):
            noise = np.random.default_rng([len(name), number]).integers(0, 256, (50, 60, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / "tiles" / name / f"{number}.png")
    return folder


def tiles(setting):
    return [Tile(f"{n}/{i}", setting / "tiles" / n / f"{i}.png", n, split="train") for n in TISSUES for i in range(2)]


def test_scores_are_cosines_with_the_mean_description(setting):
    templates = ["a tile of {} tissue", "{}"]
    teacher = load_zero_shot(setting / "clip", TISSUES, templates)
    model, encoder = load_model(setting / "clip"), TextEncoder(setting / "clip", 20)
    processor = load_processor(setting / "clip")
    scores = teacher.scores(tiles(setting))
    assert scores.shape == (8, 4)
    with torch.no_grad():
        image = model.encode_image(processor([Image.open(tiles(setting)[5].image)]))[0].double()
        for column, name in enumerate(TISSUES):
            ids = [encoder.encode(template.format(name.lower()))[0] for template in templates]
            mean = sum(model.encode_text(torch.tensor([row]))[0].double() for row in ids) / 2
            expected = model.logit_scale.double().exp() * (image @ mean) / mean.norm()
            assert scores[5, column] == pytest.approx(expected.item(), abs=1e-4)
    assert np.allclose(teacher.scores(tiles(setting)[5:6]), scores[5:6], atol=1e-4)
    assert teacher.scores([]).shape == (0, 4)


def test_what_a_text_says_never_ends_it(setting):
    encoder = TextEncoder(setting / "clip", 60)
    ids, cut = encoder.encode("a tile <|endoftext|> of colon")
    assert ids.count(encoder.last) == 1 and ids[-1] == encoder.last and not cut
    ids, cut = encoder.encode("a tile of colon " * 20)
    assert len(ids) == 60 and ids[-1] == encoder.last and cut


class Fixed:
    """A teacher whose scores are given."""

    name, classes = "fixed", ("a", "b", "c", "d")

    def scores(self, tiles, own=None):
        return np.array([[1.0, 4.0, 3.0, 2.0], [9.0, 0.0, 1.0, 2.0]][: len(tiles)])


def test_pairs_by_hand(tmp_path):
    given = [Tile("x", tmp_path / "x.png", "d"), Tile("y", tmp_path.parent / "y.png", "a")]
    report, task = PairReport(), Tissue(Fixed.classes)

    def pairs(report, top_k=2, **settings):
        return make_pairs(task, given, Fixed(), PairSettings(top_k, 2, **settings), report, folder=tmp_path)

    first, second = pairs(report)
    assert (
        first["chosen"] == "MOST_LIKELY_TISSUE:\n1. b\n2. c" and first["rejected"] == "MOST_LIKELY_TISSUE:\n1. d\n2. a"
    )
    assert first["images"] == ["x.png"] and second["images"] == [str(tmp_path.parent / "y.png")]
    assert first["teacher"]["chosen_scores"] == [4.0, 3.0] and first["teacher"]["rejected_scores"] == [2.0, 1.0]
    assert (report.first, report.top, report.bottom, report.known) == (1, 1, 1, 2)
    forced, _ = pairs(PairReport(), label_first=True)
    assert forced["chosen"].splitlines()[1:] == ["1. d", "2. b"] and forced["rejected"].splitlines()[1:] == [
        "1. c",
        "2. a",
    ]
    alone, _ = pairs(PairReport(), answer="disease")
    assert alone["chosen"].splitlines()[1:] == ["1. d"]
    with pytest.raises(InputError, match="top 3 and bottom 2 of 4 tissues"):
        list(pairs(PairReport(), top_k=3))


def test_the_command_writes_pairs_that_train(setting, capsys):
    out = setting / "pairs.jsonl"
    arguments = ["clip", "--cases", str(setting / "tiles"), "--teacher", str(setting / "clip"), "--out", str(out)]
    assert generate_prefs.main([*arguments, "--top-k", "2", "--bottom-q", "2", "--device", "cpu"]) == 0
    assert "8 tiles of 4 tissues" in capsys.readouterr().out
    records = find_images(read_preferences(out), out)
    assert len(records) == 8 and all(len(record.images) == 1 for record in records)
    report = json.loads((setting / "pairs.jsonl.report.json").read_text())
    assert report["pairs"]["pairs"] == 8 and report["cohort"]["tissues"] == TISSUES


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--templates", "{}/bad.txt"], "must hold {} once"),
        (["--tissues", "{}/tissues.txt"], "lacks the tissue 'Colon'"),
        (["--teacher", "{}/text"], "is no CLIP"),
        (["--split", "test"], "the test split is empty"),
    ],
)
def test_mistakes(setting, capsys, extra, message):
    (setting / "bad.txt").write_text("a tile\n")
    (setting / "tissues.txt").write_text("Liver\nLung\n")
    if not (setting / "text").exists():
        write_base(setting / "text", ["a b c"] * 9, "demo", 60)
    single = setting / "single"
    if not single.exists():
        for name in TISSUES:
            (single / name).mkdir(parents=True)
            Image.new("RGB", (9, 9)).save(single / name / "x.png")
    where = single if "--split" in extra else setting / "tiles"
    arguments = ["clip", "--cases", str(where), "--teacher", str(setting / "clip"), "--out", str(setting / "x.jsonl")]
    assert (
        generate_prefs.main([*arguments, "--device", "cpu", *(part.replace("{}/", f"{setting}/") for part in extra)])
        == 2
    )
    assert message in capsys.readouterr().err and not (setting / "x.jsonl").exists()

"""Pairs with corrupted images: one packed step is the loss of four policy and four reference sequences, one by one."""

import pytest
import torch
from PIL import Image

import train
from mint.config import TrainConfig
from mint.data.batch import collate
from mint.data.chat import load_tokenizer
from mint.data.encode import encode_pairs
from mint.data.image_features import ImageReader
from mint.data.images import load_processor
from mint.data.preferences import read_preferences, write_jsonl
from mint.data.record_images import ImageSlots, find_images
from mint.errors import FileProblems
from mint.losses import AnswerStats, load_loss
from mint.models import load_model
from mint.models.lora import reference
from mint.objective import preference_loss
from mint.training.setup import load_policy
from tests.test_image_features import FAMILIES, adapted, counted
from tests.test_train_images import arguments, become, records, replace_images, setting  # noqa: F401

LOSSES = {
    "fire": {"alpha": 0.5, "gamma": 0.4, "lam": 0.3},
    "fire v1": {"alpha": 0.5, "gamma": 0.4, "visual": "v1"},
    "fire v2": {"alpha": 0.5, "gamma": 0.4, "visual": "v2"},
    "fire all": {"alpha": 0.5, "gamma": 0.4, "kl_over": "all"},
    "mdpo": {},
    "mask-dpo": {},
    "dpo": {},
}


@pytest.fixture
def pictured(setting):  # noqa: F811
    """Four pairs with spans; the second has no corrupted image, the third has one of another size."""
    rows = list(records(4))
    for row, corrupted in zip(rows, ("blue", None, "small", "red"), strict=True):
        row["chosen"] = row["chosen"].replace("It is ", "It is <mask>").replace(".", "</mask>.")
        row["rejected"] = row["rejected"].replace("It is ", "It is <mask>").replace(".", "</mask>.")
        if corrupted:
            row["corrupted_images"] = [f"tiles/{corrupted}.png"]
    Image.new("RGB", (9, 14), (90, 90, 90)).save(setting / "tiles" / "small.png")
    write_jsonl(setting / "pairs.jsonl", rows)
    return setting


def load(folder, corrupted):
    model = load_model(folder / "model")
    processor = load_processor(folder / "model")
    slots = ImageSlots(*model.image_slots, processor)
    preferences = find_images(
        read_preferences(folder / "pairs.jsonl"), folder / "pairs.jsonl", corrupted=bool(corrupted)
    )
    pairs, report = encode_pairs(preferences, load_tokenizer(folder / "model"), 400, slots=slots, corrupted=corrupted)
    return adapted(model, "all-linear"), pairs, ImageReader(processor), report


def plain_loss(model, pairs, reader, loss):
    """Each sequence alone, with full logits, and the loss over all pairs."""

    def run(pair, answer):
        logits = model(torch.tensor([pair.prompt + answer]), reader(pair.images))[0, len(pair.prompt) - 1 : -1]
        return logits.log_softmax(-1)

    sides = {}
    for prefix, members in (("", pairs), ("corrupted_", [pair.twin for pair in pairs])):
        for side in ("chosen", "rejected"):
            rows = []
            for pair in members:
                answer = getattr(pair, side) if pair else []
                if not answer:
                    rows.append({})
                    continue
                policy = run(pair, answer)
                with torch.no_grad(), reference(model):
                    ref = run(pair, answer)
                chosen = torch.tensor(answer)[:, None]
                rows.append(
                    {
                        "logps": policy.gather(1, chosen)[:, 0],
                        "ref_logps": ref.gather(1, chosen)[:, 0],
                        "span": torch.tensor(getattr(pair, f"{side}_span")),
                        "kl_forward": (ref.exp() * (ref - policy)).sum(-1),
                        "kl_reverse": (policy.exp() * (policy - ref)).sum(-1),
                        "mask": torch.ones(len(answer), dtype=torch.bool),
                    }
                )
            longest = max((len(row["mask"]) for row in rows if row), default=0)
            if not longest:
                continue

            def dense(name, rows=rows, longest=longest):
                empty = torch.zeros(0, dtype=torch.bool if name in ("mask", "span") else torch.float32)
                padded = [
                    torch.nn.functional.pad(v, (0, longest - len(v))) for v in (row.get(name, empty) for row in rows)
                ]
                return torch.stack(padded)

            names = ("logps", "mask", "ref_logps", "span", "kl_forward", "kl_reverse")
            sides[prefix + side] = AnswerStats(**{name: dense(name) for name in names})
    needed = [f"corrupted_{side}" for side in loss.needs.corrupted_answers]
    return loss(**{name: sides[name] for name in ("chosen", "rejected", *needed)})


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_that_of_single_sequences(pictured, family, name):
    if family != "llava":
        become(pictured, family)
    loss = load_loss(name.split()[0], LOSSES[name])
    wanted = loss.needs.corrupted_answers
    model, pairs, reader, report = load(pictured, wanted)
    assert report.twins == (3 if wanted else None)
    expected = plain_loss(model, pairs, reader, loss)
    expected.loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    for shape in ({}, {"rows": 1}, {"row_length": 400}):
        batch = collate(pairs, **shape)
        found = preference_loss(model, replace_images(batch, reader(batch.image_files)), loss)
        torch.testing.assert_close(found.loss, expected.loss, atol=2e-5, rtol=1e-5)
        for key, value in found.metrics.items():
            torch.testing.assert_close(
                torch.as_tensor(value), torch.as_tensor(expected.metrics[key]), atol=1e-4, rtol=1e-4
            )
    found.loss.backward()
    for ours, theirs in zip((p.grad for p in model.parameters() if p.requires_grad), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_a_step_encodes_two_images_a_pair_and_no_answer_twice(pictured):
    """Three clean images and three corrupted ones, two of which are among the clean; the reference asks for none."""
    loss = load_loss("fire")
    model, pairs, reader, _ = load(pictured, ("chosen", "rejected"))
    calls = counted(model)
    batch = collate(pairs)
    preference_loss(model, replace_images(batch, reader(batch.image_files)), loss).loss.backward()
    assert calls == [4]  # red, green, blue, small
    answers = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
    twins = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs if pair.twin)
    assert len(batch.targets) == answers + twins and batch.pairs == 4 and batch.twins.tolist() == [0, 2, 3]


def test_training_with_corrupted_images(pictured, capsys):
    """Runs that resume, evaluate and accumulate use corrupted images; a loss that does not need them ignores them."""
    more = ["--loss", "fire", "--steps", "2", "--batch-size", "2", "--grad-accum", "2"]
    more += ["--eval-data", f"{pictured}/pairs.jsonl"]
    assert train.main(arguments(pictured, *more)) == 0
    assert "4 pairs, 3 with a corrupted image" in capsys.readouterr().out
    (pictured / "tiles" / "small.png").unlink()
    assert train.main(arguments(pictured, "--loss", "dpo", "--steps", "1", "--out", f"{pictured}/dpo")) == 0
    assert train.main(arguments(pictured, "--loss", "fire", "--steps", "1", "--out", f"{pictured}/b")) == 2
    assert "pairs.jsonl:3: the image" in capsys.readouterr().err
    assert (
        train.main(arguments(pictured, "--loss", "fire", "--gamma", "0", "--steps", "1", "--out", f"{pictured}/c")) == 0
    )


@pytest.mark.parametrize(
    ("loss", "settings", "parts"),
    [
        ("fire", {}, None),
        ("fire", {"lora_targets": "language_model,vision_tower"}, "vision_tower"),
        ("mask-dpo", {"lora_targets": "vision_tower,multi_modal_projector"}, "multi_modal_projector, vision_tower"),
        ("fire", {"full": True}, "multi_modal_projector, vision_tower"),
        ("dpo", {"lora_targets": "vision_tower"}, None),
    ],
)
def test_fire_warns_of_a_trained_vision_encoder(setting, capsys, loss, settings, parts):  # noqa: F811
    """Its authors adapt the language model alone, which is the default."""
    config = TrainConfig(model=str(setting / "model"), loss=loss, **settings)
    load_policy(config, load_loss(loss), torch.device("cpu"), torch.float32)
    found = capsys.readouterr().err
    assert f"warning: this run trains {parts}: the paper" in found if parts else "warning" not in found


def test_corrupted_images_stand_beside_images(pictured):
    rows = list(records(2))
    rows[0]["corrupted_images"] = ["tiles/blue.png"] * 2
    rows[1] = {**rows[1], "images": [], "corrupted_images": ["tiles/blue.png"]}
    write_jsonl(pictured / "bad.jsonl", rows)
    with pytest.raises(FileProblems) as error:
        read_preferences(pictured / "bad.jsonl")
    assert [problem.split(": ", 1)[1] for problem in error.value.problems] == [
        "corrupted_images must hold one for each of images: 2 for 1",
        "corrupted_images must hold one for each of images: 1 for 0",
    ]


def test_a_twin_that_is_too_long_drops_the_pair(pictured):
    become(pictured, "qwen2_5_vl")
    model, pairs, _, _ = load(pictured, ("chosen", "rejected"))
    Image.new("RGB", (64, 64)).save(pictured / "tiles" / "small.png")
    slots = ImageSlots(*model.image_slots, load_processor(pictured / "model"))
    preferences = find_images(read_preferences(pictured / "pairs.jsonl"), pictured / "pairs.jsonl", corrupted=True)
    tokenizer = load_tokenizer(pictured / "model")
    limit = max(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs)
    _, report = encode_pairs(preferences, tokenizer, limit, slots=slots, corrupted=("chosen", "rejected"))
    assert report.dropped == ["tile-2"]

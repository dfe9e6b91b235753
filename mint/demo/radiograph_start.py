"""The embedded default of FiRe-MPO: ``python train.py --loss fire --demo radiograph``.

1. Radiographs are drawn (``radiographs``), with questions about them (``radiograph_set``).
2. A tokenizer and a tiny LLaVA are made, and it is taught the answers to questions about some of them: the policy.
3. It answers questions about others. The rules' editor, which knows the truth, edits every answer minimally; the lesions
   of these images are corrupted. All of this is cached.
4. The chosen loss aligns the policy on its own answers and their edits. It is scored on unseen radiographs, before and
   after: what it says, and whether that rests on the lesion.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from mint.config import TrainConfig
from mint.data.chat import load_tokenizer
from mint.data.images import load_processor
from mint.data.pair_images import ImageReader, find_images
from mint.data.preferences import read_preferences, write_jsonl
from mint.data.vqa import read_questions
from mint.demo.base import TOWER, write_base
from mint.demo.cache import cached
from mint.demo.first_start import Train, align
from mint.demo.radiograph_set import texts, write_set
from mint.evaluation import sensitivity, vqa
from mint.models import load_model
from mint.models.lora import load_adapter, merge_lora
from mint.prefs.corrupt import CorruptReport, corrupt_records
from mint.prefs.edit_pairs import EditReport, edit_pairs, read_asked, rules_editor
from mint.prefs.question_files import write_question_files

TAUGHT, ASKED, UNSEEN = (1500, 30), (500, 31), (150, 32)  # images, and their seed
TEACH = {"steps": 500, "batch_size": 32, "lr": 1e-3, "weight_decay": 0.1, "adam_beta2": 0.95}
ALIGN = {"steps": 150, "batch_size": 16, "lr": 2e-4, "lora_rank": 64, "lora_alpha": 128.0}
ALIGN["lora_targets"] = "language_model,vision_tower,multi_modal_projector"
SOURCES = ["base.py", "radiograph_set.py", "radiograph_start.py", "radiographs.py"]
DECODING = {"max_new_tokens": 60, "batch_size": 64}


def run(config: TrainConfig, train: Train) -> None:
    """Builds or finds the cache, trains with ``config`` (its settings win over ``ALIGN``), prints the table."""
    align(config, train, ALIGN, prepare(train), compare)


def prepare(train: Train) -> Path:
    """The cache, built if it is not there."""
    return cached("radiograph", SOURCES, lambda folder: build(folder, train))


def build(folder: Path, train: Train) -> None:
    """Images, policy, its answers and their edits, corrupted images."""
    drawn = (("taught", TAUGHT), ("asked", ASKED), ("unseen", UNSEEN))
    write_question_files(folder, *(write_set(folder, name, *images) for name, images in drawn))
    write_base(folder / "blank", texts(), "demo", 500, vision=TOWER)
    settings = {"loss": "sft", "full": True, "device": "cpu", "model": str(folder / "blank"), **TEACH}
    run = train(TrainConfig(data=str(folder / "lessons.jsonl"), out=str(folder / "teaching"), **settings))
    (run.path / "model").rename(folder / "model")
    shutil.rmtree(run.path)
    make_pairs(folder)


def make_pairs(folder: Path) -> None:
    """The policy's answers, edited (``edited.jsonl``), with corrupted images beside (``pairs.jsonl``)."""
    questions, _ = read_questions(folder / "questions.jsonl", folder)
    answers = answer(str(folder / "model"), None, questions)
    report, rejects = EditReport(), []
    asked = read_asked(folder / "questions.jsonl")
    write_jsonl(folder / "edited.jsonl", edit_pairs(asked, answers, rules_editor, "rules", report, rejects))
    print(f"pairs: {report}")
    edited = read_preferences(folder / "edited.jsonl")
    located, out, corrupted = find_images(edited, folder / "edited.jsonl"), folder / "pairs.jsonl", CorruptReport()
    rows = [json.loads(line) for line in (folder / "edited.jsonl").read_text(encoding="utf-8").splitlines()]
    names = corrupt_records(located, folder / "edited.jsonl", out, "noise", corrupted)
    write_jsonl(out, ({**row, "corrupted_images": files} for row, (_, files) in zip(rows, names, strict=True)))
    print(f"corrupted: {corrupted}")


def answer(model_dir: str, adapter: Path | None, questions: list) -> list[str]:
    """A model's answers, without random choices."""
    model, tokenizer, reader = load(model_dir, adapter)
    return vqa.answer_questions(model, tokenizer, reader, questions, **DECODING)


def load(model_dir: str, adapter: Path | None) -> tuple:
    """(model with its adapter merged, tokenizer, reader of its images)."""
    model = load_model(model_dir)
    if adapter is not None:
        merge_lora(load_adapter(model, adapter), drop=True)
    return model, load_tokenizer(model_dir), ImageReader(load_processor(model.source_dir))


def compare(config: TrainConfig, folder: Path, cache: Path) -> None:
    """Scores the policy before and after on unseen radiographs; prints the tables, saves them with the run."""
    after = (str(folder / "model"), None) if config.full else (config.model, folder / "adapter")
    lines = []
    for name, (model_dir, adapter) in (("before", (config.model, None)), ("after", after)):
        lines.append(score(name, model_dir, adapter, folder / f"scores-{name}", cache))
    print("\n" + "\n\n".join(lines) + "\n")


def score(name: str, model_dir: str, adapter: Path | None, folder: Path, cache: Path) -> str:
    """The scores of a model on the unseen radiographs, as text; saved in ``folder``."""
    questions, _ = read_questions(cache / "test.jsonl", cache)
    answers = answer(model_dir, adapter, questions)
    scores = [vqa.score_answer(text, question) for text, question in zip(answers, questions, strict=True)]
    means = vqa.summarize(scores, questions)
    vqa.save_answers(folder, name, questions, answers, scores, means, {"images": UNSEEN[0]})
    pairs = find_images(read_preferences(cache / "contrasts.jsonl"), cache / "contrasts.jsonl")
    records = sensitivity.corrupt_both(pairs, cache / "contrasts.jsonl", folder / "images", "noise")
    found = sensitivity.measure(*load(model_dir, adapter), records, batch_size=32)
    looked = sensitivity.summarize(found, {record.id: record.images[0] for record in records["lesion"]})
    sensitivity.save(folder / "sensitivity", name, found, looked, {})
    return f"{vqa.format_means(name, means, None)}\n\n{sensitivity.format_means(name, looked)}"

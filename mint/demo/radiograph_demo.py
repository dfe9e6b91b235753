"""The radiograph demo, of FiRe-MPO: ``python train.py --loss fire --demo radiograph``.

1. Radiographs are drawn (``radiographs``), with questions about them (``radiograph_set``).
2. A tokenizer and a tiny LLaVA are made. It learns to describe radiographs of all kinds of patients, then to answer
   questions about those of one ward, where most findings are large, low and on the left. This is the policy: it reads
   the images, but falls back on the ward's usual finding where it is uncertain.
3. It answers questions about other patients and reports on more. The rule-based editor, which knows the truth, edits
   every answer minimally; the lesions of these images are inpainted. All of this is cached.
4. The loss aligns the policy on its own answers and their edits. It is scored on unseen radiographs before and after:
   the answers, and whether they depend on the lesion.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mint.config import TrainConfig
from mint.data.chat import ChatTokenizer, load_tokenizer
from mint.data.image_features import ImageReader
from mint.data.images import load_processor
from mint.data.preferences import Preference, read_preferences, write_jsonl
from mint.data.questions import read_questions
from mint.data.record_images import find_images
from mint.demo.cache import cached
from mint.demo.stages import CPU, Hardware, Train, align, aligned, load_student, teach
from mint.demo.tiny_model import TOWER, write_base
from mint.evaluation.scores import means_table
from mint.models.llama import CausalLM
from mint.prefs.corrupt import CorruptReport, corrupt_records
from mint.prefs.edit_pairs import Editor, EditReport, edit_pairs, rules_editor
from mint.prefs.question_files import contrasts, lessons, read_asked
from mint.synthetic.radiograph_set import DESCRIBE, SHORT, Wording, write_set
from mint.synthetic.radiographs import EVERYONE, Habit, Patients, alike
from mint.tasks.base import save_results, score_answers
from mint.tasks.compare_page import save_comparison
from mint.tasks.sensitivity import Sensitivity, corrupt_both, measure
from mint.tasks.vqa import Vqa

# radiographs and seed: those described to the model, those of the ward, the unseen ones
SHOWN, TAUGHT, UNSEEN = (5000, 30), (1500, 31), (100, 33)
# radiographs with every question, those with a report only, their seed
ASKED, REPORTED, ASKING = 150, 1000, 32
WARD = alike(Habit(present=(0.7, 0.7), left=0.8, degrees=(0.1, 0.2, 0.7), zones=(0.1, 0.2, 0.7)))
VISION: dict[str, Any] = {**TOWER, "patch_size": 16}
DESCRIBING: dict[str, Any] = {"steps": 1200, "batch_size": 32, "lr": 1e-3, "weight_decay": 0.1, "adam_beta2": 0.95}
TEACH: dict[str, Any] = {**DESCRIBING, "steps": 300}
ALIGN: dict[str, Any] = {"steps": 320, "batch_size": 16, "lr": 1e-4}
ALIGN |= {"lora_rank": 64, "lora_alpha": 128.0, "rslora": True}  # of the language model alone
# A decoder as small as this one forgets its sentences at ALIGN's rate, unless a KL or a likelihood covers the whole
# answer (docs/log.md has DPO and both forms of FiRe).
BETTER: dict[str, dict[str, Any]] = {"fire": {"loss_args": {"kl_over": "all"}}}
BETTER |= dict.fromkeys(("dpo", "mdpo", "mask-dpo", "simpo"), {"lr": 1e-5})
MODE = "surroundings"  # the tower's patches average single pixels' noise away
TIME = "about 7 minutes"
SOURCES: tuple[str, ...] = ("demo/radiograph_demo.py", "demo/stages.py", "demo/tiny_model.py")
SOURCES += ("synthetic/radiograph_set.py", "synthetic/radiographs.py")
COHORT = {"cohort": "unseen radiographs of the demo"}  # setting of the scores
Seeing = tuple[CausalLM, ChatTokenizer, ImageReader]
DECODING: dict[str, Any] = {"max_new_tokens": 60, "batch_size": 64}


def run(config: TrainConfig, train: Train) -> None:
    """Builds or finds the cache, trains with ``config`` (its settings win over ``ALIGN``), prints the table."""
    align(config, train, recipe(config.loss), prepare(train), compare)


def recipe(name: str) -> dict:
    """The settings of the loss ``name``."""
    return ALIGN | BETTER.get(name, {})


def prepare(train: Train) -> Path:
    """The cache, built if it is not there."""
    return cached("radiograph", SOURCES, lambda folder: build(folder, train), TIME)


def build(folder: Path, train: Train) -> None:
    """Images, policy, its answers and their edits, corrupted images."""
    images = SHOWN[0] + TAUGHT[0] + ASKED + REPORTED + UNSEEN[0]
    print(f"1/4 {images} radiographs with questions", flush=True)
    write_lessons(folder, EVERYONE, WARD)
    write_jsonl(folder / "questions.jsonl", write_asked(folder, ASKING))
    write_unseen(folder, *UNSEEN)
    print(f"2/4 a tiny LLaVA learns to describe {SHOWN[0]} radiographs", flush=True)
    describing = teach(folder / "blank", folder / "descriptions.jsonl", DESCRIBING, train, folder / "describing")
    print(f"3/4 it learns to answer questions about {TAUGHT[0]} radiographs of one ward", flush=True)
    teach(describing, folder / "lessons.jsonl", TEACH, train, folder / "model")
    shutil.rmtree(describing)
    print("4/4 it answers questions about other radiographs; its answers are edited, lesions hidden", flush=True)
    make_pairs(folder, folder / "model")


def write_lessons(folder: Path, shown: Patients, taught: Patients, wording: Wording = SHORT) -> None:
    """Draws patients to describe and to ask about (``descriptions.jsonl``, ``lessons.jsonl``); ``blank``: a model."""
    described = reports(write_set(folder, "shown", *SHOWN, shown, masks=False))
    asked = write_set(folder, "taught", *TAUGHT, taught, masks=False, wording=wording)
    write_jsonl(folder / "descriptions.jsonl", lessons(described))
    write_jsonl(folder / "lessons.jsonl", lessons(asked))
    write_base(folder / "blank", texts(asked), "demo", 500, vision=VISION, words=True)


def write_asked(folder: Path, seed: int, patients: Patients = EVERYONE) -> list[dict]:
    """Draws patients; returns the questions for the policy: all about some, reports on others."""
    asked = write_set(folder, "asked", ASKED, seed, patients)
    return asked + reports(write_set(folder, "reported", REPORTED, 1000 + seed, patients))


def write_unseen(folder: Path, count: int, seed: int, patients: Patients = EVERYONE, wording: Wording = SHORT) -> None:
    """Draws patients for evaluation: ``test.jsonl``, ``contrasts.jsonl``."""
    records = write_set(folder, "unseen", count, seed, patients, wording=wording)
    write_jsonl(folder / "test.jsonl", records)
    write_jsonl(folder / "contrasts.jsonl", contrasts(records))


def reports(records: Sequence[dict]) -> list[dict]:
    """Those that ask for a description."""
    return [record for record in records if record["question"] == DESCRIBE]


def texts(records: Sequence[dict]) -> list[str]:
    """What the tokenizer is trained on: questions, answers, roles."""
    return [
        text for record in records for text in (record["question"], record["answer"], "system", "user", "assistant")
    ]


def make_pairs(folder: Path, model: Path) -> None:
    """Writes the policy's answers to a folder's questions, edited, and with corrupted images (``pairs.jsonl``)."""
    rows = edit_answers(folder, model)
    hide_lesions(folder, rows, "pairs", MODE, placed_only=True)  # a denial has no lesion to hide


def edit_answers(
    folder: Path, model: Path, hardware: Hardware = CPU, editor: Editor = rules_editor, name: str = "rules"
) -> list[dict]:
    """Writes the policy's answers to a folder's questions with their edits (``edited.jsonl``), and returns them.

    name: of the editor, in the records.
    """
    file = folder / "questions.jsonl"
    answers = Vqa().ask(load(str(model), None, hardware), read_questions(file, folder)[0], **DECODING)
    report = EditReport()
    rejects: list[dict] = []
    rows = list(edit_pairs(read_asked(file), answers, editor, name, report, rejects))
    write_jsonl(folder / "edited.jsonl", rows)
    print(f"pairs: {report}")
    return rows


def hide_lesions(folder: Path, rows: Sequence[dict], name: str, mode: str, placed_only: bool = False) -> list[dict]:
    """Writes ``rows`` (``edited.jsonl``) with corrupted images as ``NAME.jsonl``, and returns them.

    mode, placed_only: as ``corrupt_records`` takes them.
    """
    edited, out, corrupted = folder / "edited.jsonl", folder / f"{name}.jsonl", CorruptReport()
    located = find_images(read_preferences(edited), edited)
    hidden = corrupt_records(located, edited, out, mode, corrupted, placed_only=placed_only)
    found = [{**row, "corrupted_images": names} for row, (_, names) in zip(rows, hidden, strict=True)]
    write_jsonl(out, found)
    print(f"corrupted: {corrupted}")
    return found


def load(model_dir: str, adapter: Path | None, hardware: Hardware = CPU) -> Seeing:
    """(model with its adapter; tokenizer; reader of its images)."""
    model = load_student(model_dir, adapter, hardware)
    return model, load_tokenizer(model_dir), ImageReader(load_processor(model.source_dir))


def compare(config: TrainConfig, folder: Path, cache: Path) -> None:
    """Scores the policy before and after on unseen radiographs; prints the tables, saves them with the run."""
    records = contrast_images(cache, folder / "contrasts")
    for name, model in (("before", (str(config.model), None)), ("after", aligned(config, folder))):
        print(f"\n{score(name, *model, folder / f'scores-{name}', cache, records)}\n")
    for part, out in (("", folder), ("sensitivity", folder / "sensitivity")):
        runs = [folder / f"scores-{name}" / part for name in ("before", "after")]
        save_comparison(runs, out, images=[cache, folder])
        print(f"page: {out / 'comparison.html'}")


def contrast_images(unseen: Path, folder: Path, mode: str = MODE) -> dict[str, list[Preference]]:
    """The contrasts of the unseen radiographs: the lesion hidden, and another place; images in ``folder``."""
    file = unseen / "contrasts.jsonl"
    return corrupt_both(find_images(read_preferences(file), file), file, folder, mode)


def score(
    name: str,
    model_dir: str,
    adapter: Path | None,
    folder: Path,
    unseen: Path,
    records: dict[str, list[Preference]],
    mode: str = MODE,
    hardware: Hardware = CPU,
) -> str:
    """The scores of a model on the unseen images, as text; saved in ``folder``. records, mode: ``contrast_images``."""
    loaded = load(model_dir, adapter, hardware)
    answered = score_unseen(name, loaded, folder, unseen)
    return f"{answered}\n\n{score_reliance(name, loaded, folder / 'sensitivity', records, mode)}"


def score_unseen(name: str, loaded: Seeing, folder: Path, unseen: Path) -> str:
    """The scores of a model's answers, as text; saved in ``folder``."""
    (questions, _), vqa = read_questions(unseen / "test.jsonl", unseen), Vqa()
    answered = score_answers(vqa, name, questions, vqa.ask(loaded, questions, **DECODING), folder, keep_notes=True)
    save_results(vqa, folder, [answered], COHORT)
    return means_table({name: answered.means}, vqa.columns)


def score_reliance(name: str, loaded: Seeing, folder: Path, records: dict[str, list[Preference]], mode: str) -> str:
    """How much a model relies on the lesion, as text; saved in ``folder``. records, mode: ``contrast_images``."""
    found, sensitivity = {pair.id: pair for pair in measure(*loaded, records, batch_size=32)}, Sensitivity()
    kept = [record for record in records["lesion"] if record.id in found]
    measured = score_answers(sensitivity, name, kept, [found[record.id] for record in kept], folder)
    save_results(sensitivity, folder, [measured], COHORT | {"mode": mode})
    return sensitivity.text([measured])

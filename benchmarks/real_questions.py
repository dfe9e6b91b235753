"""FiRe-MPO on real radiology questions (VQA-RAD): a pretrained decoder, its own answers, their edits, unseen images.

    python -m benchmarks.real_questions --vqa trainset.json --images images --decoder DIR --out OUT [--seeds 3]

The images are split: a half to teach the policy, a quarter to ask it about, a quarter unseen. The policy has the tower
of the embedded default's model for drawn radiographs, and a pretrained Llama behind it. What a linear probe of the
taught tower tells, the organ of an unseen image, is written to ``probes.md``.

A wrong answer is edited into the reference, a right yes or no into its opposite. An open answer that holds all words of
the reference is right and gives no pair, nor does one that would change too much. Nobody has marked the evidence in
these images, so the corrupted ones are black: noise is averaged away by this tower.

Every row is scored with the images of the questions (``own``), and with other images of the same organ (``another``):
what is lost there is what its answers took from the image beyond the organ.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.command import add_hardware, check_study, make_parser, run
from benchmarks.fire.methods import ANSWERS, ON_IMAGES, cell, compare, lead_over, read_scores
from benchmarks.fire.policy import PRETRAINED, join, read_decoder
from benchmarks.fire.probe import tower_features, write_probes
from benchmarks.fire.ward import BASE, RECIPE, TestSet, jobs, read_rows, slug
from mint.cli import choose_device
from mint.data.image_files import open_image
from mint.data.preferences import write_jsonl
from mint.data.questions import Question, read_questions
from mint.demo.arms import Arm, side_by_side
from mint.demo.radiograph_demo import VISION, edit_answers, hide_lesions, load, prepare
from mint.demo.stages import Hardware, teach
from mint.errors import InputError
from mint.files import write_aside
from mint.prefs.edit_pairs import rules_editor
from mint.prefs.question_files import QuestionRecord, ask_again, lessons
from mint.prefs.rules_editor import Edit
from mint.tasks.vqa import score_answer
from train import train

TAUGHT, ASKED = 0.5, 0.25  # shares of the images; the others stay unseen
TEACHING, STEPS, RATE = 250, 120, 1e-5  # steps of 16, of the policy and of a row; the learning rate of all rows
SIDE = VISION["image_size"]  # of the images that the tower reads
FILES = ("vqa", "images", "decoder")  # arguments that name them
VIEWS = OWN, ANOTHER = "own", "another"  # the images that are shown


def compare_rows(args: argparse.Namespace) -> str:
    """Teaches, asks, trains and scores what is missing; returns the tables.

    Raises InputError for no seed, too few images, a decoder that cannot be used, or a folder of another study.
    """
    if args.seeds < 1:
        raise InputError(f"at least one seed, not {args.seeds}")
    out, hardware = Path(args.out), Hardware(choose_device(args.device, args.dtype)[0].type, args.dtype)
    read_decoder(Path(args.decoder))
    files = {name: value and os.path.abspath(value) for name, value in vars(args).items() if name in FILES}
    new = not (out / OWN / "test.jsonl").is_file()
    questions = read_questions(args.vqa, args.images)[0] if new else []
    check_study(out / "study.json", {**files, **hardware._asdict()})
    if new:
        write_parts(questions, out)
    policy = teach_policy(Path(args.decoder), out, hardware)
    if not (out / "pairs.jsonl").is_file():
        hide_lesions(out, edit_answers(out, policy, hardware, edit, "reference"), "pairs", "black")
    common = {**RECIPE, "data": str(out / "pairs.jsonl"), "steps": STEPS, "lr": RATE}
    arms = {BASE: [Arm(BASE, out / BASE, policy, hardware=hardware)]}
    for row, settings in ON_IMAGES.items():
        seeded = {seed: {**common, **settings, "seed": seed} for seed in range(args.seeds)}
        arms[row] = [Arm(row, out / f"seed-{n}" / slug(row), policy, one, hardware) for n, one in seeded.items()]
    by_seed = [arm for some in zip_longest(*arms.values()) for arm in some if arm]
    side_by_side(jobs(by_seed, [TestSet(view, out / view, {}) for view in VIEWS]))
    folders = {view: {row: [arm.folder / view for arm in some] for row, some in arms.items()} for view in VIEWS}
    tables = [f"{view} images\n\n{compare(folders[view], out / f'{view}-images')}" for view in VIEWS]
    tables.append(reliance_table(*folders.values()))
    write_aside(out / "reliance.md", tables[-1])
    return "\n".join(tables)


def reliance_table(own: Mapping[str, list[Path]], another: Mapping[str, list[Path]]) -> str:
    """By how much the answers of each row are better with the questions' own images. row -> folders of its scores."""
    scores = {row: (read_scores(own[row]), read_scores(another[row])) for row in own}
    names = [name for name in ("closed", "open") if all(name in one for some in scores.values() for one in some)]
    lines = [f"| own - another | {' | '.join(ANSWERS[name] for name in names)} |", "|---" * (len(names) + 1) + "|"]
    for row, (ours, theirs) in scores.items():
        gains = [cell(lead_over(ours[name], theirs[name])[0], name, sign="+") for name in names]
        lines.append(f"| {row} | {' | '.join(gains)} |")
    return "\n".join(lines) + "\n"


def write_parts(questions: Sequence[Question], out: Path) -> None:
    """Writes lessons, questions and both test sets, split by image, with images of the tower's size.

    The name of an image decides where it goes. In ``ANOTHER``, every unseen image is the next one of its organ, in the
    order of their names, and the last is the first. Raises InputError for too few images, or two of one name.
    """
    parts: list[list[dict]] = [[], [], []]
    files: list[dict[str, Path]] = [{}, {}, {}]
    folder = Path(os.path.commonpath([question.image.parent.resolve() for question in questions]))
    for question, record in zip(questions, ask_again(questions, folder), strict=True):
        place = int.from_bytes(hashlib.sha256(question.image.name.encode()).digest()[:8], "big") / 2**64
        part = 0 if place < TAUGHT else 1 if place < TAUGHT + ASKED else 2
        name = f"images/{slug(question.image.name)}.png"
        if any(some.get(name, question.image) != question.image for some in files):
            raise InputError(f"{question.image}: another image has nearly the same name")
        files[part][name] = question.image
        more = {"images": [name], "boxes": [[0, 0, SIDE, SIDE]], "image_organ": question.traits.get("image_organ", "")}
        parts[part].append(record | more)
    taught, asked, unseen = parts
    if not taught or not asked or not unseen:
        raise InputError(f"too few images to split: {sum(map(len, files))}")
    write_jsonl(out / "lessons.jsonl", lessons(taught))
    write_jsonl(out / "questions.jsonl", asked)
    shrink(files[0] | files[1], out)
    following = next_of_organ({record["images"][0]: record["image_organ"] for record in unseen})
    for view in (ANOTHER, OWN):  # the last file says that all is there
        shrink({name: files[2][following[name] if view == ANOTHER else name] for name in following}, out / view)
        write_jsonl(out / view / "test.jsonl", unseen)


def next_of_organ(organs: Mapping[str, str]) -> dict[str, str]:
    """Image -> the next one of its organ in the order of their names, after the last the first; itself if alone."""
    by_organ: dict[str, list[str]] = {}
    for name, organ in sorted(organs.items()):
        by_organ.setdefault(organ, []).append(name)
    return {name: some[(i + 1) % len(some)] for some in by_organ.values() for i, name in enumerate(some)}


def shrink(files: Mapping[str, Path], folder: Path) -> None:
    """Writes images in the tower's size. files: name in ``folder`` -> image."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name, image in files.items():
        open_image(image).convert("RGB").resize((SIDE, SIDE)).save(folder / name)


def teach_policy(decoder: Path, out: Path, hardware: Hardware) -> Path:
    """The directory of the policy, from ``out`` if it is there; writes ``probes.md``."""
    policy = out / "policy"
    if not policy.is_dir():
        start = join(prepare(train) / "model", decoder, out / "joined")
        teach(start, out / "lessons.jsonl", {**PRETRAINED, "steps": TEACHING, **hardware._asdict()}, train, policy)
    if not (out / "probes.md").is_file():
        probe_organ(policy, out)
    return policy


def probe_organ(policy: Path, out: Path) -> None:
    """Writes how often a probe of the tower, fitted to the images of the questions, tells the organ of unseen ones."""
    model, _, reader = load(str(policy), None)
    fitted, tested = (read_organs(out / name) for name in ("questions.jsonl", f"{OWN}/test.jsonl"))
    organs = sorted({organ for some in (fitted, tested) for organ in some.values()})

    def features(images: Mapping[str, str]) -> tuple[Tensor, Tensor]:
        classes = torch.tensor([[[organs.index(organ)]] for organ in images.values()])
        return tower_features(model, reader, list(images)), classes

    write_probes(features(fitted), features(tested), "image", ["organ"], out / "probes.md")


def read_organs(file: Path) -> dict[str, str]:
    """Image -> organ."""
    return {str(file.parent / row["images"][0]): row["image_organ"] for row in read_rows(file)}


def edit(pairs: Sequence[tuple[QuestionRecord, str]]) -> Iterator[Edit | None]:
    """The rules where the truth is a yes or no; otherwise a wrong answer becomes the reference."""
    for (asked, answer), by_rules in zip(pairs, rules_editor(pairs), strict=True):
        if asked.truth.answer:
            yield by_rules
        else:
            reference = str(asked.answer)
            right = score_answer(answer, Question(asked.id, Path(), asked.question, reference, "open")).open == 1
            yield None if right or not answer.strip() else Edit(answer, reference, right=False)


def main() -> int:
    parser = make_parser(__doc__, seeds=3)
    add = parser.add_argument
    add("--vqa", required=True, metavar="FILE", help="the questions of VQA-RAD")
    add("--images", metavar="DIR", help="where their images lie (default: beside the file)")
    add("--decoder", required=True, metavar="DIR", help="a pretrained Llama for the policy")
    add_hardware(parser)
    return run(parser, compare_rows)


if __name__ == "__main__":
    sys.exit(main())

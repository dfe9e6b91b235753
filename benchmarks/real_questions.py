"""FiRe-MPO on real radiology questions (VQA-RAD): a pretrained decoder, its own answers, their edits, unseen images.

    python -m benchmarks.real_questions --vqa trainset.json --images images --decoder DIR --out OUT [--seeds 3]

The images are split: a half to teach the policy, a quarter to ask it about, a quarter unseen. The policy has the tower
of the embedded default's model for drawn radiographs, and a pretrained Llama behind it. What a linear probe reads from
the tower, the organ, is written to ``probes.md``. A wrong answer is edited into the reference, a right yes or no into
its opposite. The set names no places, so corrupted images have noise everywhere, as in the paper. Every row is scored
with the images of the questions (``own``) and with those of other patients (``another``), which shows whether its
answers depend on the image at all.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.command import make_parser, run
from benchmarks.fire.methods import ANSWERS, ON_IMAGES, cell, compare, lead_over, read_scores
from benchmarks.fire.policy import PRETRAINED, join
from benchmarks.fire.probe import commonest, probe_facts, probes_table, tower_features
from benchmarks.fire.ward import BASE, RECIPE, read_rows, slug
from mint.cli import choose_device
from mint.data.image_files import open_image
from mint.data.preferences import write_jsonl
from mint.data.questions import Question, read_questions
from mint.demo.arms import Arm, Job, logged, run_arm, side_by_side
from mint.demo.radiograph_demo import VISION, edit_answers, hide_lesions, load, prepare, score_unseen
from mint.demo.stages import Hardware, teach
from mint.errors import InputError
from mint.files import write_aside
from mint.prefs.edit_pairs import rules_editor
from mint.prefs.question_files import QuestionRecord, ask_again, lessons
from mint.prefs.rules_editor import Edit
from mint.tasks.vqa import words
from train import train

TAUGHT, ASKED = 0.5, 0.25  # shares of the images; the others stay unseen
TEACHING, STEPS = 250, 120  # steps of 16: of the policy, of a row
VIEWS = OWN, ANOTHER = "own", "another"  # images of the questions, or of other patients


def compare_rows(args: argparse.Namespace) -> str:
    """Teaches, asks, trains and scores what is missing; returns the tables. Raises InputError for no seed."""
    if args.seeds < 1:
        raise InputError(f"at least one seed, not {args.seeds}")
    out, hardware = Path(args.out), Hardware(choose_device(args.device, args.dtype)[0].type, args.dtype)
    if not (out / OWN / "test.jsonl").is_file():
        write_parts(read_questions(args.vqa, args.images)[0], out)
    policy = teach_policy(Path(args.decoder), out, hardware)
    if not (out / "pairs.jsonl").is_file():
        hide_lesions(out, edit_answers(out, policy, hardware, edit, "reference"), "pairs", "global")
    arms = {BASE: [Arm(BASE, out / BASE, policy, hardware=hardware)]}
    common = {**RECIPE, "data": str(out / "pairs.jsonl"), "steps": STEPS}
    for row, settings in ON_IMAGES.items():
        seeded = {seed: {**common, **settings, "seed": seed} for seed in range(args.seeds)}
        arms[row] = [Arm(row, out / f"seed-{n}" / slug(row), policy, one, hardware) for n, one in seeded.items()]
    by_seed = [arm for some in zip_longest(*arms.values()) for arm in some if arm]
    side_by_side(jobs(by_seed, out))
    folders = {view: {row: [arm.folder / view for arm in some] for row, some in arms.items()} for view in VIEWS}
    tables = [f"{view} images\n\n{compare(folders[view], out / f'{view}-images')}" for view in VIEWS]
    tables.append(reliance_table(*folders.values()))
    write_aside(out / "reliance.md", tables[-1])
    return "\n".join(tables)


def reliance_table(own: Mapping[str, list[Path]], another: Mapping[str, list[Path]]) -> str:
    """By how much the answers of each row are better with the questions' own images. row -> folders of its scores."""
    columns = {name: ANSWERS[name] for name in ("clinical", "open")}
    lines = [f"| own - another | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    for row, folders in own.items():
        ours, theirs = read_scores(folders), read_scores(another[row])
        gains = [cell(lead_over(ours[name], theirs[name])[0], name, sign="+") for name in columns]
        lines.append(f"| {row} | {' | '.join(gains)} |")
    return "\n".join(lines) + "\n"


def write_parts(questions: Sequence[Question], out: Path) -> None:
    """Writes lessons, questions and both test sets, split by image, with images of the tower's size.

    The name of an image decides where it goes. In ``ANOTHER``, every unseen image is the next one in the order of their
    names, and the last is the first. Raises InputError for too few images.
    """
    parts: list[list[dict]] = [[], [], []]
    files: list[dict[str, Path]] = [{}, {}, {}]
    for question, record in zip(questions, ask_again(questions, questions[0].image.parent), strict=True):
        place = int.from_bytes(hashlib.sha256(question.image.name.encode()).digest()[:8], "big") / 2**64
        part = 0 if place < TAUGHT else 1 if place < TAUGHT + ASKED else 2
        name = f"images/{slug(question.image.name)}.png"
        files[part][name] = question.image
        parts[part].append(record | {"images": [name], "image_organ": question.traits.get("image_organ", "")})
    taught, asked, unseen = parts
    if not taught or not asked or len(files[2]) < 2:
        raise InputError(f"too few images to split: {sum(map(len, files))}")
    write_jsonl(out / "lessons.jsonl", lessons(taught))
    write_jsonl(out / "questions.jsonl", asked)
    shrink(files[0] | files[1], out)
    following = dict(zip(names := sorted(files[2]), [*names[1:], names[0]], strict=True))
    for view in (ANOTHER, OWN):  # the last file says that all is there
        shrink({name: files[2][following[name] if view == ANOTHER else name] for name in names}, out / view)
        write_jsonl(out / view / "test.jsonl", unseen)


def shrink(files: dict[str, Path], folder: Path) -> None:
    """Writes images in the tower's size. files: name in ``folder`` -> image."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name, image in files.items():
        open_image(image).convert("RGB").resize((VISION["image_size"],) * 2).save(folder / name)


def teach_policy(decoder: Path, out: Path, hardware: Hardware) -> Path:
    """The directory of the policy, from ``out`` if it is there; writes ``probes.md``."""
    policy = out / "policy"
    if not policy.is_dir():
        start = join(prepare(train) / "model", decoder, out / "joined")
        table = probe_organ(start, out)
        print(table, flush=True)
        write_aside(out / "probes.md", table + "\n")
        teach(start, out / "lessons.jsonl", {**PRETRAINED, "steps": TEACHING, **hardware._asdict()}, train, policy)
    return policy


def probe_organ(model_dir: Path, out: Path) -> str:
    """How often a linear probe of the tower, fitted to the images of the questions, tells the organ of unseen ones."""
    model, _, reader = load(str(model_dir), None)
    fitted, tested = (read_organs(out / name) for name in ("questions.jsonl", f"{OWN}/test.jsonl"))
    organs = sorted({organ for some in (fitted, tested) for organ in some.values()})

    def features(images: dict[str, str]) -> tuple[Tensor, Tensor]:
        classes = torch.tensor([[[organs.index(organ)]] for organ in images.values()])
        return tower_features(model, reader, list(images)), classes

    (seen, unseen), facts = map(features, (fitted, tested)), ["organ"]
    return probes_table(
        {**probe_facts(seen, unseen, ["image"], facts), "commonest": commonest(unseen[1], facts)}, facts
    )


def read_organs(file: Path) -> dict[str, str]:
    """Image -> organ."""
    return {str(file.parent / row["images"][0]): row["image_organ"] for row in read_rows(file)}


def edit(pairs: Sequence[tuple[QuestionRecord, str]]) -> Iterator[Edit | None]:
    """The rules where the truth is a yes or no; otherwise a wrong answer becomes the reference."""
    for (asked, answer), by_rules in zip(pairs, rules_editor(pairs), strict=True):
        if asked.truth.answer:
            yield by_rules
        else:
            right = asked.answer is None or words(answer) == words(asked.answer)
            yield None if right or not answer.strip() else Edit(answer, str(asked.answer), right=False)


def jobs(arms: Sequence[Arm], out: Path) -> list[Job]:
    """What is not trained and scored yet. Raises InputError for an arm that was trained with other settings."""
    for arm in arms:
        arm.check()
    left = [arm for arm in arms if not (arm.folder / ANOTHER / "metrics.json").is_file()]
    return [(f"{arm.name}, {arm.folder}", run_row, (arm, out)) for arm in left]


def run_row(arm: Arm, out: Path) -> None:
    """A job: trains one arm, and scores its answers about the images of the questions and about other ones."""
    run_arm(arm)
    loaded = load(*arm.trained, arm.hardware)
    for view in VIEWS:
        with logged(arm.folder / f"{view}.log"):
            print(score_unseen(arm.name, loaded, arm.folder / view, out / view))


def main() -> int:
    parser = make_parser(__doc__, seeds=3)
    add = parser.add_argument
    add("--vqa", required=True, metavar="FILE", help="the questions of VQA-RAD")
    add("--images", metavar="DIR", help="where their images lie (default: beside the file)")
    add("--decoder", required=True, metavar="DIR", help="a pretrained Llama for the policy")
    add("--device", default="cpu", choices=("auto", "cpu", "cuda"), help="of training and answers (default: cpu)")
    add("--dtype", default="auto", choices=("auto", "bfloat16"), help="auto: answers are in float32 (default)")
    return run(parser, compare_rows)


if __name__ == "__main__":
    sys.exit(main())

"""Style hacking: pairs whose answers differ in form teach the form.

The same records three times: the data set's terse answer against the policy's sentence; the changed words alone; the
policy's own sentence against its minimal edit. DPO learns from each, FiRe from the last. A terse answer is scored with
the finding that the question names, so that its form alone costs nothing. ``style.md`` has the tables, ``style.png``
the curves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.fire.checkpoints import answers_file, answers_table, checkpoint_jobs, plot_answers, saving
from benchmarks.fire.methods import METHODS, OURS
from benchmarks.fire.ward import BASE, TestSet, Ward, read_rows
from mint.data.preferences import write_jsonl
from mint.data.questions import Question, read_questions
from mint.data.spans import Answer
from mint.demo.arms import Arm, side_by_side
from mint.files import file_aside, write_aside
from mint.prefs.claims import DEGREES
from mint.prefs.question_files import QuestionRecord, read_asked
from mint.synthetic.radiograph_set import DESCRIBE
from mint.synthetic.radiographs import SIDES, ZONES
from mint.tasks.pair_style import pair_style, read_answers, style_table
from mint.tasks.vqa import words

ROWS = {  # row -> pairs, method
    "DPO, terse reference chosen": ("terse", "DPO"),
    "DPO, changed words alone": ("bare", "DPO"),
    "DPO, own answers edited": ("own", "DPO"),
    "FiRe, own answers edited": ("own", OURS),
}
SHOWN = {"clinical": "clinical accuracy (%)", "words": "words of an answer", "kl": "KL to the reference (nats)"}
CURVES = {"rewards/accuracies": "preference accuracy", "rewards/margins": "margin", "grad_norm": "gradient norm"}
TERSE = {"no", "a", "an", "zone", *SIDES, *ZONES, *DEGREES[0]}  # words beside the finding
POPULATION = "balanced"
SMOOTH = 10  # steps


def find_style(ward: Ward, rates: Sequence[float]) -> str:
    """Trains and asks what is missing; writes the tables and the figure, and returns the tables.

    rates: learning rates, of which each row has the one with the best clinical accuracy on patients in no table.
    """
    for place in ("tuning", *ward.places):
        write_styles(ward.root / place)
    tried = {row: [arm_of(ward, row, "tuning", rate) for rate in rates] for row in ROWS}
    ask(ward.tuned, [arm for some in tried.values() for arm in some])
    chosen = {row: max(some, key=accuracy).settings["lr"] for row, some in tried.items()}
    arms = {row: [arm_of(ward, row, place, chosen[row]) for place in ward.places] for row in ROWS}
    arms = {BASE: [ward.untrained(ward.root / "style" / BASE)], **arms}
    ask(ward.unseen, [arm for some in arms.values() for arm in some])
    with file_aside(ward.root / "style.png") as aside:
        draw(arms).savefig(aside, dpi=150, bbox_inches="tight")
    lines = ", ".join(f"{row} {rate:g}" for row, rate in chosen.items())
    text = f"{pairs_table(ward)}\n\n{answers_table(arms, SHOWN)}\n\nlearning rates: {lines}\n"
    write_aside(ward.root / "style.md", text)
    return text


def ask(sets: Sequence[TestSet], arms: Sequence[Arm]) -> None:
    """Trains the arms and asks them about balanced patients, all questions but for reports, unless this is done."""
    (test,) = (one for one in sets if one.name == POPULATION)
    questions = [one for one in read_questions(test.folder / "test.jsonl", test.folder)[0] if one.text != DESCRIBE]
    first = test.folder / "answers-short.jsonl"
    write_jsonl(first, [row for row in read_rows(test.folder / "answers.jsonl") if row["prompt"] != DESCRIBE])
    side_by_side(checkpoint_jobs(arms, questions, first, as_scored))


def accuracy(arm: Arm) -> float:
    """Clinical accuracy after the last step."""
    return float(np.mean([row["clinical"] for row in read_rows(answers_file(arm, arm.settings["steps"]))]))


def arm_of(ward: Ward, row: str, place: str, rate: float) -> Arm:
    """A row trained on the pairs in the folder ``place``; for a table's seeds it is asked during training too."""
    pairs, source = ROWS[row]
    saved = saving(ward.steps) if place in ward.places else {"save_every": ward.steps}
    settings = {**METHODS[source], "lr": rate, **saved}
    return ward.arm(row, place, settings, f"style-{pairs}", f"style/{pairs}-{source.lower()}/{rate:g}")


def write_styles(folder: Path) -> None:
    """The records whose two answers both have changed words, in the three forms, unless they are there."""
    if (folder / "style-own.jsonl").is_file():
        return
    asked = {record.id: record for record in read_asked(folder / "questions.jsonl")}
    rows = [row for row in read_rows(folder / "presence.jsonl") if asked[row["id"]].question != DESCRIBE]
    spans = {row["id"]: [changed_words(row[side]) for side in ("chosen", "rejected")] for row in rows}
    rows = [row for row in rows if all(spans[row["id"]])]
    plain = [{**row, "corrupted_images": []} for row in rows]
    bare = [row | dict(zip(("chosen", "rejected"), spans[row["id"]], strict=True)) for row in plain]
    write_jsonl(folder / "style-terse.jsonl", [row | {"chosen": terse(asked[row["id"]])} for row in plain])
    write_jsonl(folder / "style-bare.jsonl", bare)
    write_jsonl(folder / "style-own.jsonl", rows)


def changed_words(tagged: str) -> str:
    """The text inside the marks of an answer."""
    answer = Answer.parse(tagged)
    return " ".join(answer.text[start:stop] for start, stop in answer.spans)


def terse(record: QuestionRecord) -> str:
    """The true answer in as few words as a data set's reference: "no nodule", "left lower zone", "small"."""
    (kind,) = record.truth.about
    (finding,) = (one for one in record.truth.findings if kind in one.names)
    if record.question.startswith("Is there"):
        return kind if finding.present else f"no {kind}"
    if record.question.startswith("Where"):
        return f"{finding.side} {finding.zone} zone" if finding.zone else str(finding.side)
    assert finding.degree is not None
    return DEGREES[0][finding.degree]


def as_scored(answer: str, question: Question) -> str:
    """An answer with the finding that the question names, where its words are only those that terse answers add to it.

    What names no finding otherwise, such as meaningless letters, stays as it is, and does not answer the question.
    """
    assert question.truth is not None
    (kind,) = question.truth["about"]
    said = words(answer)
    only = said and set(said) <= TERSE and re.fullmatch(r"[\w\s.,]+", answer)
    return f"{answer.strip().rstrip('.')} {kind}" if only else answer


def pairs_table(ward: Ward) -> str:
    """How much chosen and rejected answers differ in each form, over all seeds."""
    names = {"terse": "terse reference chosen", "bare": "changed words alone", "own": "own answers edited"}
    files = {form: [ward.root / place / f"style-{form}.jsonl" for place in ward.places] for form in names}
    styles = {form: pair_style(pair for file in some for pair in read_answers(file)) for form, some in files.items()}
    return style_table([(names[form], style) for form, style in styles.items()])


def draw(arms: Mapping[str, Sequence[Arm]]) -> Figure:
    """Panels for the training metrics, the length of answers and their accuracy; lines are means over the seeds."""
    figure = Figure(figsize=(15, 7.5), layout="constrained")
    panels = figure.subplots(2, 3).flatten()
    (base,) = arms[BASE]
    for row, some in ((row, some) for row, some in arms.items() if row != BASE):
        logged = [[line for line in read_rows(arm.folder / "run" / "metrics.jsonl") if "loss" in line] for arm in some]
        for axes, name in zip(panels, CURVES, strict=False):
            values = np.mean([[line[name] for line in lines] for lines in logged], 0)
            smooth = np.convolve(values, np.ones(SMOOTH) / SMOOTH, "valid") if len(values) > SMOOTH else values
            axes.plot(np.arange(len(smooth)) + len(values) - len(smooth) + 1, smooth, label=row)
        for axes, name in zip(panels[len(CURVES) :], ("clinical", "words"), strict=False):
            plot_answers(axes, row, base, some, name)
    for axes, title in zip(panels, [*CURVES.values(), "clinical accuracy", "words of an answer"], strict=False):
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
    panels[2].set_yscale("log")
    panels[-1].axis("off")
    panels[-1].legend(*panels[0].get_legend_handles_labels(), loc="center left")
    return figure

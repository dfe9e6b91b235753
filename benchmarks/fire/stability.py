"""The KL term stabilises long answers. Reports alone, trained for twice as many steps.

Rows: FiRe without the KL term, with it in each direction, in both, and in both over the whole answer. Each at FiRe's
learning rate and at the highest of those tried. As in the paper, a report's corrupted image has noise everywhere.
``stability.md`` has the tables, ``stability.png`` the curves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.fire.checkpoints import answers_table, checkpoint_jobs, last_scores, plot_answers, saving
from benchmarks.fire.grounding import read_rates
from benchmarks.fire.methods import OURS, cell, lead_over
from benchmarks.fire.ward import BASE, Ward, read_rows, slug
from mint.data.preferences import write_jsonl
from mint.data.questions import Question, read_questions
from mint.demo.arms import Arm, logged, side_by_side
from mint.demo.radiograph_demo import hide_lesions
from mint.files import file_aside, write_aside
from mint.prefs.question_files import read_asked
from mint.synthetic.radiograph_set import DESCRIBE

WITHOUT = "no KL"
ROWS = {WITHOUT: {"alpha": 0.0}, "forward KL": {"lam": 1.0}, "reverse KL": {"lam": 0.0}, "both directions": {}}
ROWS |= {"both, on the answer": {"loss_args": {"kl_over": "all"}}}  # not the paper's
LONGER = 2
SHOWN = {"facts": "F1 of facts (%)", "words": "words of a report", "repetition": "repeated (%)", "kl": "KL (nats)"}
POPULATION = "ward"


def find_stability(ward: Ward, rates: Sequence[float]) -> str:
    """Trains and asks what is missing; writes the tables and the figure, and returns the tables. rates: those tried."""
    jobs = [(f"reports of {place}", write_reports, (ward.root / place,)) for place in ward.places]
    side_by_side([job for job in jobs if not (job[2][0] / "reports.jsonl").is_file()])
    tried = sorted({read_rates(ward.root)[OURS], max(rates)})
    arms = {f"{row}, {rate:g}": arms_of(ward, row, rate) for rate in tried for row in ROWS}
    arms = {BASE: [ward.untrained(ward.root / "stability" / BASE)], **arms}
    (test,) = (one for one in ward.unseen if one.name == POPULATION)
    questions = [one for one in read_questions(test.folder / "test.jsonl", test.folder)[0] if one.text == DESCRIBE]
    first = test.folder / "answers-reports.jsonl"
    write_jsonl(first, [row for row in read_rows(test.folder / "answers.jsonl") if row["prompt"] == DESCRIBE])
    side_by_side(checkpoint_jobs([arm for some in arms.values() for arm in some], questions, first, as_written))
    with file_aside(ward.root / "stability.png") as aside:
        draw(arms).savefig(aside, dpi=150, bbox_inches="tight")
    text = f"{answers_table(arms, SHOWN)}\n\n{leads_table(ward, tried)}\n"
    write_aside(ward.root / "stability.md", text)
    return text


def leads_table(ward: Ward, rates: Sequence[float]) -> str:
    """By how much each row is ahead of the one without KL at the same rate, paired by patient and seed."""
    names = ("facts", "kl")
    lines = [f"| over {WITHOUT} | {' | '.join(f'{SHOWN[name]} | p' for name in names)} |", "|---" * 5 + "|"]
    for rate in rates:
        theirs = arms_of(ward, WITHOUT, rate)
        for row in (row for row in ROWS if row != WITHOUT):
            found = [
                lead_over(last_scores(arms_of(ward, row, rate), name), last_scores(theirs, name)) for name in names
            ]
            cells = [f"{cell(e, name, '+')} | {p:.4f}" for name, (e, p) in zip(names, found, strict=True)]
            lines.append(f"| {row}, {rate:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def arms_of(ward: Ward, row: str, rate: float) -> list[Arm]:
    """The arms of a row, one for each seed."""
    settings = {"loss": "fire", **ROWS[row], "lr": rate, **saving(LONGER * ward.steps)}
    folder = f"stability/{slug(row)}/{rate:g}"
    return [ward.arm(row, place, settings, "reports", folder) for place in ward.places]


def write_reports(folder: Path) -> None:
    """A job: the pairs of reports."""
    with logged(folder / "reports.log"):
        wanted = {record.id for record in read_asked(folder / "questions.jsonl") if record.question == DESCRIBE}
        noisy = hide_lesions(folder, read_rows(folder / "edited.jsonl"), "noisy", "global")
        write_jsonl(folder / "reports.jsonl", [row for row in noisy if row["id"] in wanted])


def as_written(answer: str, question: Question) -> str:
    return answer


def draw(arms: Mapping[str, Sequence[Arm]]) -> Figure:
    """Panels for the scores over the steps, on a logarithmic axis: a colour for each row, dashed at the lowest rate."""
    figure = Figure(figsize=(16, 5), layout="constrained")
    panels = figure.subplots(1, len(SHOWN))
    (base,), trained = arms[BASE], [(row, some) for row, some in arms.items() if row != BASE]
    for axes, (name, title) in zip(panels, SHOWN.items(), strict=True):
        for number, (row, some) in enumerate(trained):
            line = "--" if number < len(ROWS) else "-"
            plot_answers(axes, row, base, some, name, color=f"C{number % len(ROWS)}", linestyle=line)
        axes.set(title=title, xlabel="step", xscale="symlog")
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(ROWS), fontsize=8)
    return figure

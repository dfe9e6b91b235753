"""GREEN, a score of radiology reports (Ostmeier et al. 2024, arXiv 2405.03595): a language model compares a report with
its reference, and counts matched findings and clinically significant errors.

The judge is a fine-tuned decoder, such as StanfordAIMI/GREEN-RadLlama2-7b. The wording of ``PROMPT`` and the text of
the conversation are those of its authors' scorer (github.com/Stanford-AIMI/GREEN), which the weights are made for.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mint.evaluation.answers import Answers, stamp
from mint.evaluation.decoding import answer_prompts, load_adapted
from mint.evaluation.scores import Score, mean_score

REPLIES = "green.jsonl"
MAX_NEW_TOKENS = 1024
CATEGORIES = (  # of errors, (a) to (f)
    "false report of a finding",
    "missing finding",
    "wrong location",
    "wrong severity",
    "comparison that the reference lacks",
    "omitted comparison with a prior study",
)
PROMPT = """\
Objective: Evaluate the accuracy of a candidate radiology report in comparison to a reference radiology report \
composed by expert radiologists.

    Process Overview: You will be presented with:

    1. The criteria for making a judgment.
    2. The reference radiology report.
    3. The candidate radiology report.
    4. The desired format for your assessment.

    1. Criteria for Judgment:

    For each candidate report, determine:

    The count of clinically significant errors.
    The count of clinically insignificant errors.

    Errors can fall into one of these categories:

    a) False report of a finding in the candidate.
    b) Missing a finding present in the reference.
    c) Misidentification of a finding's anatomic location/position.
    d) Misassessment of the severity of a finding.
    e) Mentioning a comparison that isn't in the reference.
    f) Omitting a comparison detailing a change from a prior study.
    Note: Concentrate on the clinical findings rather than the report's writing style. Evaluate only the findings that \
appear in both reports.

    2. Reference Report:
    %s

    3. Candidate Report:
    %s

    4. Reporting Your Assessment:

    Follow this specific format for your output, even if no errors are found:
    ```
    [Explanation]:
    <Explanation>

    [Clinically Significant Errors]:
    (a) <Error Type>: <The number of errors>. <Error 1>; <Error 2>; ...; <Error n>
    ....
    (f) <Error Type>: <The number of errors>. <Error 1>; <Error 2>; ...; <Error n>

    [Clinically Insignificant Errors]:
    (a) <Error Type>: <The number of errors>. <Error 1>; <Error 2>; ...; <Error n>
    ....
    (f) <Error Type>: <The number of errors>. <Error 1>; <Error 2>; ...; <Error n>

    [Matched Findings]:
    <The number of matched findings>. <Finding 1>; <Finding 2>; ...; <Finding n>
    ```
"""
# The scorer puts an empty answer before the one that it asks for.
TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|user|>\\n' if message['role'] == 'user' else '<|assistant|>\\n' }}"
    "{{- message['content'] + eos_token + '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' + eos_token + '\\n<|assistant|>\\n' }}{%- endif -%}"
)
SECTION = r"\[\s*{}\s*\][\s:*]*(.*?)(?=\n[\s*]*\[|\Z)"  # up to the next heading
SIGNIFICANT, MATCHED = (
    re.compile(SECTION.format(name), re.IGNORECASE | re.DOTALL)
    for name in (r"clinically\s+significant\s+errors", r"matched\s+findings")
)
ERROR_LINE = re.compile(r"^[\s*-]*\(([a-f1-6])\)[^:\n]*:[\s*]*(\d+)\b", re.IGNORECASE | re.MULTILINE)
FIRST_COUNT = re.compile(r"^[\s*-]*(\d+)\b", re.MULTILINE)
NOTHING = re.compile(r"no\b|none\b|n/a\b", re.IGNORECASE)


@dataclass(frozen=True)
class GreenCounts:
    """matched: findings that both reports state. errors: clinically significant ones, in the order of CATEGORIES."""

    matched: int
    errors: tuple[int, ...]

    @property
    def score(self) -> float:
        """GREEN = matched / (matched + significant errors), in [0, 1]; 0 where nothing is matched (equation 1)."""
        return self.matched / (self.matched + sum(self.errors)) if self.matched else 0.0


def green_prompt(reference: str, candidate: str) -> list[dict]:
    """The messages that ask the judge about a candidate report."""
    return [{"role": "user", "content": PROMPT % (reference, candidate)}]


def parse_green(reply: str) -> GreenCounts | None:
    """The counts of a judge's reply; None if a section is missing, or the matched findings have no count.

    Errors are lines "(a) ...: COUNT. ...", also "(1) ..." to "(6) ..."; lines without a count are 0, several lines of
    one category are added. A section that begins with "No" holds nothing. Of matched findings the first count at the
    beginning of a line is read, as the authors' scorer does. Insignificant errors are not counted.
    """
    significant, matched = SIGNIFICANT.search(reply), MATCHED.search(reply)
    if significant is None or matched is None:
        return None
    errors, text = [0] * len(CATEGORIES), significant[1]
    for mark, count in [] if NOTHING.match(text) else ERROR_LINE.findall(text):
        errors[("123456" if mark.isdigit() else "abcdef").index(mark.lower())] += int(count)
    if NOTHING.match(matched[1]):
        return GreenCounts(0, tuple(errors))
    count = FIRST_COUNT.search(matched[1])
    return None if count is None else GreenCounts(int(count[1]), tuple(errors))


def green_fields(reply: str) -> dict:
    """The fields of a record from the judge's reply; one that cannot be parsed has the score 0 and no counts."""
    counts = parse_green(reply)
    fields = {"green": counts.score if counts else 0.0, "green_matched": counts.matched if counts else None}
    errors = counts.errors if counts else [None] * len(CATEGORIES)
    return fields | {f"green_error_{m}": n for m, n in zip("abcdef", errors, strict=True)} | {"green_reply": reply}


def _columns() -> dict[str, Score]:
    """GREEN, and the mean counts that it is made of."""
    meaning = "Matched findings over matched findings and clinically significant errors, by the judge model (--green)."
    columns = {"green": mean_score("green", "GREEN", meaning=meaning)}
    counts = {"matched": "matched findings", **{f"error_{m}": n for m, n in zip("abcdef", CATEGORIES, strict=True)}}
    for name, what in counts.items():
        meaning = f"Counted in a report by GREEN's judge: {what}."
        columns[f"green_{name}"] = mean_score(f"green_{name}", f"GREEN: {what}", "ratio", False, meaning, printed=False)
    return columns


GREEN_COLUMNS = _columns()


def ask_green(
    args: argparse.Namespace, folder: Path, ids: Sequence[str], references: Sequence[str], reports: Sequence[str]
) -> list[str]:
    """The judge's reply to every report, decoded greedily; kept in ``folder``, so that nothing is decoded twice.

    args: ``green`` (the judge: a directory or hub id), ``model``, ``batch_size`` and the loading options. Raises
    InputError if the judge cannot be loaded, or a prompt is longer than its context.
    """
    prompts = [green_prompt(*pair) for pair in zip(references, reports, strict=True)]
    judge = stamp(args.green)
    keys = [hashlib.sha256(json.dumps([judge, prompt, MAX_NEW_TOKENS]).encode()).hexdigest() for prompt in prompts]
    identities = [{"id": name, "asked": key} for name, key in zip(ids, keys, strict=True)]
    again = f"{'add --resume to' if args.model else 'run'} the same command{'' if args.model else ' again'} to continue"

    def decode(**state) -> list[str]:
        loaded = load_adapted(args, args.green, template=TEMPLATE)
        return answer_prompts(loaded, prompts, max_new_tokens=MAX_NEW_TOKENS, batch_size=args.batch_size, **state)

    with Answers(folder / REPLIES, identities, "reply", again=again) as kept:
        return kept.complete(decode)

"""A rule-based editor: changes an answer into a true one, or into a false one, in its own words."""

from __future__ import annotations

import dataclasses
import difflib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from mint.data.questions import yes_or_no
from mint.prefs.claims import BACKWARD, DEGREES, NUMBERS, Attribute, Claim, Finding, Truth, Word, read_claims

Change = tuple[int, int, str]  # characters from, to, and what stands there instead
OPPOSITE = {"left": "right", "right": "left", "both": "left"}
ARTICLES = ("a", "an", "the", "some", "any")
ARTICLE = re.compile(r"\b([Aa])n?(\s*)$")  # at the end of what has been written
AFFIRMED = {"without": "with", "lacks": "shows", "lacking": "showing", "neither": "", "nor": "and", "absent": "present"}
AFFIRMED |= {"never": "", "denies": "has", "excluded": "seen", "unlikely": "likely"}
AFFIRMED |= {"absence": "presence", "negative": "positive"}


@dataclass(frozen=True)
class Edit:
    """An answer and what it became. right: whether it was true as it stood; it is then the chosen one of the two."""

    answer: str
    edited: str
    right: bool


def edit_answer(answer: str, truth: Truth, key: str) -> Edit | None:
    """The minimal edit of an answer: into the truth if it is wrong, into something wrong if it is right.

    key: seeds the choice of what becomes wrong. None if the rules cannot judge the answer, or it does not answer the
    question.
    """
    claims = read_claims(answer, truth)[1]
    if not _to_the_question(claims, truth):
        return None
    true = make_true(answer, truth)
    if true != answer:
        return Edit(answer, true, right=False)
    for false in mutations(truth, claims, random.Random(key)):
        edited = make_true(answer, false)
        if edited != answer and contradictions(edited, truth):
            return Edit(answer, edited, right=True)
    return None


def contradictions(answer: str, truth: Truth) -> list[str]:
    """What an answer says against the truth, in words."""
    words, claims = read_claims(answer, truth)
    found = [claim.finding.names[0] for claim in claims if not _agrees(claim)]
    found += [text for text, _, _, name in _terms(words, truth) if text != name.lower()]
    decides = _leads(words) or not (truth.findings or truth.terms)  # else "no" may deny another finding
    if truth.answer in ("yes", "no") and yes_or_no(answer) not in (None, truth.answer) and decides:
        found.append(f"not {truth.answer}")
    return found


def says_truth(answer: str, truth: Truth) -> bool:
    """Whether an answer says something of what is asked that the truth can judge, and nothing that it contradicts."""
    words, claims = read_claims(answer, truth)
    if not _to_the_question(claims, truth):
        return False
    said = (
        bool(claims) or bool(_terms(words, truth)) or (truth.answer in ("yes", "no") and yes_or_no(answer) is not None)
    )
    return said and not contradictions(answer, truth)


def true_without_lesion(answer: str, truth: Truth) -> bool:
    """Whether an answer is true of the image without the findings that the question is about (all, without any).

    Of the false answer of a pair, this tells whether the preference should flip once the lesion is hidden: "there is no
    nodule" becomes true, "the nodule is on the right" does not.
    """

    def asked(finding: Finding) -> bool:
        return not truth.about or bool(set(finding.names) & set(truth.about))

    left = tuple(
        dataclasses.replace(finding, present=finding.present and not asked(finding)) for finding in truth.findings
    )
    return left != truth.findings and says_truth(answer, dataclasses.replace(truth, findings=left))


def _to_the_question(claims: Sequence[Claim], truth: Truth) -> bool:
    """Whether an answer with these claims speaks of what is asked; a bare yes or no does."""
    asked = [claim for claim in claims if set(claim.finding.names).intersection(truth.about)]
    return bool(asked) or not truth.about or not claims and truth.answer is not None


def make_true(answer: str, truth: Truth) -> str:
    """The answer with every claim that contradicts the truth changed, and nothing else."""
    words, claims = read_claims(answer, truth)
    wrong = [claim for claim in claims if not _agrees(claim)]
    denied = [c for c in wrong if not c.present and not any(a.facet == "side" for a in c.attributes)]
    changes: list[Change] = []
    for claim in wrong:
        if claim.present and not claim.finding.present:
            changes += _deny(words, claim)
        elif any(claim is other for other in denied):
            changes += _affirm(words, claim, claims, denied)
        else:
            changes += [change for a in claim.attributes for change in _set(words, answer, a, claim)]
    for text, start, end, name in _terms(words, truth):
        if text != name.lower():
            changes.append((start, end, name))
    if truth.answer in ("yes", "no") and _leads(words) and words[0].text != truth.answer:
        changes.append((words[0].start, words[0].end, truth.answer))
        changes = [change for change in changes if change[0] != words[0].start or change[2] == truth.answer]
    return _apply(answer, changes)


def mutations(truth: Truth, claims: Sequence[Claim], rng: random.Random) -> list[Truth]:
    """The truth with one thing changed, in an order that ``rng`` decides.

    claims: the answer's. For a yes-no question the answer changes together with the presence of the finding, so that a
    false answer does not contradict itself; half of the time a property is tried first. Otherwise properties come
    first.
    """
    properties, presence = [], []
    spoken = {claim.finding for claim in claims}
    asked = {finding for finding in spoken if set(finding.names).intersection(truth.about)} or spoken
    opposite = {"yes": "no", "no": "yes"}.get(truth.answer or "", truth.answer)
    turns = opposite != truth.answer
    for place, finding in enumerate(truth.findings):

        def put(changed: Finding, place: int = place, answer: str | None = truth.answer) -> Truth:
            findings = (*truth.findings[:place], changed, *truth.findings[place + 1 :])
            return dataclasses.replace(truth, findings=findings, answer=answer)

        if finding.present:
            for facet, values in _alternatives(finding, truth).items():
                properties += [put(dataclasses.replace(finding, **{facet: value})) for value in values]
        if finding in asked:
            presence.append(put(dataclasses.replace(finding, present=not finding.present), answer=opposite))
    for kind, name in truth.terms.items():
        others = [other for other in truth.kinds[kind] if other.lower() != name.lower()]
        properties += [dataclasses.replace(truth, terms={**truth.terms, kind: other}) for other in others]
    rng.shuffle(properties)
    rng.shuffle(presence)
    if turns and not presence:  # a bare yes or no
        presence = [dataclasses.replace(truth, answer=opposite)]
    return [*presence, *properties] if turns and rng.random() < 0.5 else [*properties, *presence]


def _alternatives(finding: Finding, truth: Truth) -> dict[str, list]:
    others: dict[str, list] = {}
    if finding.side is not None:
        others["side"] = [OPPOSITE[finding.side]]
    if finding.degree is not None:
        others["degree"] = [degree for degree in range(3) if degree != finding.degree]
    if finding.zone is not None:
        others["zone"] = [zone for zone in truth.zones if zone != finding.zone]
    if finding.count is not None:
        others["count"] = [finding.count + 1]
    if finding.size is not None:
        others["size"] = [2 * finding.size]
    return others


def _agrees(claim: Claim) -> bool:
    """Whether a claim is true. A denial of one side is one of that side alone."""
    finding = claim.finding
    same = {a.facet: _equal(a, finding) for a in claim.attributes if getattr(finding, a.facet) is not None}
    if claim.present:
        return finding.present and all(same.values())
    if not finding.present:
        return True
    denied = [a for a in claim.attributes if a.facet == "side"]
    if finding.side is None:
        return bool(denied)  # it is there, on a side that is not known
    return bool(denied) and all(finding.side != "both" and a.value != finding.side for a in denied)


def _equal(attribute: Attribute, finding: Finding) -> bool:
    value = getattr(finding, attribute.facet)
    if attribute.facet == "size":
        return abs(attribute.value - value) < 0.05
    return attribute.value == value


def _deny(words: Sequence[Word], claim: Claim) -> list[Change]:
    """From present to absent: "no" for the article, or before the words that describe it."""
    if claim.negations:  # two that cancel: one goes
        word = words[claim.negations[0]]
        return [(word.start, words[claim.negations[0] + 1].start, "")]
    if claim.first < 0:
        return [(words[claim.last - 1].start, words[claim.last - 1].start, "not ")]
    start = _start(words, claim)
    first = next(i for i, word in enumerate(words) if word.start >= start)
    if first and words[first - 1].text in ARTICLES and words[first - 1].clause == claim.clause:
        return [(words[first - 1].start, words[first - 1].end, "no")]
    return [(start, start, "no ")]


def _affirm(words: Sequence[Word], claim: Claim, claims: Sequence[Claim], affirmed: Sequence[Claim]) -> list[Change]:
    """From absent to present. Of several findings under one negation, those that are not ``affirmed`` stay absent."""
    place = claim.negations[-1]
    word = words[place]
    shared = [other for other in claims if other is not claim and place in other.negations and other.first >= 0]
    if word.text in BACKWARD:
        return [(word.start, word.end, AFFIRMED[word.text])]
    earlier = [other for other in shared if other.first < claim.first]
    later = [other for other in shared if other.first > claim.first]
    changes: list[Change] = []
    described = _start(words, claim)
    if place > claim.last - 1:  # "... is not seen"
        return [(word.start, words[place + 1].start if place + 1 < len(words) else word.end, "")]
    if earlier:
        gap = [i for i in range(earlier[-1].last, claim.first) if words[i].text in ("or", "and", "nor", ",")]
        last = words[gap[-1]] if gap else None
        turns = not any(earlier[-1] is other for other in affirmed)  # the one before stays denied
        if last is not None and last.text != ",":
            changes.append((last.start, last.end, "but" if turns else "and"))
            changes.append((described, described, f"{_described(claim.finding)} "))
        else:
            changes.append((described, described, f"{'but ' if turns else ''}{_described(claim.finding)} "))
    elif word.text == "not" or word.text.endswith("n't"):
        end = words[place + 1].start if word.text == "not" else word.end
        changes.append((word.start, end, word.text[:-3]))
        if words[place + 1].text == "any":
            changes.append((words[place + 1].start, words[place + 1].end, "a"))
    elif (word.text, words[place + 1].text) in {("free", "of"), ("clear", "of")}:
        changes.append((word.start, words[place + 1].end, "with"))
    elif word.text in AFFIRMED:
        changes.append((word.start, word.end, AFFIRMED[word.text]))
    elif words[place + 1].text in ("evidence", "sign", "signs", "indication"):
        changes.append((word.start, words[place + 1].start, ""))
    else:
        changes.append((word.start, word.end, _described(claim.finding)))
    if later and not any(later[0] is other for other in affirmed):
        start = _start(words, later[0])
        between = [i for i in range(claim.last, later[0].first) if words[i].text in ("or", "nor")]
        if between:
            changes.append((words[between[-1]].start, words[between[-1]].end, "but no"))
        else:
            changes.append((start, start, "no "))
    return changes


def _start(words: Sequence[Word], claim: Claim) -> int:
    """The first character of a finding with the attributes before it."""
    return min([words[claim.first].start, *(attribute.start for attribute in claim.attributes)])


def _described(finding: Finding) -> str:
    """The words before the name of a present finding: as few as possible, so that form does not reveal truth."""
    return "a" if finding.count in (None, 1) else _number(finding.count)


def _number(count: int) -> str:
    return NUMBERS[count] if 0 <= count < len(NUMBERS) else str(count)


def _set(words: Sequence[Word], answer: str, attribute: Attribute, claim: Claim) -> list[Change]:
    """The attribute as the truth has it, in the answer's own way of saying it; nothing if it is right or unknown."""
    value = getattr(claim.finding, attribute.facet)
    old, place = answer[attribute.start : attribute.end], (attribute.start, attribute.end)
    if attribute.facet == "side" and not claim.present:
        return [] if value is None or _agrees(claim) else [(*place, _side_word(old, OPPOSITE[str(attribute.value)]))]
    if value is None or _equal(attribute, claim.finding):
        return []
    if attribute.facet == "side":
        return [(*place, _side_word(old, value))]
    if attribute.facet == "degree":
        scale = next((scale for scale in DEGREES if old.lower() in scale), DEGREES[0])
        return [(*place, scale[value])]
    if attribute.facet == "count":
        return _set_count(words, old, attribute, claim, value)
    if attribute.facet == "size":
        unit = answer[attribute.end :].lstrip(" -").lower()
        return [(*place, f"{value / 10 if unit.startswith('c') else value:g}")]
    return [(*place, str(value))]


def _set_count(words: Sequence[Word], old: str, attribute: Attribute, claim: Claim, count: int) -> list[Change]:
    """Another number, and the noun's plural or singular with it."""
    first = next(i for i, word in enumerate(words) if word.start == attribute.start)
    if first and words[first - 1].text == "a" and count != 1:  # "a single"
        first -= 1
    changes = [(words[first].start, attribute.end, str(count) if old.isdigit() else _number(count))]
    if first and words[first - 1].text in ("is", "are"):
        changes.append((words[first - 1].start, words[first - 1].end, "is" if count == 1 else "are"))
    if claim.first > first:
        noun = words[claim.last - 1]
        if count == 1 and noun.text.endswith("s"):
            changes.append((noun.end - 1, noun.end, ""))
        elif count != 1 and not noun.text.endswith("s"):
            changes.append((noun.end, noun.end, "s"))
    return changes


def _side_word(old: str, side: str) -> str:
    if side == "both":
        return "bilateral"
    return f"{side}-sided" if old.lower().endswith("-sided") else side


def _terms(words: Sequence[Word], truth: Truth) -> list[tuple[str, int, int, str]]:
    """(what is said, its characters, what is true) of each kind of thing that the answer names."""
    found = []
    for kind, name in truth.terms.items():
        taken: set[int] = set()
        for other in sorted(truth.kinds[kind], key=lambda text: -len(text.split())):
            parts = other.lower().split()
            for start in range(len(words) - len(parts) + 1):
                place = range(start, start + len(parts))
                if not taken.intersection(place) and [words[i].text for i in place] == parts:
                    taken.update(place)
                    found.append((other.lower(), words[start].start, words[place[-1]].end, name))
    return found


def _leads(words: Sequence[Word]) -> bool:
    """Whether the answer begins with yes or no as a word of its own."""
    return bool(words) and words[0].text in ("yes", "no") and (len(words) == 1 or words[1].text in (",", ".", ";", "!"))


def _apply(answer: str, changes: Sequence[Change]) -> str:
    """The text with the changes; the first word of a sentence keeps its capital, an article follows its new word."""
    text, last = "", 0
    for start, end, new in sorted(set(changes)):
        text += answer[last:start]
        rest = answer[end:]
        if not text.rstrip() or text.rstrip().endswith((".", "!", "?")):  # a sentence begins here
            capital = answer[start : start + 1].isupper() and not answer[start + 1 : start + 2].isupper()
            if capital and new:
                new = new[:1].upper() + new[1:]
                rest = rest[:1].lower() + rest[1:] if start == end else rest
            elif capital:
                rest = rest[:1].upper() + rest[1:]
        text = ARTICLE.sub(partial(_article, word=new or rest), text) + new
        text = ARTICLE.sub(partial(_article, word=rest.lstrip()), text) if new else text
        answer, last = answer[:end] + rest, end
    return text + answer[last:]


def _article(match: re.Match, word: str) -> str:
    """ "a" or "an" as the word wants that follows; letters said one by one ("an MRI") by their own names."""
    spelt = word[1:2].isupper() or word[1:2] == "-"
    vowel = (
        word[:1] in "AEFHILMNORSX"
        if spelt
        else word[:1].lower() in "aeiou" and not word.lower().startswith(("uni", "use"))
    )
    return f"{match.group(1)}{'n' if vowel else ''}{match.group(2)}"


def share_kept(before: str, after: str) -> float:
    """The share of the words of ``before`` that ``after`` still has, in their order."""
    first, second = before.split(), after.split()
    blocks = difflib.SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / max(1, len(first))

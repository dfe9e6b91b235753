"""The facts that a description states about an image, compared with those that are true."""

from __future__ import annotations

from mint.prefs.claims import Truth, read_claims

FACETS = ("side", "degree", "zone", "count", "size")
Fact = tuple[str, str, object]  # the finding's first name, its facet (or "present"), the value


def facts_f1(answer: str, truth: Truth) -> float | None:
    """F1 of the facts that a description states: whether each finding is present, and if so every known facet.

    In [0, 1]; omissions and errors both lower it. None if the truth has no findings, or the question asks for some of
    them alone.
    """
    if not truth.findings or truth.about:
        return None
    true, stated = true_facts(truth), stated_facts(answer, truth)
    return 2 * len(true & stated) / (len(true) + len(stated))


def true_facts(truth: Truth) -> set[Fact]:
    """All facts of a truth."""
    facts: set[Fact] = {(finding.names[0], "present", finding.present) for finding in truth.findings}
    there = [finding for finding in truth.findings if finding.present]
    return facts | {
        (f.names[0], facet, getattr(f, facet)) for f in there for facet in FACETS if getattr(f, facet) is not None
    }


def stated_facts(answer: str, truth: Truth) -> set[Fact]:
    """The facts of an answer that can be compared with the truth; the denial of one side alone is not a fact."""
    found: set[Fact] = set()
    for claim in read_claims(answer, truth)[1]:
        name, facets = claim.finding.names[0], {a.facet: a.value for a in claim.attributes}
        if claim.present:
            known = {facet: value for facet, value in facets.items() if getattr(claim.finding, facet) is not None}
            found |= {(name, "present", True), *((name, facet, value) for facet, value in known.items())}
        elif "side" not in facets:
            found.add((name, "present", False))
    return found

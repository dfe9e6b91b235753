"""The experiment on case reports, at the smallest size, with drawn patients in place of published ones."""

import argparse
import csv
import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from benchmarks import case_reports, report_cohort, report_measures
from benchmarks.case_reports import ROWS, jobs_of, make_study, run_study
from benchmarks.report_cohort import publication, read_reports
from mint import processes
from mint.data.cases import write_note
from mint.data.chat import load_tokenizer
from mint.data.preferences import read_preferences, write_jsonl
from mint.data.retrieval import Retriever, describe_cases
from mint.demo import arms
from mint.demo.tiny_model import write_base
from mint.errors import InputError
from mint.models import load_language_model
from mint.models.lora import load_adapter, merge_lora
from mint.synthetic.cohort import sample_cohort
from tests.demo.test_arms import InThisProcess


def reports(count: int, seed: int):
    """Cases of the twelve most common diseases; a publication has one to five of one disease."""
    cases = sample_cohort(count, seed)
    names = sorted({case.disease for case in cases})[:12]
    cases = [case for case in cases if case.disease in names]
    for number, case in enumerate(cases):
        paper = f"{names.index(case.disease) + 1}{number % 15:02}"
        yield replace(case, id=f"PMID_{paper}_{seed}-{number}", disease_id=f"OMIM:{names.index(case.disease)}")


@pytest.fixture
def cohort_files(monkeypatch, tmp_path):
    """(train, dev, notes); what stands in them comes from the drawn cohort."""
    parts = {"train": list(reports(900, 1)), "dev": list(reports(300, 2))}
    monkeypatch.setattr(report_cohort, "read_phenopackets", lambda path, facial: (parts[path], None))
    for name, value in (("DISEASES", 12), ("UNSEEN", 20), ("SEEN", 6), ("FREE_TEXT", 4)):
        monkeypatch.setattr(report_cohort, name, value)
    notes = tmp_path / "notes.jsonl"
    write_jsonl(notes, [{"id": case.id, "note": f"In prose: {case.id}"} for case in parts["train"][::20]])
    return "train", "dev", [str(notes)]


def test_no_publication_is_on_both_sides(cohort_files):
    train, dev, notes = cohort_files
    cohort = read_reports(train, dev, None, notes)
    learned = {case.subject for case in cohort.training}
    assert cohort.unseen and not learned & {case.subject for case in cohort.unseen}
    assert cohort.seen and {case.subject for case in cohort.seen} <= learned
    assert all(case.subject == publication(case) and case.id.startswith(case.subject) for case in cohort.training)
    assert publication(replace(cohort.seen[0], id="mine")) == "mine"
    ids = {case.id for case in cohort.training}
    assert len(cohort.free_text) == 4 and not ids & {case.id for case in [*cohort.free_text, *cohort.seen]}
    assert all(case.text == f"In prose: {case.id}" for case in cohort.free_text)
    for disease in {case.disease for case in cohort.unseen}:
        assert sum(case.disease == disease for case in cohort.training) >= report_cohort.LEAST - 4  # less free notes
    assert read_reports(train, dev, None, notes) == cohort


def test_large_publications_are_not_held_out(cohort_files, monkeypatch):
    monkeypatch.setattr(report_cohort, "UNSEEN", 1000)
    for largest in (1, 3):
        monkeypatch.setattr(report_cohort, "LARGEST", largest)
        cohort = read_reports("train", "dev")
        assert max(Counter(case.subject for case in cohort.unseen).values()) == largest
    monkeypatch.setattr(report_cohort, "LARGEST", 0)
    with pytest.raises(InputError, match="too few to hold some out"):
        read_reports("train", "dev")


def test_notes_that_cannot_be_read(cohort_files, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"id": "a"}\n')
    for file in ("bad.jsonl", "none.jsonl.gz"):
        with pytest.raises(InputError, match="no notes that can be read"):
            read_reports("train", "dev", None, [str(tmp_path / file)])


@pytest.fixture
def tiny(tmp_path):
    """A blank model whose tokenizer knows the notes."""
    cases = list(reports(900, 1))
    texts = [*map(write_note, cases), *(passage.text for passage in describe_cases(cases))]
    write_base(tmp_path / "tiny", texts + ["system", "user", "assistant"], "shallow", 600)
    return tmp_path / "tiny"


def test_every_row_is_trained_asked_and_measured_once(cohort_files, tiny, tmp_path, monkeypatch, few_resamples):
    monkeypatch.setattr(processes, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setitem(case_reports.RECIPE, "batch_size", 2)
    monkeypatch.setattr(arms, "TOKENS", 8)
    monkeypatch.setattr(case_reports, "HELD_OUT", 4)
    monkeypatch.setattr(case_reports.Study, "_dense", lambda study: Retriever(study.passages))
    monkeypatch.setattr(report_measures, "GENERAL", ("What is it?", "Why?"))
    train, dev, notes = cohort_files
    cohort = read_reports(train, dev, None, notes)
    other = tmp_path / "other.jsonl"
    write_jsonl(other, [{"id": case.id, "ids": [case.disease_id]} for case in cohort.unseen])
    paths = {"train": train, "dev": dev, "model": str(tiny), "out": str(tmp_path / "out"), "notes": notes}
    more = {"face_terms": None, "encoder": "a BERT", "external": [f"right={other}"], "seeds": 1, "steps": 2}
    args = argparse.Namespace(**paths, **more, device="cpu")
    tables = run_study(args)
    out = tmp_path / "out"
    systems = json.loads((out / "unseen" / "comparison.json").read_text())["systems"]
    ranked = [f"{row}, names ranked" for row in ("base", *ROWS) if row != "SFT with passages"]
    assert set(systems) >= {"base", *ROWS, *ranked, "naive Bayes", "neighbours", "base, passages by dense", "right"}
    assert systems["right"]["metrics"]["top_1_id"]["value"] == 1
    assert "seen: 6 cases" in tables and "free-text: 4 cases" in tables and (out / "rejected.png").is_file()
    for file in ("lists", "passages"):
        pairs = read_preferences(out / f"{file}.jsonl")
        assert ("Passages that may help" in pairs[0].prompt[1]["content"]) == (file == "passages")
    with open(out / "measures.csv", newline="", encoding="utf-8") as lines:
        drift = {row["row"]: float(row["value"]) for row in csv.DictReader(lines) if row["measure"] == "drift"}
    assert drift["base"] == 0
    assert drift["ORPO"] == pytest.approx(
        kl_by_hand(tiny, out / "seed-0" / "orpo-lists", out / "general.jsonl"), rel=1e-3
    )
    assert jobs_of(make_study(args)) == []
    (out / "base" / "measures.json").unlink()
    assert [name for name, *_ in jobs_of(make_study(args))] == ["base"]


def kl_by_hand(model, arm, file) -> float:
    """The mean over all tokens of KL(base || aligned), from whole logits in float64."""
    base, tokenizer = load_language_model(str(model)).double(), load_tokenizer(str(model))
    aligned = merge_lora(load_adapter(load_language_model(str(model)), arm / "run" / "adapter")).double()
    total, count = 0.0, 0
    for record in read_preferences(file, require_rejected=False):
        prompt, answer = tokenizer.encode_prompt(record.prompt), tokenizer.encode_answer(record.chosen.text)
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            p, q = (net(ids)[0, len(prompt) - 1 : -1].log_softmax(-1) for net in (base, aligned))
        total, count = total + float((p.exp() * (p - q)).sum()), count + len(answer)
    return total / count


def test_numbers_out_of_range():
    with pytest.raises(InputError, match="--seeds and --steps"):
        make_study(argparse.Namespace(seeds=1, steps=0, device="cpu"))

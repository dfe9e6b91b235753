"""The embedded default: ``python train.py --loss orpo`` on a fresh machine, from nothing to a table in minutes.

1. A synthetic cohort is drawn from a table of real syndromes (``cohort``), and a naive-Bayes ranking of it gives
   preference pairs: ten likely diseases chosen, fifteen unlikely ones rejected.
2. A tokenizer and a tiny Llama are made (``base``), and the Llama is taught the note and answer format by next-token
   training on a small cohort of other patients. Both are cached.
3. The chosen loss aligns that Llama on the pairs, and it is scored on unseen patients before and after.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from mint.config import TrainConfig
from mint.data.cases import Case, diagnosis_messages, format_list, write_note
from mint.data.chat import load_tokenizer
from mint.data.preferences import write_jsonl
from mint.demo.base import write_base
from mint.demo.cohort import load_syndromes, sample_cohort
from mint.evaluation.disease import (
    Upstream,
    average,
    format_table,
    list_diseases,
    rank_upstream,
    save_evaluation,
    score_lists,
)
from mint.evaluation.metrics import KnownDiseases
from mint.models import load_model
from mint.models.lora import load_adapter, merge_lora
from mint.prefs.naive_bayes import NaiveBayesRanker
from mint.prefs.pairs import PairReport, PairSettings, make_pairs
from mint.run import RunDirectory

TAUGHT, TRAINED, UNSEEN = (400, 11), (1200, 12), (300, 13)  # patients and seed of the three cohorts
TEACH = {"steps": 500, "batch_size": 32, "lr": 3e-3, "weight_decay": 0.1, "adam_beta2": 0.95}
ALIGN = {"steps": 200, "batch_size": 16, "lr": 2e-3, "lora_rank": 64, "lora_alpha": 64.0}
SHAPE, VOCABULARY = "demo", 3000

Train = Callable[[TrainConfig], RunDirectory]


def run(config: TrainConfig, train: Train) -> None:
    """Builds or finds the cache, trains with ``config`` (its settings win over ``ALIGN``), prints the table."""
    folder = cache_folder()
    if not (folder / "done").is_file():
        print(f"building the embedded default in {folder} (once)")
        build(folder, train)
    defaults = TrainConfig()
    unset = {name: value for name, value in ALIGN.items() if getattr(config, name) == getattr(defaults, name)}
    if config.epochs != defaults.epochs:
        unset.pop("steps", None)
    config = dataclasses.replace(
        config,
        **unset,
        model=str(folder / "model"),
        data=str(folder / "pairs.jsonl"),
        eval_data=config.eval_data or str(folder / "unseen.jsonl"),
    )
    finished = train(config)
    if (finished.path / "curves.png").is_file():
        compare(config, finished.path)


def cache_folder() -> Path:
    """Where the built parts lie: a folder of the user's cache named by what they are built from."""
    sources = [Path(__file__), *(Path(__file__).with_name(n) for n in ("base.py", "cohort.py", "syndromes.tsv"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "mint" / f"demo-{digest}"


def build(folder: Path, train: Train) -> None:
    """Pairs, tokenizer and taught model, made in a folder beside and renamed when complete."""
    aside = folder.with_name(f".building-{folder.name}-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    taught, trained, unseen = (sample_cohort(n, seed=seed) for n, seed in (TAUGHT, TRAINED, UNSEEN))
    ranker = NaiveBayesRanker(trained)
    for name, cases, held_out in (("pairs", trained, False), ("unseen", unseen, True)):
        report = PairReport()
        write_jsonl(aside / f"{name}.jsonl", make_pairs(cases, ranker, PairSettings(), report, held_out))
        print(f"{name}: {report}")
    lessons = PairSettings(label_first=True, variants=4)
    write_jsonl(
        aside / "lessons.jsonl", make_pairs(taught, NaiveBayesRanker(taught), lessons, PairReport(), held_out=False)
    )
    write_base(aside / "blank", texts(taught), SHAPE, VOCABULARY)
    run = train(
        TrainConfig(
            loss="sft",
            full=True,
            model=str(aside / "blank"),
            data=str(aside / "lessons.jsonl"),
            out=str(aside / "teaching"),
            device="cpu",
            **TEACH,
        )
    )
    (run.path / "model").rename(aside / "model")
    shutil.rmtree(run.path)
    (aside / "done").touch()
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def texts(cases: Sequence[Case]) -> list[str]:
    """What the tokenizer is trained on: prompts, and every syndrome as a list would name it."""
    notes = [message["content"] for case in cases for message in diagnosis_messages(write_note(case))]
    names = [syndrome.name for syndrome in load_syndromes()]
    roles = ["system", "user", "assistant"]
    return notes + [format_list(names)] * 50 + roles * len(notes)


def compare(config: TrainConfig, folder: Path) -> None:
    """Scores the model on unseen patients before and after training; prints the table, saves it with the run."""
    cases = sample_cohort(UNSEEN[0], seed=UNSEEN[1])
    ranker = NaiveBayesRanker(sample_cohort(TRAINED[0], seed=TRAINED[1]))
    upstream = rank_upstream(cases, ranker, 10, 15, held_out=True)
    known = KnownDiseases([syndrome.name for syndrome in load_syndromes()])
    rows = {"ranking (naive Bayes)": average(score_lists(cases, upstream.top, known, upstream))}
    rows["before"] = _score(config.model, None, cases, known, upstream)[0]
    after = folder / "model" if config.full else Path(config.model)
    rows["after"], answers, lists = _score(str(after), None if config.full else folder / "adapter", cases, known, upstream)
    scores = score_lists(cases, lists, known, upstream)
    save_evaluation(folder, rows, cases, answers, lists, scores, {"cases": len(cases), "loss": config.loss})
    print(f"\n{len(cases)} unseen patients, scores in per cent\n\n{format_table(rows)}\n")


def _score(model_dir: str, adapter: Path | None, cases: Sequence[Case], known: KnownDiseases, upstream: Upstream):
    model = load_model(model_dir)
    if adapter is not None:
        merge_lora(load_adapter(model, adapter), drop=True)
    answers, lists = list_diseases(model, load_tokenizer(model_dir), cases, max_new_tokens=160, batch_size=64)
    return average(score_lists(cases, lists, known, upstream)), answers, lists

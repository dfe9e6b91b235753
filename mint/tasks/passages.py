"""Passages in the prompt of a case: the flags of retrieval, and what they find."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mint.cli import choose_device
from mint.data.cases import Case, write_note
from mint.data.retrieval import Index, Retriever, describe_cases, is_description_folder, read_descriptions
from mint.errors import InputError
from mint.tasks.cohorts import read_cohort


def add_retrieval_options(parser: argparse.ArgumentParser) -> None:
    """Flags that add passages to prompts; read by :class:`Passages`."""
    add = parser.add_argument_group("retrieval").add_argument
    tables = "disease_features.tsv, diseases.tsv, terms.tsv"
    add("--retrieve", metavar="PATH", help=f"add passages to the prompt: from cases, or a folder of HPO's {tables}")
    add("--passages", type=int, default=3, help="of --retrieve: the best for each note (default 3)")
    encoder = "a BERT that finds them by meaning, as BAAI/bge-base-en-v1.5 (default: BM25 over whole passages)"
    add("--retrieve-encoder", metavar="DIR|ID", help=encoder)
    for flag, kind, default, text in (
        ("--chunk-tokens", int, 256, "length of the pieces that passages are cut into"),
        ("--chunk-overlap", int, 20, "tokens that two pieces share"),
        ("--cut-off", float, 0.7, "least cosine of a passage and the note"),
    ):
        add(flag, type=kind, default=default, help=f"--retrieve-encoder: {text} (default {default})")


def retrieval_name(args: argparse.Namespace) -> str | None:
    """What the flags add to a system's name; None without ``--retrieve``."""
    return ("dense retrieval" if args.retrieve_encoder else "retrieval") if args.retrieve else None


class Passages:
    """Passages for the notes of cases, found when they are asked for; a case is never shown itself."""

    def __init__(self, args: argparse.Namespace):
        """Reads the collection of ``--retrieve``. Raises InputError if it cannot be used, or no passage is wanted."""
        if args.passages < 1:
            raise InputError("--passages must be at least 1")
        self.count = args.passages
        if is_description_folder(args.retrieve):
            collection = read_descriptions(args.retrieve)
        else:
            collection = describe_cases(read_cohort(args.retrieve, args, "train" if args.split else None, draw=False))
        self.index: Index
        if args.retrieve_encoder:
            from mint.evaluation.dense_retrieval import DenseRetriever, SentenceEncoder

            encoder = SentenceEncoder(args.retrieve_encoder, choose_device(args.device, "auto")[0])
            self.index = DenseRetriever(collection, encoder, args.chunk_tokens, args.chunk_overlap, args.cut_off)
        else:
            self.index = Retriever(collection)
        self._found: dict[Case, list[str]] = {}

    def get(self, case: Case, default: Sequence[str] = ()) -> Sequence[str]:
        """The best passages for a case's note, the best first; ``default`` where there are none."""
        if case not in self._found:
            (self._found[case],) = self.index.retrieve([write_note(case)], self.count, [case.id])
        return self._found[case] or default

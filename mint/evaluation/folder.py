"""The folder of an evaluation: its default place, what an interrupted evaluation keeps, the summary at the end."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from mint import parallel
from mint.errors import InputError
from mint.evaluation.answers import Answers, stamp
from mint.files import check_writable, make_folder, read_json, write_aside

SETTINGS, ANSWERS, METRICS = "settings.json", "answers.jsonl", "metrics.json"
# Settings that may differ when an evaluation is continued: its answers do not depend on them.
FREE_TO_CHANGE = {
    "run",
    "out",
    "resume",
    "name",
    "batch_size",
    "device",
    "judge",
    "green",
    "labels",
    "url",
    "key_name",
    "per_minute",
    "findings",
    "mondo",
    "pheval",
    "car_weight",
    "keep_notes",
}
SHOWN = 60  # characters of a setting in a message


def add_folder_options(parser: argparse.ArgumentParser, words: str) -> None:
    """``--out`` and ``--resume``; read by :class:`EvaluationFolder`. words: what the default folder is named after."""
    parser.add_argument("--out", metavar="DIR", help=f"where results are written (default runs/eval/{words})")
    parser.add_argument(
        "--resume", action="store_true", help="continue an interrupted evaluation: finished cases are kept"
    )


class EvaluationFolder:
    """Where an evaluation keeps its answers while it decodes, and its results."""

    def __init__(self, args: argparse.Namespace, *parts: str | None):
        """args: with ``resume`` and ``out`` (None: the default folder). parts: what the default folder is named after.

        Raises InputError if the folder holds an evaluation and is not to be resumed, or one with other settings.
        """
        self.path = Path(args.out) if args.out else default_folder(*parts)
        check_writable("--out", self.path, folder=True)
        args.out = str(self.path)
        decisive = {name: value for name, value in vars(args).items() if name not in FREE_TO_CHANGE}
        weights = {flag: stamp(getattr(args, flag, None))[1:] for flag in ("model", "adapter")}
        self._settings = json.loads(json.dumps(decisive | {"weights": weights}))
        self._before = parallel.on_main(lambda: self._read(args.resume))

    def _read(self, resume: bool) -> dict | None:
        """The content of settings.json where an evaluation is continued."""
        file = self.path / SETTINGS
        if not (file.exists() or (self.path / METRICS).exists()):
            if resume:
                print(f"nothing to resume in {self.path}: the evaluation starts from the beginning")
            return None
        if not resume:
            raise InputError(
                f"{self.path} holds an evaluation already: add --resume to continue it, or give another --out"
            )
        try:
            before = read_json(file)
            settings, _ = before["settings"], before["cases"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{self.path} holds no {SETTINGS} and cannot be resumed; give another --out") from None
        changed = [key for key in sorted({*settings, *self._settings}) if settings.get(key) != self._settings.get(key)]
        if changed:
            shown = "; ".join(
                f"{key}: {_short(settings.get(key))} -> {_short(self._settings.get(key))}" for key in changed
            )
            raise InputError(
                f"the evaluation in {self.path} has other settings ({shown}): resume it "
                "with the same, or give another --out"
            )
        return before

    def answers(
        self, ids: Sequence[str], prompts: object, field: str = "answer", extra: Sequence[dict] = ({},)
    ) -> Answers:
        """What is kept of an earlier run, and takes the answers of this one.

        ids: of the cases. prompts: all that the answers depend on besides the settings, as JSON. field: of an answer.
        extra: further fields; each case has an answer for each of these. Raises InputError if an earlier run had other
        prompts.
        """
        content = json.dumps([list(ids), prompts], sort_keys=True, default=str)
        cases = {"count": len(ids), "sha256": hashlib.sha256(content.encode()).hexdigest()}
        if self._before is not None and self._before["cases"] != cases:
            count = self._before["cases"].get("count")
            raise InputError(
                f"the evaluation in {self.path} has other cases or prompts ({count} cases, now {len(ids)}): resume it "
                "with the same, or give another --out"
            )

        def start() -> None:
            make_folder(self.path)
            write_aside(self.path / SETTINGS, json.dumps({"settings": self._settings, "cases": cases}, indent=2) + "\n")

        identities = [{"id": name, **more} for more in extra for name in ids]
        return Answers(self.path / ANSWERS, identities, field, start, "add --resume to the same command to continue")

    def finish(self, summary: str) -> None:
        """Prints the summary in one line, and the files written."""
        files = [file.name for file in self.path.iterdir() if file.is_file() and not file.name.startswith(".")]
        print(summary)
        print(f"saved in {self.path}: {', '.join(sorted(set(files) - {SETTINGS, ANSWERS}))}")


def default_folder(*parts: str | None) -> Path:
    """``runs/eval/PART-PART-...``; of a path or hub id the last two names, unsafe characters replaced."""
    return Path("runs", "eval", "-".join(_slug(part) for part in parts if part))


def _slug(text: str) -> str:
    names = [name for name in Path(text).parts if name not in ("/", ".", "..")][-2:]
    return re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(names)).strip("-.") or "model"


def take_first(items: Sequence, limit: int | None) -> Sequence:
    """The first ``limit`` items, all for None. Raises InputError for a limit below 1."""
    if limit is not None and limit < 1:
        raise InputError(f"--limit must be at least 1, not {limit}")
    return items[:limit]


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."

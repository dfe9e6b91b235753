"""Results on disk as they are computed, so that an interrupted command can continue."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mint import parallel
from mint.errors import InputError, Stopped
from mint.files import append_text
from mint.hub import check_name


class Answers:
    """Answers to a list of prompts in a JSON Lines file, appended batch by batch.

    identities: for each prompt the fields of its line besides the answer; a line counts only if all are the same, so
    they name what the answer depends on. field: of the answer, any JSON value. before: called before the first line
    is written. again: how the user continues. As a context manager, it gives an interruption a message that says what
    is kept and how to continue. Of several processes the first appends to the file and the others to files of their own
    (``PATH.part-RANK``) until all have finished; a file that an interruption left is read like the first one.
    """

    def __init__(
        self,
        path: str | Path,
        identities: Sequence[dict],
        field: str = "answer",
        before: Callable[[], None] = lambda: None,
        again: str = "run the same command again to continue",
    ):
        self.path, self.identities, self.field, self.again = Path(path), identities, field, again
        self.known: dict[int, Any] = {}  # place -> answer
        self._before: Callable[[], None] | None = before
        self._cut = False  # whether the file ends in the middle of a line
        if self.path.is_file():
            self._cut = self._read(self.path)

    def _read(self, path: Path) -> bool:
        """Adds the answers of a file to ``known``; returns whether it ends in the middle of a line."""
        try:
            content = path.read_bytes()  # a process may be killed within a character
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}") from None
        places = {_key(identity): place for place, identity in enumerate(self.identities)}
        for line in content.split(b"\n"):
            try:
                row = json.loads(line.decode())
                answer = row.pop(self.field)
            except (
                ValueError,
                RecursionError,
                KeyError,
                AttributeError,
                TypeError,
            ):  # the last line of a killed process
                continue
            if (place := places.get(_key(row))) is not None:
                self.known[place] = answer
        return bool(content) and not content.endswith(b"\n")

    def save(self, answers: Mapping[int, object]) -> None:
        """Appends answers by place. Raises InputError if the file cannot be written."""
        own = self.path if parallel.is_main() else self._part(parallel.rank())
        self._start()
        rows = [{**self.identities[place], self.field: answer} for place, answer in answers.items()]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            self.path.parent.mkdir(0o700, parents=True, exist_ok=True)
            append_text(own, "\n" * self._cut + text)
        except OSError as error:
            raise InputError(f"{own} cannot be written: {error}") from None
        self._cut = False
        self.known |= answers

    def complete(self, decode: Callable[..., list]) -> list:
        """All answers in order; decode(known=..., save=...) gives them all, and is called only if some are missing.

        Of several processes, all of which call this, each decodes a share.
        """
        self.known = parallel.on_main(self._begin)
        if len(self.known) == len(self.identities):
            return [self.known[place] for place in range(len(self.identities))]
        answers = parallel.complete(len(self.identities), self.known, decode, save=self.save)
        if parallel.size() > 1 and parallel.is_main():
            self.save({place: answer for place, answer in enumerate(answers) if place not in self.known})
            self._remove_parts()
        return answers

    def _start(self) -> None:
        if self._before is not None and parallel.is_main():
            self._before()
            self._before = None

    def _begin(self) -> dict[int, Any]:
        """What is known, with what other processes of an interrupted command had saved, which moves to the file."""
        if parallel.size() > 1:
            self._start()
        before = set(self.known)
        for part in self._parts():
            self._read(part)
        if found := {place: answer for place, answer in self.known.items() if place not in before}:
            self.save(found)
        self._remove_parts()
        return self.known

    def _part(self, rank: int | str) -> Path:
        return self.path.with_name(f"{self.path.name}.part-{rank}")

    def _parts(self) -> list[Path]:
        files = self.path.parent.iterdir() if self.path.parent.is_dir() else ()
        return sorted(file for file in files if file.name.startswith(self._part("").name))

    def _remove_parts(self) -> None:
        for part in self._parts():
            part.unlink(missing_ok=True)

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, KeyboardInterrupt):
            number = error.number if isinstance(error, Stopped) else signal.SIGINT
            count = f"{len(self.known)} of {len(self.identities)} finished"
            raise Stopped(number, f"interrupted: {count} (kept in {self.path}); {self.again}") from None


def stamp(name: str | None) -> list:
    """What tells a model's weights from others under the same name: sizes and times of its files, if it is a folder."""
    if name:
        check_name("the model or adapter", name)
    files = sorted(Path(name).glob("*.safetensors")) if name else []
    return [name, *([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files)]


def _key(identity: Mapping) -> str:
    return json.dumps(identity, sort_keys=True)

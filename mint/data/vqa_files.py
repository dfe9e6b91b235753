"""The files that questions and reports about medical images are published in, as records.

* A JSON list (VQA-RAD, SLAKE) or JSON Lines, gzipped or not.
* PathVQA's pickles (``train_qa.pkl``): a list of ``image`` (without an ending), ``question``, ``answer``. Read by an
  unpickler that knows plain values alone, so that a file cannot run anything.
* R2Gen's ``annotation.json`` of IU-Xray: of every split a list of ``id``, ``report`` and ``image_path`` (a list).
* SLAKE's ``detection.json`` beside an image: a list of {name: [x, y, width, height]}.
"""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

from mint.data.records import read_bytes
from mint.errors import InputError, describe_error

DESCRIBE = "Describe the findings of this image."
SPLITS = ("train", "val", "test")


class _PlainUnpickler(pickle.Unpickler):
    """Lists, objects of names and values, texts and numbers; nothing that has to be looked up."""

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"it wants {module}.{name}")


def read_records(path: Path, split: str = "test") -> list[tuple[int, object]]:
    """(number, record) of each; split: of files that hold several. Raises InputError for a file of another form."""
    content = read_bytes(path)
    if path.suffix in (".pkl", ".pickle"):
        return _pickled(path, content)
    try:
        text = content.decode("utf-8-sig")
        if text.lstrip().startswith("["):
            return list(enumerate(json.loads(text), 1))
        if text.lstrip().startswith("{") and "\n" not in text.strip() or text.lstrip().startswith("{\n"):
            whole = json.loads(text)
            if set(SPLITS) & set(whole):
                return _reports(path, whole, split)
            return [(1, whole)]
        return [(number, json.loads(line)) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is neither a JSON list nor JSON Lines: {error}") from None


def _pickled(path: Path, content: bytes) -> list[tuple[int, object]]:
    try:
        rows = _PlainUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise InputError(f"{path} is not a pickle of plain records: {error}") from None
    if not isinstance(rows, list):
        raise InputError(f"{path} holds no list of records")
    return list(enumerate(rows, 1))


def _reports(path: Path, whole: dict, split: str) -> list[tuple[int, object]]:
    """R2Gen's records as questions whose answer is the report."""
    if not isinstance(whole.get(split), list):
        raise InputError(
            f"{path} has no split {split!r}: it holds {', '.join(name for name in SPLITS if name in whole)}"
        )
    rows = []
    for number, record in enumerate(whole[split], 1):
        if isinstance(record, dict) and "report" in record:
            fields = {"question": DESCRIBE, "answer": record["report"], "answer_type": "open"}
            record = {"id": record.get("id", number), "image": record.get("image_path"), **fields}
        rows.append((number, record))
    return rows


def read_boxes(image: Path) -> dict[str, list[list[float]]]:
    """name -> boxes [x0, y0, x1, y1] in ``detection.json`` beside the image; empty if there is no such file.

    Raises InputError for a file of another form.
    """
    path = image.with_name("detection.json")
    if not path.is_file():
        return {}
    found: dict[str, list[list[float]]] = {}
    try:
        for entry in json.loads(path.read_text(encoding="utf-8-sig")):
            for name, (x, y, width, height) in entry.items():
                corners = [float(x), float(y), float(x) + float(width), float(y) + float(height)]
                found.setdefault(str(name), []).append(corners)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not of SLAKE's form: {describe_error(error)}") from None
    return found

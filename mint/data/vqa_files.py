"""The files that questions and reports about medical images are published in, as records.

* A JSON list (VQA-RAD, SLAKE) or JSON Lines, gzipped or not.
* PathVQA's pickles (``train_qa.pkl``): a list of ``image`` (without an ending), ``question``, ``answer``. Only pickles
  of plain values are read, so that a file cannot run anything.
* R2Gen's ``annotation.json`` of IU-Xray: of every split a list of ``id``, ``report`` and ``image_path`` (a list).
* SLAKE's ``detection.json`` beside an image: a list of {name: [x, y, width, height]}.
"""

from __future__ import annotations

import pickle
import pickletools
from collections import deque
from pathlib import Path

from mint.data.records import RATIO, json_lines, parse_rows, read_bytes, read_text
from mint.errors import InputError, describe_error
from mint.files import DEEPEST, parse_json

DESCRIBE = "Describe the findings of this image."
SPLITS = ("train", "val", "test")
OPCODES = frozenset(  # of numbers, texts, lists and dictionaries, in protocols 0 to 5
    "MARK STOP POP POP_MARK DUP INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT NONE NEWTRUE NEWFALSE "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 "
    "TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE PROTO FRAME".split()
)
EXPANDED = 32_000_000  # bytes that a small pickle may stand for
VALUE_SIZE = 64  # bytes that a value takes at least, for the limit on what a pickle expands to


def read_records(path: Path, split: str = "test") -> list[tuple[int, object]]:
    """(number, record) of each; split: of files that hold several. Raises InputError for a file of another form."""
    if path.suffix in (".pkl", ".pickle"):
        return list(enumerate(_unpickle(path, read_bytes(path)), 1))
    text = read_text(path)
    try:
        if text.lstrip().startswith("["):
            return list(enumerate(parse_json(text), 1))
        if text.lstrip().startswith("{") and "\n" not in text.strip() or text.lstrip().startswith("{\n"):
            whole = parse_json(text)
            if set(SPLITS) & set(whole):
                return _reports(path, whole, split)
            return [(1, whole)]
    except InputError as error:
        raise InputError(f"{path} is neither a JSON list nor JSON Lines: {error}") from None
    return parse_rows(
        path, json_lines(path), lambda line, number: (number, parse_json(line)), key=lambda row: str(row[0])
    )


def _unpickle(path: Path, content: bytes) -> list:
    """The records of a pickle of plain values.

    Its instructions are checked before any is carried out: none may look anything up, and none may name a place of the
    memory that the file cannot have filled, for which the unpickler would allocate gigabytes.
    """
    try:
        texts = deque[str](maxlen=2)
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name not in OPCODES:
                wanted = argument if isinstance(argument, str) else ".".join(texts)
                raise pickle.UnpicklingError(f"it wants {wanted} ({opcode.name})")
            texts += [argument] if isinstance(argument, str) else []
            if "PUT" in opcode.name and argument is not None and not 0 <= int(argument) <= len(content):
                raise pickle.UnpicklingError(f"a place in memory that is out of range, {argument}")
        rows = pickle.loads(content)
        _check_plain(rows, max(EXPANDED, RATIO * len(content)))
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise InputError(f"{path} is not a pickle of plain records: {error}") from None
    if not isinstance(rows, list):
        raise InputError(f"{path} holds no list of records")
    return rows


def _check_plain(rows: object, limit: int) -> None:
    """Raises InputError unless all values are what JSON can hold, not too deep, and below ``limit`` bytes written out.

    A list may stand in several places at the cost of two bytes, so ten lists of ten can stand for 10^10 values.
    """
    level, size = [rows], 0
    for _ in range(DEEPEST):
        inner: list[object] = []
        for value in level:
            size += VALUE_SIZE + (len(value) if isinstance(value, str) else 0)
            if isinstance(value, dict):
                inner += [*value.keys(), *value.values()]
            elif isinstance(value, list | tuple):
                inner += value
            elif isinstance(value, str):
                value.encode()
            elif not (value is None or isinstance(value, int | float) and abs(value) < float("inf")):
                raise InputError(f"it holds a value of type {type(value).__name__}, or one that is not finite")
            if size + VALUE_SIZE * len(inner) > limit:
                raise InputError(f"it stands for more than {limit:,} bytes")
        if not inner:
            return
        level = inner
    raise InputError("it is nested too deeply")


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
        for entry in parse_json(read_bytes(path)):
            for name, (x, y, width, height) in entry.items():
                corners = [float(x), float(y), float(x) + float(width), float(y) + float(height)]
                found.setdefault(str(name), []).append(corners)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"{path} is not of SLAKE's form: {describe_error(error)}") from None
    return found

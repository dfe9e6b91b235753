"""Values of the reference for every pair, on disk: computed before the first step, read in place of a forward pass.

The files of a folder hold several thousand pairs each. A file's name is the hash of its content, so a damaged one is
noticed. A pair is found by a hash of what the reference reads of it: token ids, spans and the content of its images,
the corrupted ones included. The files are mapped into memory and not held in it.

Tensors of a file with n pairs, R targets and K positions with a KL: ``pairs`` [n, 16] bytes, the hashes; ``ends``
[n, 2], where their targets and positions end; ``logps`` [R]; and for losses with a KL ``hidden`` [K, H].
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mint.data.batch import Batch, EncodedPair
from mint.files import file_aside, remove_leftovers
from mint.losses import Needs
from mint.objective import kl_positions

FILE_PAIRS, FILE_BYTES = 4096, 2**26  # of a file, about: at most so much is lost if the process is killed
KEY_BYTES = 16


class ReferenceStore:
    """Reads and writes the values in a folder: those that a loss ``wants`` of one reference."""

    def __init__(self, folder: str | Path, wants: Needs):
        """Opens the files of the folder. A damaged one is deleted, and named on stderr."""
        self.folder, self.wants = Path(folder), wants
        self._files: list[dict[str, Tensor]] = []
        self._places: dict[bytes, tuple[int, int]] = {}  # of a pair: its file, and its row there
        self._new: dict[bytes, dict[str, Tensor]] = {}  # not yet written
        self._images: dict[str, bytes] = {}
        if self.folder.is_dir():
            remove_leftovers(self.folder)
        for path in sorted(self.folder.glob("*.safetensors")):
            if not self._open(path):
                print(f"{path} is damaged: the reference of its pairs is computed again", file=sys.stderr)
                path.unlink()

    def __contains__(self, pair: EncodedPair) -> bool:
        key = self.key(pair)
        return key in self._places or key in self._new

    def key(self, pair: EncodedPair) -> bytes:
        """A hash of what a reference reads of the pair."""
        digest = hashlib.blake2b(digest_size=KEY_BYTES)
        for part in (pair, pair.twin):
            if part is not None:
                for ids in (part.prompt, part.chosen, part.rejected, part.chosen_span or []):
                    digest.update(b"%d;" % len(ids) + array("q", ids).tobytes())
                for file in part.images:
                    digest.update(self._image(file))
        return digest.digest()

    def _image(self, file: str) -> bytes:
        """The hash of a file's content, which is read once."""
        if file not in self._images:
            with open(file, "rb") as content:
                self._images[file] = hashlib.file_digest(content, "sha256").digest()
        return self._images[file]

    def put(self, batch: Batch, values: dict[str, Tensor]) -> None:
        """Takes the values of a batch's pairs (:func:`mint.objective.reference_values`); ``flush`` writes the last.

        Raises InputError if the disk is full or the folder cannot be written.
        """
        order, counts = _pair_by_pair(batch)
        parts = [{"logps": part} for part in values["logps"].cpu()[order].split(counts)]
        if "hidden" in values:
            order, counts = _pair_by_pair(batch, values["at"].cpu())
            for part, hidden in zip(parts, values["hidden"].cpu()[order].split(counts), strict=True):
                part["hidden"] = hidden
        self._new |= {self.key(pair): part for pair, part in zip(batch.records, parts, strict=True) if pair not in self}
        size = sum(tensor.nbytes for part in self._new.values() for tensor in part.values())
        if len(self._new) >= FILE_PAIRS or size >= FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what is in memory only."""
        if not self._new:
            return
        parts = list(self._new.values())
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        ends = [[len(part["logps"]), len(part.get("hidden", ()))] for part in parts]
        tensors["pairs"] = torch.frombuffer(bytearray(b"".join(self._new)), dtype=torch.uint8).view(-1, KEY_BYTES)
        tensors["ends"] = torch.tensor(ends).cumsum(0)
        content = save(tensors)
        path = self.folder / f"{hashlib.sha256(content).hexdigest()}.safetensors"
        with file_aside(path) as aside:
            aside.write_bytes(content)
        self._new = {}
        self._index(load_file(path))

    def _open(self, path: Path) -> bool:
        """Adds the pairs of a file; returns whether it is intact."""
        try:
            with path.open("rb") as file:
                intact = hashlib.file_digest(file, "sha256").hexdigest() == path.stem
            if intact:
                self._index(load_file(path))
        except (OSError, SafetensorError):
            return False
        return intact

    def _index(self, tensors: dict[str, Tensor]) -> None:
        for row, key in enumerate(tensors["pairs"].numpy()):
            self._places[key.tobytes()] = len(self._files), row
        self._files.append(tensors)

    def add_to(self, batch: Batch) -> Batch:
        """The batch with the values of its pairs. Raises KeyError if the store lacks one."""
        rows = [self._row(self.key(pair)) for pair in batch.records]
        reference = {"logps": self._join(rows, "logps", _pair_by_pair(batch)[0])}
        if (positions := kl_positions(batch, self.wants)) is not None:
            at = positions.nonzero().squeeze(1)
            reference |= {"at": at, "hidden": self._join(rows, "hidden", _pair_by_pair(batch, at)[0])}
        return replace(batch, reference=reference)

    def _row(self, key: bytes) -> dict[str, Tensor]:
        number, row = self._places[key]
        file = self._files[number]
        starts = file["ends"][row - 1].tolist() if row else [0, 0]
        ends = file["ends"][row].tolist()
        return {
            name: file[name][a:b] for name, a, b in zip(("logps", "hidden"), starts, ends, strict=True) if name in file
        }

    @staticmethod
    def _join(rows: list[dict[str, Tensor]], name: str, order: Tensor) -> Tensor:
        """The values of the pairs at their positions in the batch."""
        values = torch.cat([row[name] for row in rows])
        return torch.empty_like(values).index_copy_(0, order, values)


def _pair_by_pair(batch: Batch, at: Tensor | None = None) -> tuple[Tensor, list[int]]:
    """(the order of predicted positions in which those of a pair, and after them those of its twin, are together; how
    many each pair has). at: the positions in question, by default all."""
    pair = batch.pair if at is None else batch.pair[at]
    owner = torch.cat([torch.arange(batch.pairs), batch.twins])[pair]
    order = (2 * owner + (pair >= batch.pairs)).argsort(stable=True)
    return order, owner.bincount(minlength=batch.pairs).tolist()

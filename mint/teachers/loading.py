"""Saved teachers of diseases, of either kind, and several as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mint.data.cases import Case
from mint.errors import InputError
from mint.teachers.findings_teacher import is_face_reader, load_findings_teacher
from mint.teachers.ranking import Teacher
from mint.teachers.vilt_teacher import load_teacher


class MeanTeacher:
    """Several teachers of the same diseases as one: the mean of their scores."""

    def __init__(self, teachers: Sequence[Teacher]):
        """Raises InputError if the teachers do not know the same diseases in the same order."""
        if any(teacher.classes != teachers[0].classes for teacher in teachers):
            raise InputError("teachers that rank together must have been fitted on the same diseases")
        if len({type(teacher) for teacher in teachers}) > 1:
            raise InputError("teachers that rank together must be of one kind: their scores have different scales")
        self.teachers, self.classes = teachers, teachers[0].classes
        self.name = f"{len(teachers)} x {teachers[0].name}"

    def scores(self, cases: Sequence[Case], own: Sequence[Case] | None = None) -> np.ndarray:
        """[cases, diseases] scores; ``own`` as for each of the teachers."""
        return np.mean([teacher.scores(cases, own) for teacher in self.teachers], axis=0)


def load_teachers(folders: Sequence[str | Path], device: torch.device | str = "cpu", view: str = "both") -> Teacher:
    """The teacher in a directory, or those of several as one: ViLTs, or face readers with the counts of naive Bayes.

    Raises InputError if a directory holds no teacher, or they know different diseases.
    """
    teachers = [_load(folder, device, view) for folder in folders]
    return teachers[0] if len(teachers) == 1 else MeanTeacher(teachers)


def _load(folder: str | Path, device: torch.device | str, view: str) -> Teacher:
    load = load_findings_teacher if is_face_reader(folder) else load_teacher
    return load(folder, device, view)

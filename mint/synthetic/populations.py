"""Three populations of radiographs that differ in nothing but their correlations.

In all of them every finding, and a tracheal tube, is present in half of the patients, half of the findings are on the
left, and all degrees and zones are equally common. docs/fire_findings.md has the table of conditional probabilities.

A model of the ward that guesses from what is common there is right on the ward, no better than chance on balanced
patients, and wrong on reversed ones; one that reads the image is right on all.
"""

from __future__ import annotations

from mint.synthetic.radiographs import EVERYONE, Habit, Patients

RISING = (1 / 15, 1 / 3, 3 / 5)  # large, or low
FALLING = RISING[::-1]
WARD = Patients(
    {
        "nodule": Habit(left=0.1, degrees=FALLING, zones=FALLING),
        "consolidation": Habit((0.8, 0.2), "nodule", 0.9, RISING, RISING),
        "effusion": Habit((0.1, 0.9), "consolidation", 0.9, RISING),
        "pneumothorax": Habit((0.8, 0.2), "effusion", 0.1, FALLING),
    },
    tube=(0.1, 0.9),
)


def mirrored(patients: Patients) -> Patients:
    """Every correlation reversed; the marginals stay, where they are even."""
    habits = {
        kind: Habit(habit.present[::-1], habit.beside, 1 - habit.left, habit.degrees[::-1], habit.zones[::-1])
        for kind, habit in patients.habits.items()
    }
    return Patients(habits, patients.tube and patients.tube[::-1])


BALANCED = Patients(EVERYONE.habits, tube=(0.5, 0.5))
POPULATIONS = {"ward": WARD, "balanced": BALANCED, "reversed": mirrored(WARD)}

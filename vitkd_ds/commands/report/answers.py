"""Predictions of student and teacher for each validation image, read from the run folder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitkd_ds.config.run_folder import PREDICTIONS, read_json

MOST_CLASSES = 25
"""Maximum number of classes in a confusion matrix. If a run has more, those confused most often are shown."""
OUTCOMES = {
    "teacher": "only the teacher is right",
    "student": "only the student is right",
    "neither": "neither is right",
}
"""Kinds of disagreement between student and teacher: name -> label in the report."""


@dataclass(frozen=True)
class Answers:
    """Predictions of one evaluation.

    Each array has one element per image. Labels and predictions are int64 class indices.
    """

    step: int
    classes: list[str]
    image: np.ndarray
    """Number of each image in the file of validation images."""
    label: np.ndarray
    student: np.ndarray
    student_probability: np.ndarray
    teacher: np.ndarray | None
    teacher_probability: np.ndarray | None

    def right(self, role: str = "student") -> np.ndarray:
        """Return for each image whether the prediction of a role, "student" or "teacher", is right."""
        return getattr(self, role) == self.label

    def disagreements(self) -> dict[str, np.ndarray]:
        """Return the indices of the images where student and teacher disagree, for each key of OUTCOMES."""
        differ = self.student != self.teacher
        student = self.right()
        teacher = self.right("teacher")
        found = (differ & teacher, differ & student, differ & ~student & ~teacher)
        return {outcome: is_so.nonzero()[0] for outcome, is_so in zip(OUTCOMES, found)}

    def confusion(self) -> tuple[list[int], np.ndarray]:
        """Return the labels to show, and the student's confusion matrix for these labels.

        With up to MOST_CLASSES classes, all labels are shown; otherwise those confused most often. The matrix has one
        row per true label and one column per predicted label, and counts images. Its last, additional column counts
        predictions of labels that are not shown.
        """
        count = len(self.classes)
        shown = sorted(_most_confused(self.label, self.student)) if count > MOST_CLASSES else [*range(count)]
        place = np.full(count, len(shown))
        place[shown] = np.arange(len(shown))
        counts = np.zeros((len(shown) + 1, len(shown) + 1), np.int64)
        np.add.at(counts, (place[self.label], place[self.student]), 1)
        return shown, counts[:-1]


def _most_confused(labels: np.ndarray, answers: np.ndarray) -> list[int]:
    """Return MOST_CLASSES labels, starting with the pairs of labels that are confused most often.

    Confusions in both directions count for the same pair. If too few labels are confused, other labels follow.
    """
    wrong = labels != answers
    pairs = np.sort(np.stack([labels[wrong], answers[wrong]], axis=1), axis=1)
    pairs, counts = np.unique(pairs, axis=0, return_counts=True)
    chosen: dict[int, None] = {}
    for pair in pairs[np.argsort(-counts, kind="stable")].tolist():
        chosen |= dict.fromkeys(pair)
    return [*(chosen | dict.fromkeys(range(MOST_CLASSES)))][:MOST_CLASSES]


def read_answers(folder: Path) -> Answers | None:
    """Read the predictions of a run's newest evaluation. Return None if the run has not stored any.

    A run without classes never stores predictions.

    Raises:
        ValueError: the file is damaged.
    """
    file = folder / PREDICTIONS
    if not file.is_file():
        return None
    lists = ("image", "label", "student", "student_probability")
    found = read_json(file, {"step": int, "classes": list} | dict.fromkeys(lists, list))
    roles = ("student", "teacher") if "teacher" in found else ("student",)
    try:
        numbers = {key: np.asarray(found[key], np.int64) for key in ("image", "label", *roles)}
        parts = {f"{role}_probability": np.asarray(found[f"{role}_probability"], float) for role in roles}
        _check(file, found["classes"], numbers, parts)
    except (KeyError, TypeError, OverflowError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error!r}). Remove it.") from None
    absent = {key: None for key in ("teacher", "teacher_probability") if key not in numbers | parts}
    return Answers(found["step"], list(map(str, found["classes"])), **numbers, **parts, **absent)


def _check(file: Path, classes: list[str], numbers: dict[str, np.ndarray], parts: dict[str, np.ndarray]) -> None:
    lengths = {array.shape for array in (*numbers.values(), *parts.values())}
    if len(lengths) != 1 or lengths == {(0,)} or len(next(iter(lengths))) != 1:
        raise ValueError(f"lists have the shapes {sorted(lengths)}")
    for key in numbers.keys() - {"image"}:
        if numbers[key].min() < 0 or numbers[key].max() >= len(classes):
            raise ValueError(f"{key} is outside the {len(classes)} classes")


def are_comparable(own: Answers, other: Answers) -> bool:
    """Return whether two evaluations have the same classes, image numbers and labels."""
    same = own.classes == other.classes and len(own.image) == len(other.image)
    return same and bool((own.image == other.image).all() and (own.label == other.label).all())

"""Read the folder of a finished or unfinished run: settings, newest evaluation, model sizes and training speed."""

import json
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

from vitkd_ds.checkpoint.folder import FREE_KEYS, flattened
from vitkd_ds.config.overrides import from_dict
from vitkd_ds.config.run import Run, as_dict
from vitkd_ds.config.run_folder import CONFIG, DONE, METRICS, SUMMARY, read_json
from vitkd_ds.config.teachers import MANY, of_any, places_in_file, read
from vitkd_ds.data.images import SPLITS
from vitkd_ds.train.statistics import wilson_interval

EVALUATED = ("val_num_images", "val_top1", "val_top5")
"""Keys that every evaluation of top-1 writes to metrics.jsonl. With a teacher, there are further keys."""
SIZES = ("parameters", "gflops")
NEEDED = {
    "run": dict,
    "run.seed": int,
    "run.teacher": dict | None,
    f"run.{MANY}": dict | None,
    "run.data.train": str,
    "run.data.val": str,
    "run.data.image_size": int,
    "run.data.num_classes": int,
    "run.global_batch_size": int,
    "plan.steps_per_epoch": int,
    "world_size": int,
    "images": dict | None,
}
"""Keys of config.json that a comparison needs -> their types."""


@dataclass(frozen=True)
class Result:
    """Contents of a run folder."""

    folder: Path
    name: str
    """Last components of the folder's path, as few as are needed to distinguish it from the other runs' paths."""
    config: dict[str, Any]
    """Content of config.json."""
    lines: list[dict[str, Any]]
    """Complete lines of metrics.jsonl."""
    evaluation: dict[str, Any]
    """Newest line of metrics.jsonl with an evaluation of top-1; {} if there is none."""
    summary: dict[str, Any] | None
    """Content of summary.json; None while the run is not finished."""

    @property
    def num_images(self) -> int:
        """Number of validation images in the newest evaluation."""
        return int(self.evaluation["val_num_images"])

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for a run without labels."""
        return self.config["run"]["data"]["num_classes"]

    @property
    def top1(self) -> float:
        """The student's top-1 in the newest evaluation, in percent."""
        return self.evaluation["val_top1"]

    @property
    def top1_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `top1` over the validation images, in percent."""
        return wilson_interval(self.num_images, round(self.top1 * self.num_images / 100))

    @property
    def is_final(self) -> bool:
        """Whether the run is finished and its newest evaluation was at the last step."""
        return self.summary is not None and self.summary["steps"] == self.evaluation.get("step")

    @property
    def images_per_s(self) -> float | None:
        """Training speed over all ranks in images/s: a finished run's mean if it is known, else the last logged value.

        None if there is neither.
        """
        whole_run = self.summary["images_per_s"] if self.summary else None
        logged = [line["images_per_s"] for line in self.lines if line.get("images_per_s")]
        return whole_run or (logged[-1] if logged else None)

    @property
    def training_s(self) -> float | None:
        """Time of all training steps in seconds, without evaluations and checkpoints; None for an unfinished run."""
        if not self.summary or not self.images_per_s:
            return None
        return self.summary["steps"] * self.config["run"]["global_batch_size"] / self.images_per_s

    @property
    def seed(self) -> int:
        """Random seed of the run."""
        return self.config["run"]["seed"]

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that affect the trained student, except the seed: dotted key -> value.

        `extended_at_steps` is included, because a run that was extended decays its learning rate more than once.
        """
        run = self.config["run"]
        with suppress(ValueError):  # settings of an unknown version stay as they are
            run = json.loads(json.dumps(as_dict(from_dict(Run, run))))  # newer fields get their defaults
        own = {key: value for key, value in flattened(run).items() if of_any(key) not in FREE_KEYS | {"seed"}}
        extended = self.config.get("extended_at_steps")
        return own | ({"extended_at_steps": extended} if extended else {})

    def other_images(self, other: "Result") -> list[str]:
        """Return which of "data.train" and "data.val" have different images in the two runs.

        Images are compared by their stored fingerprints, or by their paths if one of the runs is too old to have stored
        a fingerprint. Validation images also count as different if the two runs evaluated different numbers of them.
        Equal numbers mean equal images, because data.max_val_images always selects evenly spaced images.
        """
        found = []
        for split in SPLITS:
            both = [(run.config.get("images") or {}).get(split) for run in (self, other)]
            if None in both:
                both = [run.config["run"]["data"][split] for run in (self, other)]
            found += [f"data.{split}"] if both[0] != both[1] else []
        counts = {run.num_images for run in (self, other) if run.evaluation}
        if len(counts) > 1 and "data.val" not in found:
            found.append("data.val")
        return found

    def size(self, role: str, what: str) -> float | None:
        """Return the parameters or GFLOPs of the student, or their sum over all teachers.

        Args:
            role: "student" or "teacher".
            what: "parameters" or "gflops".

        Returns:
            The size, or None if the run has no such model or is too old to have stored sizes.
        """
        models = self.config.get("models", {})
        found = [models["student"]] if role == "student" and models else [*read(models).values()]
        return sum(model[what] for model in found) if found and models else None


def evaluations(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return those lines of metrics.jsonl that have an evaluation of top-1, in order."""
    return [line for line in lines if all(isinstance(line.get(key), int | float) for key in EVALUATED)]


def read_results(runs: Sequence[str], *, must_be_evaluated: bool = True) -> list[Result]:
    """Read run folders and return a result for each.

    Args:
        runs: paths of the folders.
        must_be_evaluated: whether a run without an evaluation of top-1 is an error.

    Raises:
        ValueError: a folder is not a run folder, is given twice, has a damaged file, or has no evaluation of top-1.
    """
    places = [Path(run).resolve() for run in runs]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise ValueError(f"the run {runs[number]} is given twice. Remove one of the two.")
    results = [_read(Path(run), name) for run, name in zip(runs, _names(places), strict=True)]
    for result in results if must_be_evaluated else ():
        _check_is_evaluated(result)
    return results


def _read(folder: Path, name: str) -> Result:
    config_file = folder / CONFIG
    if not config_file.is_file():
        raise ValueError(f"{folder} is not a run folder: it has no {CONFIG}. Pass the --workdir of train.")
    config = read_json(config_file, NEEDED)
    if "models" in config:  # absent before version 0.4
        roles = ["student", *places_in_file(read(config["run"]))]
        read_json(config_file, {f"models.{role}.{what}": int | float for role in roles for what in SIZES})
    lines = read_lines(folder)
    summary = None
    if (folder / DONE).is_file():
        summary = read_json(folder / SUMMARY, {"steps": int, "images_per_s": int | float | None})
    return Result(folder, name, config, lines, [{}, *evaluations(lines)][-1], summary)


def _check_is_evaluated(result: Result) -> None:
    folder = result.folder
    data = result.config["run"]["data"]
    if not data["num_classes"]:
        # If the run has no labelled images for k-NN, the user must pass some.
        own = "" if data.get("knn_train") else " --train FOLDER --val FOLDER"
        raise ValueError(
            f"{folder} was trained without classes (data.num_classes=0), so it has no top-1 to compare. Leave out this "
            f"run. To evaluate it, run: vitkd-ds eval {shlex.quote(str(folder))} --knn --probe{own}"
        )
    if not result.evaluation:
        raise ValueError(f"{folder} has no evaluation in {METRICS} yet. Wait for the first evaluation.")


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the parsed lines of a run's metrics.jsonl (see `whole_lines`). Return [] if there is no such file."""
    file = folder / METRICS
    return whole_lines(file.read_text(errors="replace")) if file.is_file() else []


def whole_lines(text: str) -> list[dict[str, Any]]:
    """Return the parsed lines of a metrics.jsonl. Damaged and incomplete lines are skipped."""
    lines = []
    for line in text.splitlines():
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict) and type(content.get("step")) is int:
            lines.append(content)
    return lines


def _names(places: Sequence[Path]) -> list[str]:
    """Return the last components of each path, as few as are needed to distinguish it from the other paths."""
    names = []
    for place in places:
        others = [other.parts for other in places if other != place]
        fitting = (place.parts[-length:] for length in range(1, len(place.parts)))
        tail = next((tail for tail in fitting if all(other[-len(tail) :] != tail for other in others)), place.parts)
        names.append(str(Path(*tail)))
    return names

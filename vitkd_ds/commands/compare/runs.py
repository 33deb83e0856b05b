"""Read a run folder, finished or still training: settings, newest evaluation, model sizes and speed."""

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
"""Keys in every evaluation line of metrics.jsonl; a teacher adds more."""
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
"""Keys of config.json that a comparison needs, with their types."""


@dataclass(frozen=True)
class Result:
    """Contents of a run folder."""

    folder: Path
    name: str
    """Shortest end of the folder's path that distinguishes it from the other runs."""
    config: dict[str, Any]
    """Content of config.json."""
    lines: list[dict[str, Any]]
    """Complete lines of metrics.jsonl."""
    evaluation: dict[str, Any]
    """Newest line with an evaluation of top-1; {} if there is none."""
    summary: dict[str, Any] | None
    """Content of summary.json; None while the run is not finished."""

    @property
    def num_images(self) -> int:
        """Number of validation images evaluated."""
        return int(self.evaluation["val_num_images"])

    @property
    def top1(self) -> float:
        """Student top-1 in percent."""
        return self.evaluation["val_top1"]

    @property
    def top1_interval(self) -> tuple[float, float]:
        """95 % confidence interval of top-1, from the number of validation images, in percent."""
        return wilson_interval(self.num_images, round(self.top1 * self.num_images / 100))

    @property
    def is_final(self) -> bool:
        """Whether the run is finished and was evaluated at its last step."""
        return self.summary is not None and self.summary["steps"] == self.evaluation.get("step")

    @property
    def images_per_s(self) -> float | None:
        """Training images/s over all ranks; None before the first logged value."""
        whole_run = self.summary["images_per_s"] if self.summary else None
        logged = [line["images_per_s"] for line in self.lines if line.get("images_per_s")]
        return whole_run or (logged[-1] if logged else None)

    @property
    def training_s(self) -> float | None:
        """Seconds spent in training steps, without evaluations and checkpoints; None while the run is unfinished."""
        if not self.summary or not self.images_per_s:
            return None
        return self.summary["steps"] * self.config["run"]["global_batch_size"] / self.images_per_s

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.config["run"]["seed"]

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the seed that affects what is learned: dotted key -> value.

        `extended_at_steps` is included because an extended run decays its learning rate more than once.
        """
        run = self.config["run"]
        with suppress(ValueError):  # settings of an unknown version stay as they are
            run = json.loads(json.dumps(as_dict(from_dict(Run, run))))  # newer fields get their defaults
        own = {key: value for key, value in flattened(run).items() if of_any(key) not in FREE_KEYS | {"seed"}}
        extended = self.config.get("extended_at_steps")
        return own | ({"extended_at_steps": extended} if extended else {})

    def other_images(self, other: "Result") -> list[str]:
        """Return which of data.train and data.val differ in their images between two runs.

        Fingerprints decide, or paths if either run is too old to have stored a fingerprint. Of equal validation data,
        data.max_val_images evaluates evenly spaced images, so equal counts mean equal images.
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
        """Return the "parameters" or "gflops" of the "student", or the sum over all teachers for "teacher".

        Return None if there is no such model or the run is too old to have stored them.
        """
        models = self.config.get("models", {})
        found = [models["student"]] if role == "student" and models else [*read(models).values()]
        return sum(model[what] for model in found) if found and models else None


def evaluations(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the evaluation lines of metrics.jsonl, in order."""
    return [line for line in lines if all(isinstance(line.get(key), int | float) for key in EVALUATED)]


def read_results(runs: Sequence[str], *, must_be_evaluated: bool = True) -> list[Result]:
    """Read run folders.

    Raises:
        ValueError: a folder is not a run, is given twice or, if `must_be_evaluated`, has no evaluation of top-1 yet.
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
        # The run may have labelled images for k-NN; otherwise the user must name some.
        own = "" if data.get("knn_train") else " --train FOLDER --val FOLDER"
        raise ValueError(
            f"{folder} was trained without classes (data.num_classes=0), so it has no top-1 to compare. Leave it out, "
            f"and run `vitkd-ds eval {shlex.quote(str(folder))} --knn --probe{own}` on labelled images."
        )
    if not result.evaluation:
        raise ValueError(f"{folder} has no evaluation in {METRICS} yet. Wait for the first one.")


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a run's metrics.jsonl; [] if there is no such file."""
    file = folder / METRICS
    return whole_lines(file.read_text(errors="replace")) if file.is_file() else []


def whole_lines(text: str) -> list[dict[str, Any]]:
    """Return the parsed lines of a metrics.jsonl without damaged and incomplete ones."""
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
    """Return for each path its shortest end that is not the end of another path."""
    names = []
    for place in places:
        others = [other.parts for other in places if other != place]
        fitting = (place.parts[-length:] for length in range(1, len(place.parts)))
        tail = next((tail for tail in fitting if all(other[-len(tail) :] != tail for other in others)), place.parts)
        names.append(str(Path(*tail)))
    return names

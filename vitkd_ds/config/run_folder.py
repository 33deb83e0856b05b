"""File names in a run folder, and lookup of exported students by path. Imports no torch."""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, TypeVar

from vitkd_ds.config import hub_folder
from vitkd_ds.config.overrides import from_dict
from vitkd_ds.config.reading import NOT_THERE, Unreadable, load_json, patiently
from vitkd_ds.config.run import Run

T = TypeVar("T")
CHECKPOINTS = "checkpoints"
CONFIG = "config.json"
"""The run's settings, schedule and launches."""
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
DONE = "done"
"""Empty file that marks a finished run."""
PREDICTIONS = "predictions.json"
"""Predictions of both models for each validation image in the newest evaluation."""
STUDENT, DESCRIPTION = "student.safetensors", "student.json"
TAG = re.compile(r"step\d{8}")
POINTERS = ("latest", "best")
"""Files in the checkpoints folder that contain the name of a checkpoint."""
PATHS_OF_DATA = ("train", "val", "knn_train", "knn_val", "classes")
NO_PATHS = ("", "demo", "hub", "random")
"""Values of path settings that are not paths."""
NOT_OF_THE_MODEL = ("num_classes", "img_size", "pretrained_cfg_overlay")
"""Model arguments in student.json that another run does not take over, because it derives them from its own data."""

EXPORTED = {
    "model": str,
    "args": dict,
    "args.num_classes": int,
    "normalization.mean": list,
    "normalization.std": list,
    "image_size": int,
    "val_crop_fraction": int | float,
    "interpolation": str,
    "classes": list,
}
"""Required keys of an exported student's description, with their types."""


def tags(folder: Path) -> list[str]:
    """Return the names of the complete checkpoints in a checkpoints folder, newest first."""
    names = _read_if_there(os.listdir, folder) or ()
    return sorted((name for name in names if TAG.fullmatch(name)), reverse=True)


def pointer(folder: Path, name: str) -> str:
    """Return the name of the checkpoint in the file `latest` or `best`; "" if the file is missing or damaged."""
    content = _read_if_there(Path.read_bytes, folder / name) or b""
    text = content.decode(errors="replace").strip()
    return text if TAG.fullmatch(text) else ""


def _read_if_there(read: Callable[[Path], T], path: Path) -> T | None:
    """Return `read(path)`, with retries; None if the path does not exist."""
    try:
        return patiently(read)(path)
    except OSError as error:
        if error.errno in NOT_THERE:
            return None
        raise


def newest(folder: Path) -> str:
    """Return the name of the checkpoint to resume from, or "" if there is none.

    This is the checkpoint that `latest` names, or the next older one if that checkpoint is missing. If there is
    neither, it is the newest checkpoint.
    """
    latest, every = pointer(folder, "latest"), tags(folder)
    return next((tag for tag in every if tag <= latest), next(iter(every), ""))


def find_student(source: str | Path) -> Path:
    """Return the folder with student.safetensors and student.json of a run, a checkpoint or an export.

    For RUN/best or RUN/checkpoints/best, return the checkpoint that the file `best` names; `latest` works in the same
    way. For a finished run, return the run folder; for an unfinished run, its newest checkpoint; for a weight file, the
    folder of the file. An export may also have the files of the Hub's format.

    Raises:
        ValueError: one of the two files is missing.
    """
    source = Path(source)
    folder = source.parent if source.name in (STUDENT, hub_folder.WEIGHTS) else source
    if folder.name in POINTERS and not folder.is_dir():
        checkpoints = folder.parent if folder.parent.name == CHECKPOINTS else folder.parent / CHECKPOINTS
        folder = checkpoints / (pointer(checkpoints, folder.name) or folder.name)
    elif not (folder / DONE).exists() and (tag := newest(folder / CHECKPOINTS)):
        folder = folder / CHECKPOINTS / tag
    for file in student_files(folder):
        if not file.is_file():
            advice = hub_folder.advice_for(folder / CONFIG)
            problem = f"{file} does not exist" if folder.is_dir() else f"there is no folder {folder}. Check the path."
            raise ValueError(f"{source} is not a run, checkpoint or exported student: {problem}{advice}")
    return folder


def student_files(folder: Path) -> tuple[Path, Path]:
    """Return the paths of a student's weights and description in a folder, in our format or the Hub's."""
    ours = folder / STUDENT, folder / DESCRIPTION
    if ours[0].is_file() or not hub_folder.description_of(folder / CONFIG):
        return ours
    return folder / hub_folder.WEIGHTS, folder / CONFIG


def read_description(folder: Path, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a student's description, which must contain `keys`. Raises the errors of `read_json`."""
    file = student_files(folder)[1]
    return read_json(file, keys) if file.name == DESCRIPTION else hub_folder.description_of(folder / CONFIG)


def read_student(find: Callable[[], Path], use: Callable[[Path], T]) -> T:
    """Return `use(folder)` for the folder that `find` returns; retry if a running job deletes the folder meanwhile.

    Raises the errors of `find` and `use`.
    """
    for _ in range(19):
        folder = None
        try:
            folder = find()
            return use(folder)
        except (OSError, ValueError):
            if folder is not None and all(file.is_file() for file in student_files(folder)):
                raise
    return use(find())


def run_beside(folder: Path) -> Path | None:
    """Return the folder (with config.json) of the run that contains a student's folder; None for an export."""
    places = (folder, folder.parent.parent) if (folder / STUDENT).is_file() else ()  # not the hub's config.json
    return next((place for place in places if (place / CONFIG).is_file()), None)


def find_weights(source: str, key: str) -> Path:
    """Return the path of weights: `source` if it is a file, or the student's file in a run, checkpoint or export.

    Raises:
        ValueError: there are no weights; the message names the option `key`.
    """
    path = Path(source).expanduser()
    if not is_student(path):
        check_is_there(str(path), key)
        return path
    try:
        folder = find_student(path)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    read_description(folder, {"model": str, "args": dict})
    return student_files(folder)[0]


def is_student(path: Path) -> bool:
    """Return whether a path denotes a run, checkpoint or export rather than a weight file."""
    return path.is_dir() or path.name in POINTERS


def is_begun(workdir: Path) -> bool:
    """Return whether a run folder contains a finished run or a run with a checkpoint."""
    return (workdir / DONE).exists() or bool(newest(workdir / CHECKPOINTS))


def run_of(weights: Path) -> Path:
    """Return the folder of the run that contains a weight file; for a file outside a run, the folder of the file."""
    folder = weights.resolve().parent
    return folder.parents[1] if folder.parent.name == CHECKPOINTS else folder


def check_is_there(file: str, key: str) -> None:
    """Raise ValueError unless the weight file given with the option `key` exists."""
    if not Path(file).expanduser().is_file():
        raise ValueError(f"{key}: no weight file, run, checkpoint or export at {file}. Check the path.")


def check_is_new(target: Path) -> None:
    """Raise ValueError if `target` exists."""
    if target.exists():
        raise ValueError(f"{target} already exists and is not overwritten. Pass another folder.")


def read_json(file: Path, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Read a JSON file written by a run.

    Args:
        keys: required keys (dotted for nested ones) with their types.

    Raises:
        ValueError: the file is missing or damaged, or it lacks a key.
        Unreadable: the disk failed.
    """
    try:
        content = load_json(file)
    except Unreadable:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is missing or not valid JSON: {error}. Restore the file.") from None
    for key, kind in ({"": dict} | keys).items():
        value = content
        for part in key.split(".") if key else ():
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, kind):
            what, found = (
                (f"has no valid {key}", f"got {value!r}") if key else ("must be a JSON object", f"got {content!r}")
            )
            raise ValueError(f"{file} {what}, {found[:80]}. Restore the file.")
    return content


def description_beside(weights: Path) -> dict[str, Any]:
    """Return the model description (`model`, `args`, `classes`, `normalization`, ...) stored next to a weight file.

    Return {} if there is no description. Raise ValueError if the description is damaged.
    """
    path = weights.with_suffix(".json")
    if not path.is_file():
        return hub_folder.description_of(weights.with_name(CONFIG)) if weights.name == hub_folder.WEIGHTS else {}
    try:
        found = load_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Export the model again.") from None
    return found if isinstance(found, dict) else {}


def model_of(description: dict[str, Any]) -> dict[str, Any]:
    """Return the model name and arguments in a description as settings of a run; {} if the description has none."""
    if not {"model", "args"} <= description.keys():
        return {}
    args = {key: value for key, value in description["args"].items() if key not in NOT_OF_THE_MODEL}
    return {"model": description["model"], "model_args": args}


def read_run(path: Path) -> Run:
    """Read a run from a config.json, a folder with one, or a file with the output of `train.py --print_config`.

    Raises:
        ValueError: the file is missing or contains no run of this version; the message names the file.
        Unreadable: the disk failed.
    """
    file = path / CONFIG if path.is_dir() else path
    try:
        stored = load_json(file)
        return from_dict(Run, stored["run"] if isinstance(stored, dict) and "run" in stored else stored)
    except Unreadable:
        raise
    except OSError as error:
        raise ValueError(f"no run at {file}: {error.strerror}. Check the path.") from None
    except ValueError as error:
        raise ValueError(f"{file} contains no run of this version: {error}") from None


def started_in(run: Run, folder: Path) -> Path | None:
    """Return the folder where `train` was started; None if it is unknown or is the current folder.

    `folder` is where the run is now. If this path ends with the run's --workdir, and --workdir is relative, the rest of
    the path is the folder where `train` was started.
    """
    workdir, place = Path(run.workdir), folder.resolve()
    start = Path(*place.parts[: len(place.parts) - len(workdir.parts)])
    return None if workdir.is_absolute() or start / workdir != place or start == Path.cwd() else start


def check_paths(run: Run) -> None:
    """Raise ValueError if a path of the run exists only in the folder where the run was started."""
    paths = [getattr(run.data, key) for key in PATHS_OF_DATA]
    missing = [path for path in paths if path not in NO_PATHS and not os.path.exists(path)]
    folder = Path(run.workdir)
    start = started_in(read_run(folder), folder) if missing and (folder / CONFIG).is_file() else None
    if start and (start / missing[0]).exists():
        raise ValueError(
            f"{missing[0]} does not exist in this folder. The run in {folder} was started in {start}. Rerun its "
            "command there."
        )


def with_found_paths(run: Run, folder: Path) -> Run:
    """Return a run with its relative paths resolved from the folder where `train` was started.

    A path that does not exist there stays unchanged.
    """
    start = started_in(run, folder)
    if start is None:
        return run

    def found(part: Any, *keys: str) -> Any:
        paths = {key: start / getattr(part, key) for key in keys if getattr(part, key) not in NO_PATHS}
        return replace(part, **{key: str(path) for key, path in paths.items() if path.exists()})

    teachers = {name: found(teacher, "checkpoint", "head") for name, teacher in run.teachers.items()}
    return replace(run, data=found(run.data, *PATHS_OF_DATA), teachers=teachers)

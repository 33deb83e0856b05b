"""Names in a run folder, and the exported student that a path means. Nothing here imports torch."""

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
"""The run's settings, schedule and starts."""
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
DONE = "done"
"""An empty file of a finished run."""
PREDICTIONS = "predictions.json"
"""What both models answered in the newest evaluation, for each validation image."""
STUDENT, DESCRIPTION = "student.safetensors", "student.json"
TAG = re.compile(r"step\d{8}")
POINTERS = ("latest", "best")
"""Files in the checkpoints folder, each with the name of a checkpoint in it."""
PATHS_OF_DATA = ("train", "val", "knn_train", "knn_val", "classes")
NO_PATHS = ("", "demo", "hub", "random")
"""Values in the place of a path."""
NOT_OF_THE_MODEL = ("num_classes", "img_size", "pretrained_cfg_overlay")
"""Arguments in a description that a run sets by itself, from its data."""

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
"""Keys of an exported student's description, with their types, from which it is rebuilt and fed."""


def tags(folder: Path) -> list[str]:
    """Published checkpoints in a checkpoints folder, newest first."""
    names = _read_if_there(os.listdir, folder) or ()
    return sorted((name for name in names if TAG.fullmatch(name)), reverse=True)


def pointer(folder: Path, name: str) -> str:
    """The checkpoint that `latest` or `best` names, "" if there is none."""
    content = _read_if_there(Path.read_bytes, folder / name) or b""
    text = content.decode(errors="replace").strip()
    return text if TAG.fullmatch(text) else ""


def _read_if_there(read: Callable[[Path], T], path: Path) -> T | None:
    """Read `patiently`; return None where there is no such file."""
    try:
        return patiently(read)(path)
    except OSError as error:
        if error.errno in NOT_THERE:
            return None
        raise


def newest(folder: Path) -> str:
    """The checkpoint to go on from, "" if there is none: the one that `latest` names, the next older one if that is not
    there, or else the newest."""
    latest, every = pointer(folder, "latest"), tags(folder)
    return next((tag for tag in every if tag <= latest), next(iter(every), ""))


def find_student(source: str | Path) -> Path:
    """The folder with student.safetensors and student.json that `source` means: an export, a checkpoint, or a run.

    RUN/best and RUN/latest, or RUN/checkpoints/best and .../latest, are the checkpoints that these pointers name. A run
    that is not finished means its newest checkpoint. The path of the file of weights is its folder. An export may have
    the hub's format.

    Raises:
        ValueError: one of the two files is not there.
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
            raise ValueError(f"{source} must be a run, a checkpoint or an exported student, found no {file}{advice}")
    return folder


def student_files(folder: Path) -> tuple[Path, Path]:
    """Return the weights and the description of the student in a folder: of a run, or of an export for the hub."""
    ours = folder / STUDENT, folder / DESCRIPTION
    if ours[0].is_file() or not hub_folder.description_of(folder / CONFIG):
        return ours
    return folder / hub_folder.WEIGHTS, folder / CONFIG


def read_description(folder: Path, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Read the description of the student in a folder, which must hold `keys`; raises what `read_json` raises."""
    file = student_files(folder)[1]
    return read_json(file, keys) if file.name == DESCRIPTION else hub_folder.description_of(folder / CONFIG)


def read_student(find: Callable[[], Path], use: Callable[[Path], T]) -> T:
    """Call `use` with the folder of a student that `find` finds. A run may delete that checkpoint meanwhile; then the
    newer one that `find` finds is used. Raises what `find` and `use` raise."""
    for _ in range(19):
        folder = None
        try:
            folder = find()
            return use(folder)
        except (OSError, ValueError):
            if folder is not None and all(file.is_file() for file in student_files(folder)):
                raise
    return use(find())


def find_weights(source: str, key: str) -> Path:
    """The file of weights that `source` means: a file itself, else the student of a run, checkpoint or export. Raises
    ValueError, which names the option `key`, if there is none."""
    path = Path(source).expanduser()
    if not is_student(path):
        check_is_there(str(path), key)
        return path
    folder = find_student(path)
    read_description(folder, {"model": str, "args": dict})
    return student_files(folder)[0]


def is_student(path: Path) -> bool:
    """Whether a path means the student of a run, checkpoint or export, and not a file of weights itself."""
    return path.is_dir() or path.name in POINTERS


def is_begun(workdir: Path) -> bool:
    """Whether a run folder holds a run with a checkpoint, or a finished one."""
    return (workdir / DONE).exists() or bool(newest(workdir / CHECKPOINTS))


def run_of(weights: Path) -> Path:
    """The folder of the run, or else of the export, in which a file student.safetensors lies."""
    folder = weights.resolve().parent
    return folder.parents[1] if folder.parent.name == CHECKPOINTS else folder


def check_is_there(file: str, key: str) -> None:
    """Raise ValueError unless a file of weights, which the option `key` names, exists."""
    if not Path(file).expanduser().is_file():
        raise ValueError(
            f"{key} must be a file of weights, or a run, checkpoint or export folder, found none at {file}: check the "
            "path"
        )


def check_is_new(target: Path) -> None:
    """Raise ValueError if `target` exists."""
    if target.exists():
        raise ValueError(f"{target} already exists and is not overwritten. Pass another folder.")


def read_json(file: Path, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Read a JSON file that a run has written.

    Args:
        keys: keys that it must hold, with dots for those inside, and the type of each.

    Raises:
        ValueError: it is not there, is damaged, or lacks a key.
        Unreadable: the disk failed.
    """
    try:
        content = load_json(file)
    except Unreadable:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} must be readable JSON, as a run writes it, found {error}: restore the file") from None
    for key, kind in ({"": dict} | keys).items():
        value = content
        for part in key.split(".") if key else ():
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, kind):
            what, found = (f"hold {key}", f"found {value!r}") if key else ("be a JSON object", f"found {content!r}")
            raise ValueError(f"{file} must {what}, as a run writes it, {found[:80]}: restore the file")
    return content


def description_beside(weights: Path) -> dict[str, Any]:
    """What the .json beside a file of weights says of its model (`model`, `args`, `classes`, `normalization`, ...).

    {} if there is none of that kind. Raises ValueError if it is damaged.
    """
    path = weights.with_suffix(".json")
    if not path.is_file():
        return hub_folder.description_of(weights.with_name(CONFIG)) if weights.name == hub_folder.WEIGHTS else {}
    try:
        found = load_json(path)
    except ValueError as error:
        raise ValueError(f"{path} must say in JSON what model lies beside it, found {error}: export it again") from None
    return found if isinstance(found, dict) else {}


def model_of(description: dict[str, Any]) -> dict[str, Any]:
    """Name and arguments of a described model, as the fields of a run; {} if the description has none."""
    if not {"model", "args"} <= description.keys():
        return {}
    args = {key: value for key, value in description["args"].items() if key not in NOT_OF_THE_MODEL}
    return {"model": description["model"], "model_args": args}


def read_run(path: Path) -> Run:
    """Read the run in a config.json, in a folder that holds one, or in what `train.py --print_config` printed.

    Raises:
        ValueError: there is no such file, or no run of this version in it; the message names the file.
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
        raise ValueError(f"{file} holds no run of this version: {error}") from None


def with_found_paths(run: Run, folder: Path) -> Run:
    """Return a run whose relative paths lead to its files from the current folder: `folder` is where it lies now, and
    the end of that path, its --workdir, says where `train` was started. A path that leads nowhere there stays."""
    workdir, place = Path(run.workdir), folder.resolve()
    start = Path(*place.parts[: len(place.parts) - len(workdir.parts)])
    if workdir.is_absolute() or start / workdir != place or start == Path.cwd():
        return run

    def found(part: Any, *keys: str) -> Any:
        paths = {key: start / getattr(part, key) for key in keys if getattr(part, key) not in NO_PATHS}
        return replace(part, **{key: str(path) for key, path in paths.items() if path.exists()})

    teachers = {name: found(teacher, "checkpoint", "head") for name, teacher in run.teachers.items()}
    return replace(run, data=found(run.data, *PATHS_OF_DATA), teachers=teachers)

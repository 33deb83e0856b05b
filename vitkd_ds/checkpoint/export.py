"""Exported students: write one, find one, copy one out of a run."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from vitkd_ds.checkpoint.files import write_json, write_whole
from vitkd_ds.config.run_folder import (
    CHECKPOINTS,
    DESCRIPTION,
    STUDENT,
    check_is_new,
    find_student,
    newest,
    pointer,
    read_description,
    read_student,
    student_files,
)
from vitkd_ds.models.weights import load_tensors


def write_student(folder: Path, weights: dict[str, Tensor], description: dict[str, Any]) -> dict[str, Any]:
    """Write student.safetensors, a plain timm state dict, and student.json, which says how to rebuild and use it.
    Return the manifest's entry for each."""
    content = safetensors_bytes({name: weight.contiguous() for name, weight in weights.items()})
    return {
        STUDENT: write_whole(folder / STUDENT, lambda file: file.write(content)),
        DESCRIPTION: write_json(folder / DESCRIPTION, description),
    }


def find_source(source: str, which: str) -> Path:
    """The folder of the student that an export of `source`, a run folder, checkpoint or export, copies: of a run folder
    that of its `which` checkpoint, last or best. Raises ValueError if there is none."""
    if which not in ("last", "best"):
        raise ValueError(f"--which must be last or best, found {which}")
    folder = Path(source)
    if (folder / CHECKPOINTS).is_dir():
        tag = newest(folder / CHECKPOINTS) if which == "last" else pointer(folder / CHECKPOINTS, "best")
        if not tag:
            raise ValueError(f"{folder} must have a {which} checkpoint, found none yet")
        folder = folder / CHECKPOINTS / tag
    return find_student(folder)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which gets the name `target` at the end, or is removed after an error. Raises ValueError if
    `target` exists."""
    check_is_new(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    temporary.mkdir()  # with the umask's mode, which tempfile ignores
    try:
        yield temporary
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def export_student(source: str, destination: str, *, which: str = "last", half: bool = False) -> Path:
    """Copy the student that `find_source` finds into a new folder; return it.

    With `half` it is stored in fp16, which halves the size.

    Raises:
        ValueError: there is nothing to export, or `destination` exists.
    """
    target = Path(destination)

    def read(folder: Path) -> tuple[dict[str, Tensor], Any]:
        return read_weights(folder, half=half), read_description(folder, {})

    student = read_student(lambda: find_source(source, which), read)
    with new_folder(target) as temporary:
        write_student(temporary, *student)
    return target


def read_weights(folder: Path, *, half: bool) -> dict[str, Tensor]:
    """Weights of an exported student under timm's names; with `half` in fp16."""
    return {name: weight.half() if half else weight for name, weight in load_tensors(student_files(folder)[0]).items()}

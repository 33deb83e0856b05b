"""Write exported students, find them, and copy them out of a run."""

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
    """Write student.safetensors (a plain timm state dict) and student.json (the description for rebuilding the model).

    Return the manifest entry of each file, by the file's name.
    """
    content = safetensors_bytes({name: weight.contiguous() for name, weight in weights.items()})
    return {
        STUDENT: write_whole(folder / STUDENT, lambda file: file.write(content)),
        DESCRIPTION: write_json(folder / DESCRIPTION, description),
    }


def find_source(source: str, which: str) -> Path:
    """Return the folder of the exported student in `source`.

    Args:
        source: a run folder, a checkpoint or an exported student.
        which: checkpoint to use if `source` is a run folder: "last" or "best".

    Raises:
        ValueError: `which` is neither "last" nor "best", or `source` has no such student.
    """
    if which not in ("last", "best"):
        raise ValueError(f"--which must be last or best, got {which}")
    folder = Path(source)
    if (folder / CHECKPOINTS).is_dir():
        tag = newest(folder / CHECKPOINTS) if which == "last" else pointer(folder / CHECKPOINTS, "best")
        if not tag:
            raise ValueError(f'{folder} has no "{which}" checkpoint yet. Wait until the run has saved one.')
        folder = folder / CHECKPOINTS / tag
    return find_student(folder)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that the `with` block fills, then rename it to `target`.

    If the block fails, the temporary folder is removed.

    Raises:
        ValueError: `target` exists.
    """
    check_is_new(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    temporary.mkdir()  # permissions follow the umask, unlike those of a folder from tempfile
    try:
        yield temporary
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def export_student(source: str, destination: str, *, which: str = "last", half: bool = False) -> Path:
    """Copy the student in `source` to a new folder, and return the new folder.

    Args:
        source: see `find_source`.
        destination: the new folder.
        which: see `find_source`.
        half: store the weights in fp16, at half the size.

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
    """Return the weights of an exported student under timm's names, in fp16 if `half`."""
    return {name: weight.half() if half else weight for name, weight in load_tensors(student_files(folder)[0]).items()}

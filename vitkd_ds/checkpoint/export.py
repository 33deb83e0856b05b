"""Exported students: write one, find one, copy one out of a run."""

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from vitkd_ds.checkpoint.files import write_json, write_whole
from vitkd_ds.config.run_folder import CHECKPOINTS, DESCRIPTION, STUDENT, find_student, pointer


def write_student(folder: Path, weights: dict[str, Tensor], description: dict[str, Any]) -> dict[str, Any]:
    """Write student.safetensors, a plain timm state dict, and student.json, which says how to rebuild and use it.
    Return the manifest's entry for each."""
    content = safetensors_bytes({name: weight.contiguous() for name, weight in weights.items()})
    return {
        STUDENT: write_whole(folder / STUDENT, lambda file: file.write(content)),
        DESCRIPTION: write_json(folder / DESCRIPTION, description),
    }


def export_student(source: str, destination: str, *, which: str = "last", half: bool = False) -> Path:
    """Copy a student out of a run folder (of `which` checkpoint, last or best) or a checkpoint; return the new folder.

    With `half` it is stored in fp16, which halves the size.

    Raises:
        ValueError: there is nothing to export, or `destination` exists.
    """
    if which not in ("last", "best"):
        raise ValueError(f"--which must be last or best, found {which}")
    folder, target = Path(source), Path(destination)
    if (folder / CHECKPOINTS).is_dir():
        tag = pointer(folder / CHECKPOINTS, "latest" if which == "last" else "best")
        if not tag:
            raise ValueError(f"{folder} must have a {which} checkpoint, found none yet")
        folder = folder / CHECKPOINTS / tag
    folder = find_student(folder)
    if target.exists():
        raise ValueError(f"{target} must not exist yet, so that nothing is overwritten: give another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    temporary.mkdir()  # with the umask's mode, which tempfile ignores
    try:
        weights = {name: weight.half() if half else weight for name, weight in load_file(folder / STUDENT).items()}
        write_student(temporary, weights, json.loads((folder / DESCRIPTION).read_text()))
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target

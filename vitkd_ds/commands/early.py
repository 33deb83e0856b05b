"""Checks of paths and names that need no torch, made before its import, which takes seconds."""

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from vitkd_ds.config.overrides import nearest
from vitkd_ds.config.run_folder import CHECKPOINTS, check_is_new, find_student, find_weights, read_student

GRAPHS = ("onnx", "torch_export")
FORMATS = ("timm", *GRAPHS, "hf")
"""Values of export's --format."""


def check_student(student: str, images: Iterable[str] = (), teacher: str = "") -> None:
    """Raise ValueError unless the student, the paths of images ("" and demo are none) and the teacher exist; a teacher
    without a slash may be a model's name."""
    read_student(partial(find_student, student), str)
    for path in images:
        if path not in ("", "demo") and not os.path.exists(path):
            raise ValueError(f"no images at {path!r}. Check the path.")
    if "/" in teacher:
        find_weights(teacher, "--teacher")


def check_export(source: str, destination: str, format: str = "timm") -> None:
    """Raise ValueError for a run without a student, a destination that exists, or an unknown format."""
    if format not in FORMATS:
        raise ValueError(f"--format {format} is unknown: {nearest(format, FORMATS)}")
    if not (Path(source) / CHECKPOINTS).is_dir():  # of which `--which` chooses one
        check_student(source)
    check_is_new(Path(destination))


def check_picture(dst: Path) -> None:
    """Raise ValueError unless a PNG can be written there."""
    if dst.suffix != ".png":
        raise ValueError(f"DST must end in .png, found {str(dst)!r}: give another name")
    if not dst.parent.is_dir():
        raise ValueError(f"DST must lie in a folder that exists, found none at {str(dst.parent)!r}: make it")

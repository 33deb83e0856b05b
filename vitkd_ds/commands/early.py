"""Checks of paths and option values that run before torch is imported, which takes seconds."""

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from vitkd_ds.config.overrides import nearest
from vitkd_ds.config.run_folder import (
    CHECKPOINTS,
    CONFIG,
    check_is_new,
    find_student,
    find_weights,
    read_run,
    read_student,
    run_beside,
    started_in,
)
from vitkd_ds.recipes import RECIPES

GRAPHS = ("onnx", "torch_export")
FORMATS = ("timm", *GRAPHS, "hf")
"""Values of export's --format."""


def check_student(student: str, images: Iterable[str] = (), teacher: str = "") -> None:
    """Raise ValueError unless the student, the images and the teacher exist.

    Images given as "" or "demo" are accepted without a check, because these are not paths. A teacher without a slash is
    accepted too, because it may be a timm name.
    """
    read_student(partial(find_student, student), str)
    for path in images:
        if path not in ("", "demo") and not os.path.exists(path):
            raise ValueError(f"no images at {path!r}. Check the path.")
    if "/" in teacher:
        find_weights(teacher, "--teacher")


def check_has_images(student: str, option: str = "--val") -> None:
    """Raise ValueError if the student does not belong to a run.

    Commands call this if no images are given, because they then use the images of the student's run. `option` is the
    option for images that the error message names.
    """
    folder = read_student(partial(find_student, student), lambda folder: folder)
    if run_beside(folder) is None:
        raise ValueError(
            f"no images: {folder} does not belong to a run. Pass {option} with a .beton, a packed class folder or demo."
        )


def check_export(source: str, destination: str, format: str = "timm", val: str = "", push: str = "") -> None:
    """Check the arguments of export.

    Raises:
        ValueError: the format is unknown, or an option does not fit it; there is no student; `destination` exists; or
            there are no images for comparing an exported graph with torch, because `val` is empty and the student does
            not belong to a run.
    """
    if format not in FORMATS:
        raise ValueError(f"--format {format} is unknown: {nearest(format, FORMATS)}")
    if val and format not in GRAPHS:
        raise ValueError(f"--val needs --format onnx or torch_export, got --format {format}. Remove --val.")
    if push and format != "hf":
        raise ValueError(f"--push needs --format hf, got --format {format}. Pass --format hf or remove --push.")
    if not (Path(source) / CHECKPOINTS).is_dir():  # a run folder: --which chooses its checkpoint later
        check_student(source)
        if format in GRAPHS and not val:
            check_has_images(source)
    check_is_new(Path(destination))


def check_recipe(flags: dict[str, str]) -> None:
    """Raise ValueError if --recipe names a run folder, but the run would continue or start in another folder."""
    recipe = flags.get("recipe", "demo")
    folder = Path(recipe)
    if recipe in RECIPES or "workdir" in flags or not (folder / CONFIG).is_file():
        return
    run = read_run(folder)
    if Path(run.workdir).resolve() == folder.resolve():
        return
    start = started_in(run, folder)
    there = f"Rerun this command in {start}, where the run was started, or pass" if start else "Pass"
    raise ValueError(
        f"--recipe {folder} would train in {run.workdir}, the stored workdir, which is another folder here. {there} "
        f"--workdir {folder} to continue that run, or another --workdir for a new one."
    )


def check_picture(dst: Path) -> None:
    """Raise ValueError unless `dst` ends in .png and its folder exists."""
    if dst.suffix != ".png":
        raise ValueError(f"DST must end in .png, got {str(dst)!r}")
    if not dst.parent.is_dir():
        raise ValueError(f"the folder of DST, {str(dst.parent)!r}, does not exist. Create it first.")

"""Check data.train and data.val before opening them, and count classes. Imports no torch."""

import os
import shlex
from pathlib import Path

from vitkd_ds.config.run import DataConfig
from vitkd_ds.data.beton.format import SUFFIX, check_beton
from vitkd_ds.data.demo import demo_beton
from vitkd_ds.data.sources.class_list import read_classes
from vitkd_ds.data.sources.folder import class_names, has_class_folders, has_loose_images

PACKABLE = (".tar", ".parquet")
"""Endings of the files that `vitkd-ds pack` reads."""


def is_class_folder(path: str) -> bool:
    """Return whether a value of data.train or data.val is the path of a folder with one subfolder per class."""
    return path not in ("", "demo") and has_class_folders(Path(path))


def packed_path(folder: Path) -> Path:
    """Return the path of the .beton that `train` makes from a class folder: photos/train.beton for photos/train."""
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    return folder.with_name(folder.name + SUFFIX)


def check_is_packed(key: str, path: str) -> None:
    """Raise ValueError if the user must pack `path`, such as a tar, before the FFCV backend can read it.

    A folder with a folder per class passes, because `train` packs it automatically.

    Args:
        key: option name for the message, or DATA for the positional argument of `show`.
    """
    if Path(path).suffix == SUFFIX or path == "demo" or is_class_folder(path):
        return
    if not os.path.exists(path) and not path.endswith(".tar"):
        return  # reported later, unless the run is finished and needs no images
    if os.path.isfile(path) and Path(path).suffix not in PACKABLE:
        raise ValueError(
            f"{key} must be a .beton or a folder with a folder per class, got the file {path!r}. Check the path."
        )
    advice = labels = ""
    option = "FILE.beton instead" if key == "DATA" else f"--{key}=FILE.beton"
    if has_loose_images(Path(path)):
        if key != "DATA":
            advice = "Move its images into one folder per class. To train without labels, from a teacher only: "
        labels = " --labels none"
    raise ValueError(
        f"{key} must be a .beton or a folder with a folder per class, got {path!r}. {advice}Pack it first "
        f"(vitkd-ds pack {shlex.quote(path)} FILE.beton{labels}), then pass {option}."
    )


def check_is_not_one(key: str, path: str, num_classes: int) -> None:
    """Raise ValueError if `num_classes` is 1, because data.num_classes cannot be 1.

    Args:
        key: option name for the message.
    """
    if num_classes == 1:
        raise ValueError(
            f"{key} needs two or more classes, but {path!r} has one. Use images of more classes, or train without "
            "labels (--data.labels=ignore --data.num_classes=0)."
        )


def count_classes(data: DataConfig) -> int:
    """Return the number of classes of data.train, or 0 if labels are ignored.

    If data.classes is set, the classes listed in that file are counted. Otherwise, data.train must be a .beton, "demo"
    or a folder with a folder per class. If such a folder has already been packed for the FFCV backend, the classes of
    its .beton are counted, because packing may have used a list of classes.

    Raises:
        ValueError: the file or folder is invalid, does not list its classes, or has only one class.
    """
    found = _count_classes(data)
    check_is_not_one("data.train", data.classes or data.train, found)
    return found


def _count_classes(data: DataConfig) -> int:
    if data.backend == "ffcv":
        check_is_packed("data.train", data.train)
    if data.labels == "ignore":
        return 0
    if data.classes:
        return len(read_classes(data.classes))
    path = demo_beton("train") if data.train == "demo" else Path(data.train)
    if is_class_folder(data.train):
        if data.backend != "ffcv" or not packed_path(path).exists():
            return len(class_names(path))
        path = packed_path(path)
    elif path.suffix != SUFFIX and path.exists():
        raise ValueError(f"{str(path)!r} does not list its classes. Pass --data.num_classes.")
    return len(check_beton(path).classes)

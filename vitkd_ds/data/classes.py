"""The classes of images that are not opened yet, so that a run need not be told their number. Imports no torch."""

from pathlib import Path

from vitkd_ds.data.beton.format import SUFFIX, check_beton
from vitkd_ds.data.demo import demo_beton
from vitkd_ds.data.sources.folder import class_names, has_class_folders


def count_classes(path: str) -> int:
    """Count the classes of what data.train names: a .beton, "demo", or a folder per class.

    Raises:
        ValueError: the file or folder is unfit, or of a kind that does not tell quickly.
    """
    if path == "demo":
        return len(check_beton(demo_beton("train")).classes)
    if has_class_folders(Path(path)):
        return len(class_names(Path(path)))
    if Path(path).suffix != SUFFIX and Path(path).exists():
        raise ValueError(f"data.num_classes must be given for {path!r}, which does not list its classes, found 0")
    return len(check_beton(Path(path)).classes)

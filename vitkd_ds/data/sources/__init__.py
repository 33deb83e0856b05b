"""Image sources for packing and for the torchvision backend.

Start reading at `open_source`, which detects the kind of a source. `source` defines the interface of all kinds, and the
other modules implement them. Archives are not unpacked: their members are read at their offsets in the file, so a file
name inside an archive never becomes a path on this machine.
"""

import shlex
from collections.abc import Callable
from pathlib import Path

from vitkd_ds.config import entry_points
from vitkd_ds.data.sources.folder import has_class_folders, has_loose_images, list_images, list_unlabelled
from vitkd_ds.data.sources.huggingface import has_arrow, has_parquet, open_hugging_face
from vitkd_ds.data.sources.imagenet import has_class_tars, has_flat_images, open_class_tars, open_flat_tar
from vitkd_ds.data.sources.source import Source, SourceKind
from vitkd_ds.data.sources.webdataset import has_samples, open_samples

KINDS: dict[str, tuple[Callable[[Path], bool], Callable[..., Source], str]] = {
    "ImageFolder (a folder per class)": (has_class_folders, list_images, "classes"),
    "ImageNet's training tar, or a folder of its class tars": (has_class_tars, open_class_tars, ""),
    "ImageNet's validation tar": (has_flat_images, open_flat_tar, "labels"),
    "WebDataset (a tar, folder or pattern of tars with KEY.jpg + KEY.cls)": (has_samples, open_samples, "classes"),
    "Hugging Face save_to_disk folder": (has_arrow, open_hugging_face, "split"),
    "folder of parquet files": (has_parquet, open_hugging_face, "split"),
}
"""Maps each kind of source to a test, a function that opens it, and the name of an option.

The test returns whether a path is of this kind. The option is the only one that applies to this kind ("" if none does).
"""

NO_LABELS = "none"
"""Value of --labels for a folder of images that have no classes."""

__all__ = ["KINDS", "NO_LABELS", "Source", "SourceKind", "open_source"]


def open_source(src: str | Path, *, labels: str = "", classes: str = "", split: str = "") -> Source:
    """Detect the kind of `src`, and list its images.

    Args:
        labels: file with the labels of ImageNet's validation images. "none" means that `src` is a folder of images
            without labels.
        classes: file that lists the classes of class folders or WebDataset tars: a text file with a class name per line
            in label order, or a .beton.
        split: name of the split to read if a Hugging Face folder has several.

    Raises:
        ValueError: `src` does not exist, its kind is unknown or ambiguous, an option does not apply to this kind, or
            the content of `src` is invalid.
    """
    options = {"labels": labels, "classes": classes, "split": split}
    if kind := _kind_of_others(str(src)):
        if given := [f"--{name}" for name, value in options.items() if value]:
            raise ValueError(f"{given[0]} does not apply to {str(src)!r}, a source of another package. Omit it.")
        return kind.open(str(src))
    path = Path(src)
    must = f"src must be one of these: {'; '.join(KINDS)}. Found"
    if not path.exists() and not any(sign in str(src) for sign in "*?[{"):  # characters of a pattern of tars
        raise ValueError(f"{str(src)!r} does not exist. Check the path.")
    if labels == NO_LABELS:
        if given := "classes" if classes else "split" if split else "":
            raise ValueError(f"--{given} does not apply to --labels {NO_LABELS}. Omit one of them.")
        return list_unlabelled(path)
    fitting = [kind for kind, (fits, _, _) in KINDS.items() if fits(path)]
    if len(fitting) != 1:
        what = "a folder" if path.is_dir() else "a file" if path.exists() else "a pattern"
        found = f"signs of {' and of '.join(fitting)}" if fitting else f"{what} that is none of these"
        remedy = "pass the path of one of these"
        if has_loose_images(path):
            found += ", but contains images without a class"
            command = f"vitkd-ds pack {shlex.quote(str(path))} FILE.beton --labels {NO_LABELS}"
            remedy = f"pack them without labels ({command}), move them into a folder per class, or "
            remedy += "give ImageNet's validation tar itself, with --labels"
        raise ValueError(f"{must} {found} at {str(src)!r}: {remedy}")
    _, opener, known = KINDS[fitting[0]]
    for option, value in options.items():
        if value and option != known:
            raise ValueError(f"--{option} does not apply to {str(src)!r} ({fitting[0]}). Omit it.")
    return opener(path, options[known]) if known else opener(path)


def _kind_of_others(src: str) -> SourceKind | None:
    """Return the first kind of source that accepts `src` and belongs to another installed package, or None."""
    kinds = map(entry_points.load, entry_points.installed("sources"))
    return next((kind for kind in kinds if kind.fits(src)), None)

"""ImageNet's original files: the training and validation tars, and the labels."""

import io
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vitkd_ds.data.sources.source import Source, is_image, warn_of_left_out
from vitkd_ds.data.sources.tar import Member, first_name, list_members, source_of

CLASS_TAR = re.compile(r"(n\d{8})\.tar$")
META, GROUND_TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
"""Files in the devkit that contain the labels.

The first maps class numbers to wnids, which are class names such as n01440764. The second lists the class numbers of
the images, sorted by the images' names.
"""
VAL_NAME = "ILSVRC2012_val_{:08d}"
NO_IMAGES = "hidden files and files without an image's ending"


def has_class_tars(src: Path) -> bool:
    """Return whether `src` is a tar or a folder of class tars, which have names such as n01440764.tar."""
    if src.is_dir():
        return any(CLASS_TAR.match(entry.name) for entry in src.iterdir())
    return CLASS_TAR.search(first_name(src)) is not None


def has_flat_images(src: Path) -> bool:
    """Return whether `src` is a tar that starts with a file named like an image of ImageNet's validation set."""
    return Path(first_name(src)).name.startswith(VAL_NAME[:15])


def open_class_tars(src: Path) -> Source:
    """List the images of ImageNet's training tar, or of a folder of its class tars; sorted wnids define the labels.

    Raises:
        ValueError: a tar is damaged, has no images, is a duplicate, or does not have the name of a class tar.
    """
    others = []
    if src.is_dir():
        files = sorted(path for path in src.iterdir() if CLASS_TAR.match(path.name))
        warn_of_left_out("files other than class tars", sorted(map(str, set(src.iterdir()).difference(files))))
        tars = [(path.name, number, None) for number, path in enumerate(files)]
    else:
        files = [src]
        tars = sorted((Path(member.name).name, 0, member) for member in list_members(src))
    # Sort as ImageFolder sorts folders and files, so that classes and images get the same numbers.
    members, names, labels, classes = [], [], [], []
    for label, (name, number, inner) in enumerate(tars):
        found = CLASS_TAR.match(name)
        if not found or classes and classes[-1] == found[1]:
            raise ValueError(f"{name!r} in {str(src)!r} is a duplicate, or its name is not nXXXXXXXX.tar. Remove it.")
        images = _images_of(list_members(files[number], inside=inner), f"{src.name}/{name}", others)
        if not images:
            raise ValueError(f"class tar {name!r} of {str(src)!r} has no images. Download it again.")
        classes.append(found[1])
        images.sort(key=lambda member: member.name)
        members += [(number, member) for member in images]
        names += [f"{src.name}/{name}/{member.name}" for member in images]
        labels += [label] * len(images)
    warn_of_left_out(NO_IMAGES, others)
    return source_of("ImageNet train", classes, labels, names, files, members)


def open_flat_tar(src: Path, labels_file: str) -> Source:
    """List the images of ImageNet's validation tar. `labels_file` gives their classes; sorted wnids define the labels.

    Raises:
        ValueError: the labels are missing, unreadable or incomplete, or the tar is damaged.
    """
    if not labels_file:
        raise ValueError(
            f"{str(src)!r} has no labels. Pass --labels with the devkit ILSVRC2012_devkit_t12.tar.gz, a text file with "
            f"lines such as {VAL_NAME.format(1)}.JPEG n01751748, or Kaggle's LOC_val_solution.csv."
        )
    file = Path(labels_file)
    if not file.is_file():
        raise ValueError(f"no file {labels_file!r} (--labels). Check the path.")
    wnids = _devkit_labels(file) if tarfile.is_tarfile(file) else _text_labels(file)
    others = []
    images = _images_of(list_members(src), src.name, others)
    warn_of_left_out(NO_IMAGES, others)
    images.sort(key=lambda member: Path(member.name).stem)
    found = [wnids.get(Path(member.name).stem) for member in images]
    if None in found:
        raise ValueError(
            f"{labels_file!r} lacks the classes of {images[found.index(None)].name!r} and {found.count(None) - 1} more "
            f"images of {str(src)!r}. Pass --labels with the labels of these images."
        )
    classes, labels = np.unique(found, return_inverse=True)
    names = [f"{src.name}/{member.name}" for member in images]
    return source_of("ImageNet val", classes.tolist(), labels, names, [src], [(0, member) for member in images])


def _images_of(members: Iterable[Member], place: str, others: list[str]) -> list[Member]:
    """Return the members that have the name of an image; add `place` and the name of each other member to `others`."""
    images = []
    for member in members:
        if is_image(member.name):
            images.append(member)
        else:
            others.append(f"{place}/{member.name}")
    return images


def _text_labels(file: Path) -> dict[str, str]:
    """Read lines `NAME CLASS ...` or `NAME,CLASS ...`; return a dict from image name without extension to class.

    The header line of Kaggle's file is skipped.
    """
    found = {}
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        words = line.replace(",", " ").split()
        if not words or words[0] == "ImageId":
            continue
        if len(words) < 2:
            raise ValueError(f"line {number} of {str(file)!r} needs an image and its class, got {line!r}")
        stem = Path(words[0]).stem
        if found.setdefault(stem, words[1]) != words[1]:
            raise ValueError(f"line {number} of {str(file)!r} gives {stem!r} a second class. Correct the file.")
    return found


def _devkit_labels(file: Path) -> dict[str, str]:
    """Read the devkit's tar.gz; return a dict from image name without extension to wnid."""
    from scipy.io import loadmat  # slow

    try:
        with tarfile.open(file) as tar:
            members = {member.name.partition("/")[2]: member for member in tar if member.isreg()}
            meta, truth = (tar.extractfile(members[name]).read() for name in (META, GROUND_TRUTH))
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        wnids = dict(zip(synsets["ILSVRC2012_ID"].astype(int).tolist(), map(str, synsets["WNID"])))
        return {VAL_NAME.format(image): wnids[int(number)] for image, number in enumerate(truth.split(), 1)}
    except Exception as error:  # scipy raises many error types
        raise ValueError(
            f"--labels {str(file)!r} is not ImageNet's devkit with {META} and {GROUND_TRUTH}: "
            f"{type(error).__name__} {error}. Download it again."
        ) from error

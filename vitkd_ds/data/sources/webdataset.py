"""WebDataset tars: files with the same key (KEY.jpg, KEY.cls) form a sample."""

import glob
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vitkd_ds.data.sources.class_list import read_classes
from vitkd_ds.data.sources.imagenet import CLASS_TAR, VAL_NAME, has_class_tars, has_flat_images
from vitkd_ds.data.sources.source import Source, warn_of_left_out
from vitkd_ds.data.sources.tar import Member, first_name, list_members, source_of

logger = logging.getLogger(__name__)

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
CLASS_ENDING = "cls"
MAX_CLASS_BYTES = 1000
"""Maximum size in bytes of a .cls file, which contains only the number or name of a class."""
MAX_SHOWN = 40
"""Maximum number of characters of a class that a message shows."""
BRACES = re.compile(r"\{([^{}]*)\}")


def has_samples(src: Path) -> bool:
    """Return whether `src` is a tar, a folder of tars or a pattern of tars; False for ImageNet's original tars."""
    if src.is_file():
        return bool(first_name(src)) and not has_class_tars(src) and not has_flat_images(src)
    if src.is_dir():
        tars = [path.name for path in src.glob("*.tar")]
        return bool(tars) and not any(CLASS_TAR.match(name) or name.startswith(VAL_NAME[:11]) for name in tars)
    return True


def open_samples(src: Path, classes_file: str) -> Source:
    """List the samples of all tars in order; samples without an image and hidden files are skipped with a warning.

    Raises:
        ValueError: a tar is damaged, there are no images, or a sample has no class, an unknown class or two images.
    """
    tars = _tars(src)
    without = []
    hidden = []
    samples = [(number, *sample) for number, tar in enumerate(tars) for sample in _samples(tar, without, hidden)]
    endings = " ".join(IMAGE_ENDINGS)
    if not samples:
        raise ValueError(f"no images ({endings}) in the WebDataset tars of {str(src)!r}. Use other tars.")
    if without:
        found = (len(without), len(without) + len(samples), str(src), endings, without[0])
        logger.warning("skipping %d of %d samples of %r without an image (%s); the first is %r", *found)
    warn_of_left_out("hidden files", hidden)
    members = [sample[:2] for sample in samples]
    texts = [text for _, _, text in samples]
    names = [f"{tars[number].name}/{image.name}" for number, image in members]
    classes, labels = _classes(texts, names, classes_file)
    return source_of("WebDataset", classes, labels, names, tars, members)


def _tars(src: Path) -> list[Path]:
    """List the tars that `src` stands for: one tar, all tars in a folder, or those that match a pattern.

    A pattern is, for example, `train-{000000..000146}.tar` or `train-*.tar`.
    """
    if src.is_file():
        return [src]
    if src.is_dir():
        others = sorted(str(path) for path in src.iterdir() if path.suffix != ".tar")
        warn_of_left_out("files and folders without the ending .tar", others)
        return sorted(src.glob("*.tar"))
    tars: dict[Path, str] = {}
    for pattern in _expanded(str(src)):
        found = [Path(name) for name in sorted(glob.glob(pattern))]
        if not found:
            raise ValueError(f"no tar matches {pattern!r} of {str(src)!r}. Check the name.")
        for tar in found:
            if tar in tars:
                raise ValueError(
                    f"{str(src)!r} matches {str(tar)!r} twice, by {tars[tar]!r} and {pattern!r}. Change the pattern."
                )
            tars[tar] = pattern
    return list(tars)


def _expanded(pattern: str) -> Iterator[str]:
    """Expand braces as the shell does: {a,b} and {000..146}.

    Names are generated one at a time, because a range may contain millions of names, and the caller stops with an error
    at the first name that does not exist.
    """
    found = BRACES.search(pattern)
    if not found:
        yield pattern
        return
    first, _, last = found[1].partition("..")
    if first.isdecimal() and last.isdecimal():
        choices = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    else:
        choices = found[1].split(",")
    before, after = pattern[: found.start()], pattern[found.end() :]
    for choice in choices:
        yield from _expanded(before + choice + after)


def _samples(tar: Path, without: list[str], hidden: list[str]) -> Iterator[tuple[Member, str]]:
    """Yield the samples of a tar in file order: each sample's image, and the text that names its class.

    For each sample without an image, the name of one of its files is added to `without`. The names of hidden files are
    added to `hidden`.
    """
    images: dict[str, Member] = {}
    classes: dict[str, Member] = {}
    others: dict[str, str] = {}
    for member in list_members(tar):
        folder, base = os.path.split(member.name)
        key, _, ending = base.partition(".")
        key = os.path.join(folder, key)
        ending = ending.lower()
        if base.startswith("."):
            hidden.append(f"{tar.name}/{member.name}")
        elif ending in (*IMAGE_ENDINGS, CLASS_ENDING):
            kept = classes if ending == CLASS_ENDING else images
            if key in kept:
                raise ValueError(
                    f"{str(tar)!r} must have one image and one class per key, but has {kept[key].name!r} and "
                    f"{member.name!r}. Write the tar again with different keys."
                )
            kept[key] = member
        else:
            others.setdefault(key, member.name)
    names = {key: member.name for key, member in classes.items()} | others
    without += [f"{tar.name}/{name}" for key, name in names.items() if key not in images]
    # A class may precede or follow its image, so read classes once all members are known.
    with open(tar, "rb") as file:
        for key, image in images.items():
            text = ""
            if key in classes:
                text = _class_text(tar, file, classes[key])
            if not text:
                found = "an empty one" if key in classes else "none"
                raise ValueError(
                    f"{str(tar)!r} needs a file {key}.{CLASS_ENDING} with the class of {image.name!r}, but has "
                    f"{found}. Write the tar again with a class for every image."
                )
            yield image, text


def _class_text(tar: Path, file: BinaryIO, member: Member) -> str:
    """Read the text of a class; raise ValueError if it is too long, because truncated texts could become equal."""
    if member.size > MAX_CLASS_BYTES:
        raise ValueError(
            f"{member.name!r} in {str(tar)!r} has {member.size} bytes; the maximum for a class is {MAX_CLASS_BYTES}. "
            "Write only the number or name of the class."
        )
    file.seek(member.offset)
    return file.read(member.size).decode("utf-8-sig", "replace").strip()


def _classes(texts: list[str], names: list[str], classes_file: str) -> tuple[list[str], list[int]]:
    """Return the class names, and the label of each sample. `texts` has the number or name of each sample's class."""
    are_numbers = all(text.isdecimal() for text in texts)
    if not (are_numbers or classes_file):
        _check_are_names(texts, names)
    numbers = {int(text) for text in set(texts)} if are_numbers else set()
    if classes_file:
        classes = list(read_classes(classes_file))
        remedy = f"pass --classes the classes of these tars, not {classes_file!r}"
    elif are_numbers:
        # A gap may be a class without images or a missing tar; only the user can know.
        if (num_classes := max(numbers) + 1) > len(numbers):
            row = max(range(len(texts)), key=lambda row: int(texts[row]))
            absent = next(number for number in range(num_classes) if number not in numbers)
            raise ValueError(
                f"no image has class number {absent}, but image {names[row]!r} has {_shown(texts[row])}. If all tars "
                "are there, pass --classes FILE, a file with a class name per line; classes without images are allowed."
            )
        classes = [str(number) for number in range(num_classes)]
        remedy = ""
    else:
        classes = sorted(set(texts))
        remedy = ""
    position = {name: label for label, name in enumerate(classes)}
    labels = [int(text) if are_numbers else position.get(text, len(classes)) for text in texts]
    unknown = next((row for row, label in enumerate(labels) if label >= len(classes)), None)
    if unknown is not None:
        found = f"{_shown(texts[unknown])!r} at {names[unknown]!r}"
        raise ValueError(f"class {found} is not one of the {len(classes)} classes: {remedy}")
    return classes, labels


def _check_are_names(texts: list[str], names: list[str]) -> None:
    """Raise ValueError if classes seem to be numbers, but some are not class numbers, such as -1 and 3.0.

    A single such number would turn all classes into names, which are sorted as text. A mixture of numbers and names
    causes a warning.
    """
    others = [row for row, text in enumerate(texts) if not text.isdecimal()]
    are_mixed = len(others) < len(texts)
    first = others[0]
    odd = [row for row in others if _is_number(texts[row])]
    if odd and (are_mixed or len(odd) == len(texts)):
        first = odd[0]
        raise ValueError(
            f"{len(odd)} of {len(texts)} classes are numbers, but not integers from 0; the first is "
            f"{_shown(texts[first])} at {names[first]!r}. Write integers from 0, or pass --classes FILE, a file with "
            "all of these names."
        )
    if are_mixed:
        found = (len(others), len(texts), _shown(texts[first]), names[first])
        logger.warning("%d of %d classes are not numbers, so all are used as names; the first is %r at %r", *found)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text)} characters)"

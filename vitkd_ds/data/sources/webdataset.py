"""WebDataset shards: tars whose members of one key (KEY.jpg, KEY.cls) make a sample; read with Python's tarfile."""

import glob
import os
import re
from pathlib import Path

import numpy as np

from vitkd_ds.data.sources.imagenet import CLASS_TAR, VAL_NAME, has_class_tars, has_flat_images
from vitkd_ds.data.sources.source import Options, Source
from vitkd_ds.data.sources.tar import Member, is_tar, list_members, member_reader

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
CLASS_ENDING = "cls"
MAX_CLASS_BYTES = 1000
"""A class is a number or a name; more is another kind of file."""
BRACES = re.compile(r"\{([^{}]*)\}")


def has_samples(src: Path) -> bool:
    """Whether `src` is a tar, a folder of tars or a pattern, and not one of ImageNet's own."""
    if src.is_file():
        return is_tar(src) and not has_class_tars(src) and not has_flat_images(src)
    if src.is_dir():
        tars = [path.name for path in src.glob("*.tar")]
        return bool(tars) and not any(CLASS_TAR.match(name) or name.startswith(VAL_NAME[:11]) for name in tars)
    return True


def list_shards(src: Path) -> list[Path]:
    """The files that a tar, a folder or a pattern such as `train-{000000..000146}.tar` or `train-*.tar` means."""
    if src.is_file():
        return [src]
    if src.is_dir():
        return sorted(src.glob("*.tar"))
    shards = []
    for pattern in _expanded(str(src)):
        found = sorted(glob.glob(pattern))
        if not found:
            raise ValueError(
                f"src must be shards that exist, found none at {pattern!r} of {str(src)!r}: check the name"
            )
        shards += map(Path, found)
    return shards


def _expanded(pattern: str) -> list[str]:
    """Braces as the shell expands them: {a,b} and {000..146}."""
    found = BRACES.search(pattern)
    if not found:
        return [pattern]
    first, dots, last = found[1].partition("..")
    if dots and first.isdecimal() and last.isdecimal():
        choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = found[1].split(",")
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [text for choice in choices for text in _expanded(before + choice + after)]


def open_shards(src: Path, options: Options) -> Source:
    """List the samples of all shards in their order.

    Raises:
        ValueError: a shard is damaged, or a sample lacks its class or has two images.
    """
    shards = list_shards(src)
    members, names, texts = [], [], []
    for number, shard in enumerate(shards):
        for image, text in _samples(shard):
            members.append((number, image))
            names.append(f"{shard.name}/{image.name}")
            texts.append(text)
    if not members:
        endings = " ".join(IMAGE_ENDINGS)
        raise ValueError(f"shards must hold images ({endings}), found none in {str(src)!r}: give shards of images")
    classes, labels = _classes(texts, names, options.classes)
    sizes = np.array([member.size for _, member in members], np.int64)
    return Source("WebDataset", classes, labels, names, sizes, member_reader(shards, members))


def _samples(shard: Path) -> list[tuple[Member, str]]:
    """Image and class text of each sample of a shard, in file order."""
    images: dict[str, Member] = {}
    class_members: dict[str, Member] = {}
    for member in list_members(shard):
        folder, base = os.path.split(member.name)
        key, _, ending = base.partition(".")
        key, ending = os.path.join(folder, key), ending.lower()
        if not base.startswith(".") and (ending in IMAGE_ENDINGS or ending == CLASS_ENDING):
            kept = class_members if ending == CLASS_ENDING else images
            if key in kept:
                raise ValueError(
                    f"{str(shard)!r} must hold one image and one class per key, found {kept[key].name!r} and "
                    f"{member.name!r}: write the shard again"
                )
            kept[key] = member
    samples = []
    with open(shard, "rb") as file:
        for key, image in images.items():
            if key not in class_members:
                raise ValueError(
                    f"{str(shard)!r} must hold {key}.{CLASS_ENDING} with the class of {image.name!r}, found none: "
                    f"write the shard again"
                )
            file.seek(class_members[key].offset)
            text = file.read(min(class_members[key].size, MAX_CLASS_BYTES)).decode("utf-8", "replace").strip()
            if not text:
                raise ValueError(
                    f"{str(shard)!r} must hold a class in {key}.{CLASS_ENDING}, found none: write it again"
                )
            samples.append((image, text))
    return samples


def _classes(texts: list[str], names: list[str], classes_file: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names and the label of each sample, whose classes are numbers or names."""
    are_numbers = all(text.isdecimal() for text in texts)
    if classes_file:
        try:
            classes = Path(classes_file).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--classes must be a text file, found {error}: check the path") from error
        classes = [line.strip() for line in classes if line.strip()]
        if len(set(classes)) != len(classes):
            raise ValueError(f"{classes_file!r} must name each class once, found a name twice: correct it")
        remedy = f"give the classes of these shards, not {classes_file!r}"
    elif are_numbers:
        classes = [str(number) for number in range(max(map(int, texts)) + 1)]
        remedy = "give --classes a file with a name per line, which may have classes without images"
    else:
        classes, remedy = sorted(set(texts)), ""
    if are_numbers:
        labels = np.array([int(text) for text in texts], np.int64)
        is_known = labels < len(classes)
    else:
        position = {name: label for label, name in enumerate(classes)}
        labels = np.array([position.get(text, -1) for text in texts], np.int64)
        is_known = labels >= 0
    if not is_known.all():
        first = int(np.argmin(is_known))
        raise ValueError(
            f"every class must be one of {len(classes)}, found {texts[first]!r} at {names[first]!r}: {remedy}"
        )
    if not classes_file and len(set(labels.tolist())) != len(classes):
        absent = next(label for label in range(len(classes)) if label not in set(labels.tolist()))
        raise ValueError(f"every class number must occur, found none of {absent} below {max(labels)}: {remedy}")
    return tuple(classes), labels

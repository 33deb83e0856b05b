"""What all kinds of sources have in common: a list of images with labels, and a way to get the bytes of each."""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vitkd_ds.data.image_file import EXTENSIONS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """The images of one data set."""

    kind: str
    classes: tuple[str, ...]
    """Names in label order."""
    labels: np.ndarray
    """int64 [number of images], positions in `classes`."""
    names: Sequence[str]
    """Where a person finds each image: file, and member or row."""
    sizes: np.ndarray
    """int64 [number of images], bytes of each image's file."""
    read: Callable[[int], bytes]
    """Gives the bytes of the i-th image's file. Works in forked processes: nothing that has a position is shared."""

    def fingerprint(self, *, without: str = "") -> str:
        """A hash of names, sizes and labels; another one means other images. `without` is cut off the beginning of each
        name: the path of a folder, so that it does not matter where the folder lies."""
        digest = hashlib.sha256(repr((self.kind, self.classes)).encode("utf-8", "surrogateescape"))
        for name in self.names:
            digest.update(name.removeprefix(without).encode("utf-8", "surrogateescape") + b"\0")
        digest.update(np.asarray(self.sizes, "<i8").tobytes() + np.asarray(self.labels, "<i8").tobytes())
        return digest.hexdigest()


def warn_of_left_out(what: str, names: Sequence[str]) -> None:
    """Log how many files a source leaves out, and the first one's name, if there are any."""
    if names:
        logger.warning("%d %s are left out, the first is %r", len(names), what, names[0])


class SourceKind(NamedTuple):
    """A kind of source from another package, which an entry point of the group `vitkd_ds.sources` names."""

    fits: Callable[[str], bool]
    """Whether a source is of this kind, by its name as the command line has it, such as s3://bucket/images."""
    open: Callable[[str], Source]
    """List the images of such a source. Raises ValueError if it is unfit."""


def is_image(name: str) -> bool:
    """Whether a file counts as an image by its name; hidden files do not."""
    base = os.path.basename(name)
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in EXTENSIONS

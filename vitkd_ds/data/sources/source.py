"""Interface of all image sources: names, labels, sizes and bytes of the images."""

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
    """Images of one data set."""

    kind: str
    classes: tuple[str, ...]
    """Class names in label order."""
    labels: np.ndarray
    """Indices in `classes`, int64 [number of images]."""
    names: Sequence[str]
    """Location of each image, for messages: the file and, if it contains several images, the member or row."""
    sizes: np.ndarray
    """Size of each image's file in bytes, int64 [number of images]."""
    read: Callable[[int], bytes]
    """Function that returns the bytes of the i-th image's file.

    Forked processes may call it at the same time, because it does not use the position of an open file.
    """

    def fingerprint(self, *, without: str = "") -> str:
        """Return a hash of the images' names, sizes and labels, the class names and the kind.

        Args:
            without: prefix to remove from each name. If this is the folder's path, the hash stays the same when the
                folder is moved.
        """
        digest = hashlib.sha256(repr((self.kind, self.classes)).encode("utf-8", "surrogateescape"))
        for name in self.names:
            digest.update(name.removeprefix(without).encode("utf-8", "surrogateescape") + b"\0")
        digest.update(np.asarray(self.sizes, "<i8").tobytes() + np.asarray(self.labels, "<i8").tobytes())
        return digest.hexdigest()


def warn_of_left_out(what: str, names: Sequence[str]) -> None:
    """Log a warning with the number of skipped files and the first of their `names`, if there are any."""
    if names:
        logger.warning("skipping %d %s; the first is %r", len(names), what, names[0])


class SourceKind(NamedTuple):
    """Kind of source from another package, registered as an entry point of the group `vitkd_ds.sources`."""

    fits: Callable[[str], bool]
    """Function that returns whether a source is of this kind, given its name such as s3://bucket/images."""
    open: Callable[[str], Source]
    """Function that lists the images of such a source. It raises ValueError if the source is invalid."""


def is_image(name: str) -> bool:
    """Return whether a file name has an image extension and is not hidden."""
    base = os.path.basename(name)
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in EXTENSIONS

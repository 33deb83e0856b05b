"""The folder of an unfinished .beton, in which an interrupted pack finds what is done.

`.<name>.partial/` holds, for each finished part of the images, NUMBER.images with their bytes and NUMBER.json, which
lists them and is written last. `images` grows to the .beton: parts are moved into it in order. NUMBER.images is removed
when its bytes are on the disk there, so a pack takes little more than the space of one copy. Any file may be damaged by
a power cut: at the end all images are read back, and parts with damaged ones are packed again by the next run.
"""

import errno
import fcntl
import json
import logging
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vitkd_ds.checkpoint.files import write_text
from vitkd_ds.config.reading import load_json
from vitkd_ds.data.beton.format import METADATA_DTYPE, METADATA_START, PAGE_BYTES, partial_path

logger = logging.getLogger(__name__)

IMAGES = "images"
"""File in the folder that becomes the .beton."""
SETTINGS = "settings.json"
"""File that identifies source and settings."""
LOCK = "lock"
"""File that is locked while somebody packs; the kernel ends the lock with the last process."""
PART = 64
"""Images of a part."""
RECORD_DTYPE = np.dtype(
    {
        "names": "number offset size crc32 height width mode origin".split(),
        "formats": "<u8 <u8 <u4 <u4 <u2 <u2 u1 u1".split(),
    }
)
"""A stored image: its number in the order of storing, where its bytes are, and what they are."""
SYNC_S = 2.0
"""Seconds between two flushes of `images` to the disk."""
LOCK_PATIENCE_S = 5.0
"""How long to wait for a lock: the workers of a run that was killed just now may still hold it."""


class PackedElsewhere(ValueError):
    """Another process packs into the same file."""


class Layout:
    """Places of images, one behind the other as FFCV puts them: in pages, and none crosses the end of its page. A page
    that is larger than `PAGE_BYTES` is as many of them as the next power of two."""

    def __init__(self, first_byte: int):
        self._next_page = -(-first_byte // PAGE_BYTES)
        self._position = 0
        self._end = 0

    def place(self, sizes: np.ndarray) -> list[int]:
        """Return the offsets of the next images, in bytes."""
        offsets = []
        for size in sizes.tolist():
            if self._position + size > self._end:
                count = 1 << (-(-size // PAGE_BYTES) - 1).bit_length()
                first = -(-self._next_page // count) * count
                self._next_page = first + count
                self._position = first * PAGE_BYTES
                self._end = self._next_page * PAGE_BYTES
            offsets.append(self._position)
            self._position += size
        return offsets


class Part:
    """A finished part.

    Attributes:
        records: RECORD_DTYPE, its stored images; the offsets are set when they are moved.
        bad: number in the order of storing -> reason, of each image that does not decode.
    """

    def __init__(self, number: int, rows: list):
        stored = [(place, 0, *row) for place, row in enumerate(rows, number * PART) if not isinstance(row, str)]
        self.records = np.array(stored, RECORD_DTYPE)
        self.bad = {place: row for place, row in enumerate(rows, number * PART) if isinstance(row, str)}


class Unfinished:
    """An unfinished .beton in its folder, which `open_unfinished` locks.

    Attributes:
        images: the file that becomes the .beton.
        descriptor: the same, open for writing.
        num_parts: number of parts, finished or not.
        bad: number in the order of storing -> reason, of each image of the moved parts that does not decode.
    """

    def __init__(self, folder: Path, *, num_images: int):
        self.images = folder / IMAGES
        self.num_parts = -(-num_images // PART)
        self.bad: dict[int, str] = {}
        self._folder = folder
        self._num_images = num_images
        # The tables stand before the images, so their place is kept for as many rows as there can be.
        self._layout = Layout(METADATA_START + num_images * METADATA_DTYPE.itemsize)
        self._records = [np.zeros(0, RECORD_DTYPE)]
        self._moved: list[Path] = []
        self._synced_at = time.monotonic()
        self.descriptor = os.open(self.images, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    @property
    def records(self) -> np.ndarray:
        """The moved images in order: RECORD_DTYPE."""
        return np.concatenate(self._records)

    def places(self, number: int) -> range:
        """Return the numbers of a part's images in the order of storing."""
        return range(number * PART, min((number + 1) * PART, self._num_images))

    def content_path(self, number: int) -> Path:
        """Return the file with the bytes of a part's images, which exists until they are moved."""
        return self._folder / f"{number:06d}.images"

    def finish_part(self, number: int, rows: list) -> None:
        """Note that all bytes of a part are in its file. A row is [size, crc32, height, width, mode, origin] of an
        image, or the reason why it does not decode."""
        write_text(self._list_path(number), json.dumps(rows))

    def forget(self, number: int) -> None:
        """Have a part packed again."""
        self._list_path(number).unlink(missing_ok=True)

    def read_part(self, number: int) -> Part | None:
        """Return a part that an earlier run finished; None if its list is missing or damaged, or its file too short."""
        content = self.content_path(number)
        try:
            rows = load_json(self._list_path(number))
            part = Part(number, rows) if isinstance(rows, list) and len(rows) == len(self.places(number)) else None
            num_bytes = (content if content.exists() else self.images).stat().st_size
        except (FileNotFoundError, TypeError, ValueError, OverflowError):
            return None
        return part if part and part.records["size"].sum() <= num_bytes else None

    def move(self, number: int, part: Part) -> None:
        """Move the bytes of a part, the next in order, to their places in `images`, unless they are there."""
        part.records["offset"] = self._layout.place(part.records["size"])
        content = self.content_path(number)
        if content.exists():
            with open(content, "rb") as file:
                for record in part.records:
                    write_at(self.descriptor, file.read(int(record["size"])), int(record["offset"]))
            self._moved.append(content)
        self._records.append(part.records)
        self.bad |= part.bad
        if time.monotonic() - self._synced_at >= SYNC_S:
            self.sync()

    def sync(self) -> None:
        """Flush `images` to the disk, and remove the files whose bytes are in it."""
        os.fsync(self.descriptor)
        for content in self._moved:
            content.unlink()
        self._moved = []
        self._synced_at = time.monotonic()

    def _list_path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.json"


def write_at(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """Write all bytes, where the system call may write fewer when the disk fills up."""
    content = memoryview(content)
    while content:
        written = os.pwrite(descriptor, content, offset)
        content = content[written:]
        offset += written


@contextmanager
def open_unfinished(dst: Path, settings: dict[str, Any], *, restart: bool) -> Iterator[Unfinished]:
    """Start the unfinished file of `dst`, or continue one. An error inside keeps the finished parts, if there are any.

    Args:
        settings: everything that decides the contents, `num_images` among it. A file begun with others is rejected.
        restart: discard what is there.

    Raises:
        ValueError: another process packs into this file (PackedElsewhere), or it was begun with other settings or by
            an earlier version.
    """
    folder = partial_path(dst)
    if folder.is_file():
        raise ValueError(
            f"{str(folder)!r} was left by an interrupted pack of an earlier version and cannot be continued. Remove "
            f"it: {shlex.join(['rm', str(folder), f'{folder}.journal'])}"
        )
    lock = _locked(folder, dst)
    # Parts without settings, as a kill can leave them, are of nobody knows what.
    try:
        if restart or not (folder / SETTINGS).exists():
            for path in folder.iterdir():
                if path.name != LOCK:
                    path.unlink()
            write_text(folder / SETTINGS, json.dumps(settings))
        else:
            _check_settings(folder, settings)
            logger.warning("continuing %r, which holds %d finished parts", str(folder), _count_parts(folder))
        unfinished = Unfinished(folder, num_images=settings["num_images"])
        is_finished = False
        try:
            yield unfinished
            is_finished = True
        finally:
            os.close(unfinished.descriptor)
            _keep_or_remove(folder, is_finished=is_finished)
    finally:
        os.close(lock)


def _keep_or_remove(folder: Path, *, is_finished: bool) -> None:
    """Remove the folder unless work would be lost: hours of it must survive a full disk, a bad image or Ctrl-C."""
    num_parts = _count_parts(folder)
    if is_finished or not num_parts:
        shutil.rmtree(folder, ignore_errors=True)
        return
    num_bytes = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    logger.warning(
        "%d finished parts of up to %d images, %.2f GB, are kept in %r: rerun the same command to continue, or "
        "discard them with --restart or: rm -r %s",
        num_parts,
        PART,
        num_bytes / 1e9,
        str(folder),
        shlex.quote(str(folder)),
    )


def _count_parts(folder: Path) -> int:
    return len(list(folder.glob("[0-9]*.json")))


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    try:
        found = dict(load_json(folder / SETTINGS))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{str(folder / SETTINGS)!r}, left by an interrupted pack, is not valid: {error}. Pass --restart to start "
            "over."
        ) from error
    there = {key: found.get(key, "nothing") for key in settings}
    different = [key for key in settings if there[key] != settings[key]]
    if different:
        ours, theirs = (", ".join(f"{key} {side[key]!r}" for key in different) for side in (settings, there))
        raise ValueError(
            f"{str(folder)!r}, left by an interrupted pack, was begun with another source or settings: now {ours}, "
            f"there {theirs}. Give what it was begun with, or pass --restart to start over."
        )


def _locked(folder: Path, dst: Path) -> int:
    """Make and lock the folder, which another run may finish and remove at any moment."""
    deadline = time.monotonic() + LOCK_PATIENCE_S
    path = folder / LOCK
    while True:
        folder.mkdir(exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # removed since
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                logger.warning("%r cannot be locked (%s): make sure that nobody else packs into it", str(dst), error)
                return descriptor
            if error.errno != errno.EWOULDBLOCK:
                raise
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise PackedElsewhere(
                    f"another process is packing into {str(dst)!r}. Wait for it, or end it."
                ) from None
        os.close(descriptor)
        time.sleep(0.1)

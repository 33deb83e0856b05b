"""Folder of an unfinished .beton, from which an interrupted pack continues.

Images are packed in parts of 64 images each. The folder `.<name>.partial/` has two files for each finished part:
NUMBER.images contains the bytes of the images, and NUMBER.json, written last, lists them. The bytes are moved in order
into the file `images`, which becomes the .beton. Once they are flushed to disk there, NUMBER.images is deleted. Packing
therefore needs little more space than the final file. A power cut may damage any file, so all images are read back at
the end. If some are damaged, the next run packs their parts again.
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
"""Name of the file that becomes the .beton."""
SETTINGS = "settings.json"
"""Name of the file with the packing settings and the fingerprint of the source."""
LOCK = "lock"
"""Name of the file that is locked during packing. The kernel releases the lock when the last packing process exits."""
PART = 64
"""Images per part."""
RECORD_DTYPE = np.dtype(
    {
        "names": "number offset size crc32 height width mode origin".split(),
        "formats": "<u8 <u8 <u4 <u4 <u2 <u2 u1 u1".split(),
    }
)
"""One stored image: `number` in the storing order, `offset` and `size` in bytes, CRC32, height, width, mode, origin."""
SYNC_S = 2.0
"""Seconds between two flushes of `images` to the disk."""
LOCK_PATIENCE_S = 5.0
"""Seconds to wait for the lock. Workers of a pack that was just killed may still hold it."""


class PackedElsewhere(ValueError):
    """Another process is packing into the same file."""


class Layout:
    """Offsets of consecutive images in FFCV's layout: the file is divided into pages, and no image spans two pages.

    A page has `PAGE_BYTES`. For a larger image, the page size is doubled until the image fits.
    """

    def __init__(self, first_byte: int):
        self._next_page = -(-first_byte // PAGE_BYTES)
        self._position = 0
        self._end = 0

    def place(self, sizes: np.ndarray) -> list[int]:
        """Return the offsets in bytes of the next images, given their sizes in bytes."""
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
    """A finished part: up to PART images that are consecutive in the storing order (the order in the .beton).

    Attributes:
        records: RECORD_DTYPE, the stored images of the part. `Unfinished.move` sets their offsets.
        bad: images that do not decode: number in the storing order -> reason.
    """

    def __init__(self, number: int, rows: list):
        stored = [(place, 0, *row) for place, row in enumerate(rows, number * PART) if not isinstance(row, str)]
        self.records = np.array(stored, RECORD_DTYPE)
        self.bad = {place: row for place, row in enumerate(rows, number * PART) if isinstance(row, str)}


class Unfinished:
    """Unfinished .beton in its folder, locked by `open_unfinished`.

    Attributes:
        images: path of the file that becomes the .beton.
        descriptor: file descriptor of `images`, open for reading and writing.
        num_parts: number of all parts, finished or not.
        bad: images of the moved parts that do not decode: number in the storing order -> reason.
    """

    def __init__(self, folder: Path, *, num_images: int):
        self.images = folder / IMAGES
        self.num_parts = -(-num_images // PART)
        self.bad: dict[int, str] = {}
        self._folder = folder
        self._num_images = num_images
        # Tables precede the images, so reserve space for the largest possible number of rows.
        self._layout = Layout(METADATA_START + num_images * METADATA_DTYPE.itemsize)
        self._records = [np.zeros(0, RECORD_DTYPE)]
        self._moved: list[Path] = []
        self._synced_at = time.monotonic()
        self.descriptor = os.open(self.images, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    @property
    def records(self) -> np.ndarray:
        """Images of all moved parts in the storing order, RECORD_DTYPE."""
        return np.concatenate(self._records)

    def places(self, number: int) -> range:
        """Return the numbers of a part's images in the storing order."""
        return range(number * PART, min((number + 1) * PART, self._num_images))

    def content_path(self, number: int) -> Path:
        """Return the path of the file with a part's image bytes. `sync` deletes this file after `move`."""
        return self._folder / f"{number:06d}.images"

    def finish_part(self, number: int, rows: list) -> None:
        """Mark a part as finished. Call this after all of the part's bytes are in the file `content_path`.

        Args:
            rows: for each image, [size, crc32, height, width, mode, origin] or the reason why it does not decode.
        """
        write_text(self._list_path(number), json.dumps(rows))

    def forget(self, number: int) -> None:
        """Delete the list of a part, so that the part is packed again."""
        self._list_path(number).unlink(missing_ok=True)

    def read_part(self, number: int) -> Part | None:
        """Return a finished part. Return None if its list is missing or damaged, or if its images file is too short."""
        content = self.content_path(number)
        try:
            rows = load_json(self._list_path(number))
            part = Part(number, rows) if isinstance(rows, list) and len(rows) == len(self.places(number)) else None
            num_bytes = (content if content.exists() else self.images).stat().st_size
        except (FileNotFoundError, TypeError, ValueError, OverflowError):
            return None
        return part if part and part.records["size"].sum() <= num_bytes else None

    def move(self, number: int, part: Part) -> None:
        """Copy the bytes of a part to `images`, unless an earlier run did so. Call this for all parts, in order."""
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
        """Flush `images` to disk, then delete the NUMBER.images files of the moved parts."""
        os.fsync(self.descriptor)
        for content in self._moved:
            content.unlink()
        self._moved = []
        self._synced_at = time.monotonic()

    def _list_path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.json"


def write_at(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """Write all bytes at an offset. A single system call may write only some, for example on a nearly full disk."""
    content = memoryview(content)
    while content:
        written = os.pwrite(descriptor, content, offset)
        content = content[written:]
        offset += written


@contextmanager
def open_unfinished(dst: Path, settings: dict[str, Any], *, restart: bool) -> Iterator[Unfinished]:
    """Open the folder of `dst`'s unfinished .beton, or create it. If the body raises an error, finished parts are kept.

    Args:
        settings: all settings that affect the contents, including `num_images`.
        restart: discard the finished parts of an earlier run instead of continuing.

    Raises:
        ValueError: another process is packing into `dst` (PackedElsewhere), or the folder was left by a pack with
            other settings or by an earlier version.
    """
    folder = partial_path(dst)
    if folder.is_file():
        raise ValueError(
            f"{str(folder)!r} was left by an interrupted pack of an earlier version and cannot be continued. Remove "
            f"it: {shlex.join(['rm', str(folder), f'{folder}.journal'])}"
        )
    lock = _locked(folder, dst)
    # A kill can leave parts without settings. They cannot be verified, so discard them.
    try:
        if restart or not (folder / SETTINGS).exists():
            for path in folder.iterdir():
                if path.name != LOCK:
                    path.unlink()
            write_text(folder / SETTINGS, json.dumps(settings))
        else:
            _check_settings(folder, settings)
            logger.warning("continuing %r, which has %d finished parts", str(folder), _count_parts(folder))
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
    """Remove the folder if packing is finished or there is no finished part. Otherwise log how to continue."""
    num_parts = _count_parts(folder)
    if is_finished or not num_parts:
        shutil.rmtree(folder, ignore_errors=True)
        return
    size_gb = sum(path.stat().st_blocks * 512 for path in folder.iterdir()) / 1e9
    kept = f"kept {num_parts} finished parts of up to {PART} images ({size_gb:.2f} GB) in {str(folder)!r}"
    logger.warning("%s. Rerun the same command to continue. To discard these parts, run: %s", kept, discard(folder))


def discard(folder: Path) -> str:
    """Return the command that removes the folder of an interrupted pack."""
    return shlex.join(["rm", "-rf", str(folder)])


def _count_parts(folder: Path) -> int:
    return len(list(folder.glob("[0-9]*.json")))


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    try:
        found = dict(load_json(folder / SETTINGS))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{str(folder / SETTINGS)!r}, left by an interrupted pack, is not valid: {error}. Start over: "
            f"{discard(folder)}"
        ) from error
    there = {key: found.get(key, "nothing") for key in settings}
    different = [key for key in settings if there[key] != settings[key]]
    if different:
        ours, theirs = (", ".join(f"{key} {side[key]!r}" for key in different) for side in (settings, there))
        raise ValueError(
            f"{str(folder)!r} is from an interrupted pack of another source or with other settings: {theirs}, but now "
            f"{ours}. Pass the same source and settings, or start over: {discard(folder)}"
        )


def _locked(folder: Path, dst: Path) -> int:
    """Create and lock the folder; return the lock's file descriptor. Another run may remove the folder at any moment.

    Raises:
        PackedElsewhere: another process still holds the lock after LOCK_PATIENCE_S.
    """
    deadline = time.monotonic() + LOCK_PATIENCE_S
    path = folder / LOCK
    while True:
        folder.mkdir(exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # removed in between
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                logger.warning("cannot lock %r (%s). Make sure that no other process packs into it.", str(dst), error)
                return descriptor
            if error.errno != errno.EWOULDBLOCK:
                raise
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise PackedElsewhere(
                    f"another process is packing into {str(dst)!r}. Wait until it has finished, or end it."
                ) from None
        os.close(descriptor)
        time.sleep(0.1)

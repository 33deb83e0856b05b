"""What is packed already, in a form that survives a kill: the unfinished .beton, and a journal of its images.

`.<name>.partial` receives the images. `.<name>.partial.journal` begins with a line of JSON, the settings and what
identifies the source, and then lists every few seconds which images have reached the disk since. Either file may end
anywhere: a block of the journal that is not whole is dropped, and an image counts only if its bytes have the CRC32 that
the journal gives. The journal is locked while somebody packs, and the kernel ends the lock with the last process.
"""

import errno
import fcntl
import json
import logging
import os
import shlex
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from vitkd_ds.data.beton.format import partial_path
from vitkd_ds.data.beton.verify import are_intact

logger = logging.getLogger(__name__)

RECORD_DTYPE = np.dtype([
    ("number", "<u8"), ("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4"), ("height", "<u2"), ("width", "<u2"),
    ("mode", "u1"), ("origin", "u1"),
])  # fmt: skip
"""A stored image: its number in the order of storing, where its bytes are, and what they are."""
BLOCK_DTYPE = np.dtype([("count", "<u4"), ("crc32", "<u4")])
"""What stands before the records of a block: how many there are, and the CRC32 of their bytes."""
MAX_OFFSET = 2**62
"""Bytes; with a size added it is still a position that the system takes."""
LOCK_PATIENCE_S = 5.0
"""How long to wait for a lock: the workers of a run that was killed just now may still hold it."""


class PackedElsewhere(ValueError):
    """Another process packs into the same file."""


class Journal:
    """An unfinished .beton and the journal beside it, which `open_journal` opens and closes.

    Attributes:
        path: the unfinished .beton; `notes` is the journal.
        data: descriptor of the unfinished .beton, for writing.
        end: position, in bytes, before which nothing is written any more.
        added: arrays of records that the next `sync` notes.
    """

    def __init__(self, path: Path, notes: Path, descriptor: int, records: np.ndarray, *, end: int):
        self.path, self.notes, self.end, self._blocks, self.added = path, notes, end, [records], []
        self.data = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._descriptor, self._length = descriptor, os.fstat(descriptor).st_size

    def sync(self) -> None:
        """Bring what was written so far to the disk, and then note the images in `added`."""
        if not self.added:
            return
        os.fsync(self.data)
        records = np.concatenate(self.added)
        content = records.tobytes()
        block = np.array([(len(records), zlib.crc32(content))], BLOCK_DTYPE)
        # A call that was cut short by a signal or a full disk is repeated in the same place.
        write_at(self._descriptor, block.tobytes() + content, self._length)
        os.fsync(self._descriptor)
        self._length += block.nbytes + len(content)
        self._blocks.append(records)
        self.added = []  # afterwards, as a signal may come in between: noted twice is better than never

    @property
    def records(self) -> np.ndarray:
        """The images on the disk: RECORD_DTYPE, by number."""
        records = np.concatenate(self._blocks)
        return records[np.argsort(records["number"])]

    def close(self, *, keep: bool) -> None:
        """End the lock, and keep both files for another run or remove what is left of them."""
        if keep:
            num_bytes = sum(os.fstat(descriptor).st_blocks * 512 for descriptor in (self.data, self._descriptor))
            files = shlex.join(map(str, (self.path, self.notes)))
            logger.warning(
                "%d images, %.2f GB, are kept in %r: the same command continues with them; --restart throws them away, "
                "and so does: rm %s", len(self.records), num_bytes / 1e9, str(self.path), files,
            )  # fmt: skip
        else:
            self.path.unlink(missing_ok=True)  # missing once it has become the .beton
            self.notes.unlink(missing_ok=True)
        os.close(self.data)
        os.close(self._descriptor)


def write_at(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """Write all bytes, where the system call may write fewer when the disk fills up."""
    content = memoryview(content)
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


@contextmanager
def open_journal(dst: Path, settings: dict[str, Any], *, restart: bool, num_threads: int) -> Iterator[Journal]:
    """Start the unfinished file of `dst`, or continue one; an error inside keeps what is on the disk, if anything is.

    Args:
        settings: what decides the contents, `num_images` among it; a file that was begun with others is not continued.
        restart: throw away what is there.
        num_threads: threads that check the images that are there.

    Raises:
        ValueError: another process packs into this file (PackedElsewhere), or it was begun with other settings,
            or the journal lists images that cannot be.
    """
    partial = partial_path(dst)
    notes = partial.with_name(f"{partial.name}.journal")
    descriptor = _locked(notes, dst)
    try:
        with open(descriptor, "rb", closefd=False) as file:
            content = b"" if restart else file.read()
        head, end_of_line, blocks = content.partition(b"\n")
        if end_of_line:
            _check_settings(partial, notes, head, settings)
            records, whole_bytes = _whole_blocks(blocks)
            _check_records(notes, records, num_images=settings["num_images"])
            os.ftruncate(descriptor, len(head) + 1 + whole_bytes)
            records, end = _intact(partial, records, num_threads=num_threads)
        else:  # new, or killed while the first line was written
            partial.unlink(missing_ok=True)
            os.ftruncate(descriptor, 0)
            write_at(descriptor, json.dumps(settings).encode() + b"\n", 0)
            os.fsync(descriptor)
            records, end = np.zeros(0, RECORD_DTYPE), 0
        journal = Journal(partial, notes, descriptor, records, end=end)
    except BaseException:
        os.close(descriptor)
        raise
    # Hours of work must not be lost to a full disk, a bad image or Ctrl-C, so only a file without images is removed.
    try:
        yield journal
    except BaseException:
        try:
            with suppress(OSError):  # the disk may be what failed
                journal.sync()
        finally:  # even if a second Ctrl-C comes meanwhile
            journal.close(keep=len(journal.records) > 0)
        raise
    journal.close(keep=False)


def _intact(partial: Path, records: np.ndarray, *, num_threads: int) -> tuple[np.ndarray, int]:
    """Which of the images are on the disk as they were written, and where all that were written end."""
    partial.touch()
    ends = records["offset"] + records["size"]
    end = min(int(ends.max(initial=0)), partial.stat().st_size)
    os.truncate(partial, end)
    intact = ends <= end
    intact[intact] = are_intact(partial, records[intact], num_threads=num_threads)
    _, first = np.unique(records["number"][intact], return_index=True)  # packed again after damage: here twice
    logger.warning("continuing %r, which holds %d images", str(partial), len(first))
    if not intact.all():
        logger.warning("%d images in it are damaged and are packed again", (~intact).sum())
    return records[intact][first], end


def _check_records(notes: Path, records: np.ndarray, *, num_images: int) -> None:
    """Raise ValueError for an image that is none of the source's, or lies where no file ends."""
    wrong = records[(records["number"] >= num_images) | (records["offset"] >= MAX_OFFSET)]
    if len(wrong):
        number, offset = wrong[0]["number"], wrong[0]["offset"]
        raise ValueError(
            f"{str(notes)!r}, left by a run that was interrupted, must list images below {num_images}, found number "
            f"{number} at byte {offset}: give --restart to start over"
        )


def _check_settings(partial: Path, notes: Path, head: bytes, settings: dict[str, Any]) -> None:
    try:
        found = dict(json.loads(head))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{str(notes)!r}, left by a run that was interrupted, must begin with a line of JSON, "
            f"found {error}: give --restart to start over"
        ) from error
    there = {key: found.get(key, "nothing") for key in settings}
    different = [key for key in settings if there[key] != settings[key]]
    if different:
        ours, theirs = (", ".join(f"{key} {side[key]!r}" for key in different) for side in (settings, there))
        raise ValueError(
            f"{str(partial)!r}, left by a run that was interrupted, can only be continued with the same source and "
            f"settings, found {ours} where it has {theirs}: give what it was begun with, or --restart to start over"
        )


def _whole_blocks(content: bytes) -> tuple[np.ndarray, int]:
    """The records up to the first block that is not whole, and the number of bytes these blocks take."""
    records, start = [], 0
    while (first := start + BLOCK_DTYPE.itemsize) <= len(content):
        count, crc32 = np.frombuffer(content, BLOCK_DTYPE, count=1, offset=start)[0].tolist()
        end = first + count * RECORD_DTYPE.itemsize
        if end > len(content) or zlib.crc32(content[first:end]) != crc32:
            break
        records.append(content[first:end])
        start = end
    return np.frombuffer(b"".join(records), RECORD_DTYPE), start


def _locked(path: Path, dst: Path) -> int:
    """Open and lock a journal, which another run may finish and remove at any moment."""
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                logger.warning("%r cannot be locked (%s): see to it that nobody else packs into it", str(dst), error)
                return descriptor
            if error.errno != errno.EWOULDBLOCK:
                raise
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise PackedElsewhere(
                    f"only one run may pack into {str(dst)!r}, found another at work on it: wait for it, or end it"
                ) from None
        os.close(descriptor)
        time.sleep(0.1)

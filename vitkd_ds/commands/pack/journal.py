"""What is already packed, in a form that survives a kill: the unfinished .beton, and a journal of its images.

`.<name>.partial` receives the images, `.<name>.partial.journal` a line with the plan (source and settings) and then,
every few seconds, the places of the images that have reached the disk. Either file may end anywhere: a block of the
journal that is not whole is dropped, and an image counts only if its bytes have the CRC32 that the journal says. The
journal is locked while a job writes, and the kernel ends the lock with the job's last process.
"""

import errno
import fcntl
import json
import logging
import os
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from vitkd_ds.data.beton.format import partial_path
from vitkd_ds.data.beton.verify import are_intact

logger = logging.getLogger(__name__)

RECORD_DTYPE = np.dtype(
    [
        ("number", "<u8"),
        ("offset", "<u8"),
        ("size", "<u4"),
        ("crc32", "<u4"),
        ("height", "<u2"),
        ("width", "<u2"),
        ("mode", "u1"),
        ("origin", "u1"),
    ]
)
"""An image that is stored: its number in the order of storing, where its bytes are, and what they are."""
BLOCK_DTYPE = np.dtype([("count", "<u4"), ("crc32", "<u4")])
"""Before the records of a block: how many there are, and the CRC32 of their bytes."""
LOCK_PATIENCE_S = 5.0
"""How long to wait for a lock: the workers of a job that was killed just now may still hold it."""


class Journal:
    """The unfinished file of one job; made by `open_journal`, closed by `close` or `discard`.

    Attributes:
        path: the unfinished .beton; `notes` the journal beside it.
        data: its descriptor, for writing.
        end: what lies before this byte is not to be written to.
    """

    def __init__(self, path: Path, descriptor: int, records: np.ndarray, *, end: int = 0):
        self.path, self.notes, self.end, self._blocks = path, _journal_path(path), end, [records]
        self.data = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._descriptor, self._length = descriptor, os.fstat(descriptor).st_size

    def append(self, records: np.ndarray) -> None:
        """Bring what was written so far to the disk, and then note that it is there."""
        if not len(records):
            return
        os.fsync(self.data)
        content = records.tobytes()
        block = np.array([(len(records), zlib.crc32(content))], BLOCK_DTYPE)
        # A call that was cut short by a signal or a full disk is repeated in the same place.
        write_at(self._descriptor, block.tobytes() + content, self._length)
        os.fsync(self._descriptor)
        self._length += block.nbytes + len(content)
        self._blocks.append(records)

    @property
    def records(self) -> np.ndarray:
        """The images on the disk: RECORD_DTYPE, by number."""
        records = np.concatenate(self._blocks)
        return records[np.argsort(records["number"])]

    @property
    def num_images(self) -> int:
        """How many images are on the disk."""
        return sum(map(len, self._blocks))

    @property
    def bytes_on_disk(self) -> int:
        """What both files take."""
        return sum(os.fstat(descriptor).st_blocks * 512 for descriptor in (self.data, self._descriptor))

    def close(self) -> None:
        """Keep both files for another run and end the lock."""
        os.close(self.data)
        os.close(self._descriptor)

    def discard(self) -> None:
        """Remove both files, unless the .beton was renamed, and end the lock."""
        self.path.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)
        self.close()


def write_at(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """Write all bytes, where the system call may write fewer when the disk fills up."""
    content = memoryview(content)
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


def _journal_path(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.journal")


def open_journal(dst: Path, plan: dict[str, Any], *, restart: bool, num_threads: int) -> Journal:
    """Start the unfinished file of `dst`, or continue one.

    Args:
        dst: the .beton to be.
        plan: what decides the contents; a file that was begun with another one is not continued.
        restart: throw away what is there.
        num_threads: threads that check the images that are there.

    Raises:
        ValueError: another job writes this file, or it was begun with another plan.
    """
    partial = partial_path(dst)
    descriptor = _locked(_journal_path(partial), dst)
    try:
        content = b"" if restart else _read_all(descriptor)
        head, end_of_line, blocks = content.partition(b"\n")
        if not end_of_line:  # new, or killed while this line was written
            return _begin(partial, descriptor, plan)
        _check_plan(partial, head, plan)
        records, whole_bytes = _whole_blocks(blocks)
        os.ftruncate(descriptor, len(head) + 1 + whole_bytes)
        return _continue(partial, descriptor, records, num_threads=num_threads)
    except BaseException:
        os.close(descriptor)
        raise


def _begin(partial: Path, descriptor: int, plan: dict[str, Any]) -> Journal:
    partial.unlink(missing_ok=True)
    os.ftruncate(descriptor, 0)
    write_at(descriptor, json.dumps(plan).encode() + b"\n", 0)
    os.fsync(descriptor)
    return Journal(partial, descriptor, np.zeros(0, RECORD_DTYPE))


def _continue(partial: Path, descriptor: int, records: np.ndarray, *, num_threads: int) -> Journal:
    partial.touch()
    end = int((records["offset"] + records["size"]).max(initial=0))
    os.truncate(partial, min(end, partial.stat().st_size))
    intact = are_intact(partial, records, num_threads=num_threads)
    _, first = np.unique(records["number"][intact], return_index=True)  # packed again after damage: here twice
    journal = Journal(partial, descriptor, records[intact][first], end=end)
    logger.warning("continuing %r, which holds %d images", str(partial), journal.num_images)
    if not intact.all():
        logger.warning("%d images in it are damaged and are packed again", (~intact).sum())
    return journal


def _check_plan(partial: Path, head: bytes, plan: dict[str, Any]) -> None:
    try:
        found = dict(json.loads(head))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{str(_journal_path(partial))!r}, left by an interrupted job, must begin with a line of JSON, found "
            f"{error}: give --restart to start over"
        ) from error
    different = [key for key in plan if found.get(key, "nothing") != plan[key]]
    if different:
        ours = ", ".join(f"{key} {plan[key]!r}" for key in different)
        theirs = ", ".join(f"{key} {found.get(key, 'nothing')!r}" for key in different)
        raise ValueError(
            f"{str(partial)!r}, left by an interrupted job, can only be continued with the same source and settings, "
            f"found {ours} where it has {theirs}: give what it was begun with, or --restart to start over"
        )


def _whole_blocks(content: bytes) -> tuple[np.ndarray, int]:
    """The records up to the first block that is not whole, and the number of bytes these blocks take."""
    records, start = [], 0
    while len(content) - start >= BLOCK_DTYPE.itemsize:
        count, crc32 = np.frombuffer(content, BLOCK_DTYPE, count=1, offset=start)[0].tolist()
        first, end = start + BLOCK_DTYPE.itemsize, start + BLOCK_DTYPE.itemsize + count * RECORD_DTYPE.itemsize
        if end > len(content) or zlib.crc32(content[first:end]) != crc32:
            break
        records.append(content[first:end])
        start = end
    return np.frombuffer(b"".join(records), RECORD_DTYPE), start


def _read_all(descriptor: int) -> bytes:
    parts, offset = [], 0
    while part := os.pread(descriptor, 2**24, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def _locked(path: Path, dst: Path) -> int:
    """Open and lock a journal, which another job may finish and remove at any moment."""
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                logger.warning("%r cannot be locked (%s): see to it that no other job writes it", str(dst), error)
                return descriptor
            if error.errno != errno.EWOULDBLOCK:
                raise
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise ValueError(
                    f"only one job may write {str(dst)!r}, found another at work on it: wait for it, or end it"
                ) from None
        os.close(descriptor)
        time.sleep(0.1)

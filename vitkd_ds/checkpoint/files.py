"""Atomic file writes, flushed to disk."""

import errno
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Callable


class HashingFile:
    """Binary file that counts and hashes the bytes written to it, for example by torch.save.

    If a write fails, `finish` instead of `write` raises the error, because no exception may pass through torch's C++
    writer.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.num_bytes = 0
        self.error = None
        self.hash = hashlib.blake2b(digest_size=32)

    def write(self, data: Any) -> int:
        """Write and hash `data`, and return its length in bytes. After a failed write, only return the length."""
        length = memoryview(data).nbytes
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
            self.hash.update(data)
            self.num_bytes += length
        return length

    def flush(self) -> None:
        """Do nothing, because `finish` flushes all data to disk at once."""

    def finish(self) -> dict[str, Any]:
        """Flush to disk, and return the file's manifest entry. Raise OSError if a write has failed."""
        if self.error is not None:
            raise self.error
        self.file.flush()
        os.fsync(self.file.fileno())
        return {"bytes": self.num_bytes, "blake2b": self.hash.hexdigest()}


def write_whole(path: Path, fill: Callable[[HashingFile], Any]) -> dict[str, Any]:
    """Write or replace a file atomically: readers see the old or the new content, never a mix.

    The file gets its name after all its bytes are on disk. Call `sync_folder` afterwards to flush the name as well.

    Args:
        path: the file.
        fill: function that writes the content.

    Returns:
        The file's manifest entry: length and BLAKE2b checksum.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # left by a killed process, or a planted link
        with temporary.open("xb") as file:  # mode x does not follow a link that was created in the meantime
            hashing = HashingFile(file)
            fill(hashing)
            entry = hashing.finish()
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # the disk may be read-only, and the first error is more informative
            temporary.unlink()
        raise
    return entry


def write_text(path: Path, text: str) -> dict[str, Any]:
    """Write a UTF-8 text file atomically, see `write_whole`. Invalid UTF-8 in file names becomes \\udcXX."""
    return write_whole(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def write_json(path: Path, content: Any) -> dict[str, Any]:
    """Write indented JSON atomically, see `write_whole`."""
    return write_text(path, json.dumps(content, indent=2) + "\n")


def sync_folder(folder: Path) -> None:
    """Flush the names of a folder's files to disk, if the file system supports it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems flush names automatically
            raise
    finally:
        os.close(descriptor)

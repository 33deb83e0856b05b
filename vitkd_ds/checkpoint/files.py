"""Write files whole or not at all, flushed to the disk."""

import errno
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Callable


class HashingFile:
    """A binary file for torch.save and others that counts and hashes what it writes.

    It notes a failing write, and `finish` raises it: an exception must not pass through torch's C++ writer.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.num_bytes = 0
        self.error = None
        self.hash = hashlib.blake2b(digest_size=32)

    def write(self, data: Any) -> int:
        """Write and hash `data`; return its length in bytes."""
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
        """Do nothing: `finish` flushes once, to the disk."""

    def finish(self) -> dict[str, Any]:
        """Flush to the disk; return the file's entry for a manifest. Raises OSError if any write failed."""
        if self.error is not None:
            raise self.error
        self.file.flush()
        os.fsync(self.file.fileno())
        return {"bytes": self.num_bytes, "blake2b": self.hash.hexdigest()}


def write_whole(path: Path, fill: Callable[[HashingFile], Any]) -> dict[str, Any]:
    """Write or replace a file through `fill`, so that a reader sees its old or its new content and never a part.

    The name appears when all bytes are on the disk; `sync_folder` makes the name last. Returns the file's length and
    BLAKE2b checksum, as a manifest lists them.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # left by a kill, or a link that somebody put there
        with temporary.open("xb") as file:  # x: a link that appears meanwhile is not followed
            hashing = HashingFile(file)
            fill(hashing)
            entry = hashing.finish()
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # the disk may be read-only by now, and the first error says more
            temporary.unlink()
        raise
    return entry


def write_text(path: Path, text: str) -> dict[str, Any]:
    """Write a text file whole, as UTF-8, with bytes of names that are none as \\udcXX; see `write_whole`."""
    return write_whole(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def write_json(path: Path, content: Any) -> dict[str, Any]:
    """Write readable JSON whole; see `write_whole`."""
    return write_text(path, json.dumps(content, indent=2) + "\n")


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems flush names by themselves
            raise
    finally:
        os.close(descriptor)

"""Members of uncompressed tars, and of tars inside tars: where they lie, and their bytes. Nothing is unpacked."""

import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

BLOCK_BYTES = 512
"""Tar's unit; an archive ends in blocks of zeros."""


@dataclass(frozen=True, slots=True)
class Member:
    """A plain file inside a tar."""

    name: str
    """As the tar spells it."""
    offset: int
    """Of its first byte, in the outermost file."""
    size: int


def is_tar(path: Path) -> bool:
    """Whether a file is an uncompressed tar, by its first header."""
    return first_member(path) is not None


def first_member(path: Path) -> Member | None:
    """The first plain file of a tar; None if it has none, or is no tar."""
    if not path.is_file():
        return None
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isreg():
                    return Member(member.name, member.offset_data, member.size)
    except (tarfile.TarError, OSError):
        pass
    return None


def list_members(path: Path, *, inside: Member | None = None) -> Iterator[Member]:
    """The plain files of the tar `path`, or of the tar that is its member `inside`, in file order.

    Raises:
        ValueError: no tar, a compressed one, or one that is cut short or damaged. Python's tarfile takes a damaged
            header in the middle for the end, so it is checked that the end is marked as such.
    """
    place = f"{str(path)!r}" + (f", member {inside.name!r}," if inside else "")
    try:
        with open(path, "rb") as file:
            part = _Part(file, inside.offset, inside.size) if inside else file
            with tarfile.open(fileobj=part, mode="r:") as tar:
                for member in tar:
                    if member.isreg() and not member.issparse():
                        yield Member(member.name, member.offset_data + (inside.offset if inside else 0), member.size)
                    tar.members.clear()  # it would keep a record of every member
                part.seek(tar.offset)
                end = part.read(BLOCK_BYTES)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(
            f"{place} must be a whole, uncompressed tar, found {error}: fetch it again, or decompress it"
        ) from error
    if end != bytes(BLOCK_BYTES):
        raise ValueError(
            f"{place} must end in tar's blocks of zeros, found other bytes: it is cut short, fetch it again"
        )


class _Part:
    """A stretch of a file that looks like a file to tarfile."""

    def __init__(self, file: BinaryIO, start: int, size: int):
        self._file, self._start, self._size, self._position = file, start, size, 0

    def tell(self) -> int:
        """Position in the part."""
        return self._position

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position in the part."""
        assert whence == os.SEEK_SET, "tarfile seeks from the start when it reads"
        self._position = position
        return position

    def read(self, count: int = -1) -> bytes:
        """The next bytes, to the end of the part at most."""
        left = max(self._size - self._position, 0)
        self._file.seek(self._start + self._position)
        content = self._file.read(left if count < 0 else min(count, left))
        self._position += len(content)
        return content


def member_reader(paths: Sequence[Path], members: Sequence[tuple[int, Member]]) -> Callable[[int], bytes]:
    """A function that gives the bytes of the i-th member; `members` holds the number of its file, and itself.

    The last file stays open, since neighbours mostly lie in one. It is read at given positions, so processes that were
    forked from one another may share it.
    """
    numbers, offsets, sizes = (
        np.array(column, np.int64)
        for column in zip(*((number, member.offset, member.size) for number, member in members))
    )
    opened: dict[int, int] = {}

    def read(index: int) -> bytes:
        number, size = int(numbers[index]), int(sizes[index])
        if number not in opened:
            for descriptor in opened.values():
                os.close(descriptor)
            opened.clear()
            opened[number] = os.open(paths[number], os.O_RDONLY | os.O_CLOEXEC)
        content = os.pread(opened[number], size, int(offsets[index]))
        if len(content) != size:
            raise OSError(f"{str(paths[number])!r} ends inside the member: it was cut while it was read")
        return content

    return read

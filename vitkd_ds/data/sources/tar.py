"""List and read the members of uncompressed tars, and of tars inside tars."""

import logging
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vitkd_ds.data.sources.source import Source

logger = logging.getLogger(__name__)

BLOCK_BYTES = 512
"""Size of a tar's blocks in bytes. An archive ends with blocks of zeros."""
SEARCH_BYTES = 2**20
"""Number of bytes per read while searching for another archive that follows the first one in the same file."""


@dataclass(frozen=True, slots=True)
class Member:
    """Regular file inside a tar."""

    name: str
    """Name as stored in the tar."""
    offset: int
    """Offset of the member's first byte in the outermost tar."""
    size: int


def first_name(path: Path) -> str:
    """Return the name of a tar's first regular file, or "" if there is none or `path` is not an uncompressed tar."""
    try:
        return next(list_members(path)).name if path.is_file() else ""
    except (StopIteration, ValueError):
        return ""


def list_members(path: Path, *, inside: Member | None = None) -> Iterator[Member]:
    """Yield the regular files in a tar in order, including files in further tars that are appended to it.

    For a hard link, its target is yielded. A warning gives the number of members that are neither files nor folders.
    Python's tarfile takes a damaged header for the end of the archive. Therefore, this function also checks that the
    end is marked by zeros, and that only further tars follow it.

    Args:
        inside: member of `path` that is the tar to list; None lists `path` itself.

    Raises:
        ValueError: `path` is not a regular file or not a tar; the tar is compressed, truncated or damaged; or the
            target of a hard link does not precede it.
    """
    place = f"{str(path)!r}" + (f", member {inside.name!r}," if inside else "")
    if not path.is_file():  # opening a FIFO, for example, would block
        raise ValueError(f"{place} is not a regular file, so it cannot be read as a tar")
    start = inside.offset if inside else 0
    files = {}
    others = []
    try:
        with tarfile.open(path, "r:") as outer:
            file = outer.fileobj
            if inside:
                stretch = tarfile.TarInfo(inside.name)
                stretch.offset_data = inside.offset
                stretch.size = inside.size
                file = outer.extractfile(stretch)
            first = 0
            while first is not None:
                file.seek(first)
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for member in tar:
                        found = _file_of(member, files, start=start, place=place)
                        if found:
                            files[member.name] = found
                            yield found
                        elif not member.isdir():
                            others.append(member.name)
                        tar.members.clear()  # free tarfile's record of every member
                    first = _next_archive(file, tar.offset, place)
    except (tarfile.TarError, OSError) as error:
        remedy = "fetch it again, or decompress it"
        raise ValueError(f"{place} is not a complete, uncompressed tar ({error}): {remedy}") from error
    if others:
        logger.warning("%s: skipping %d non-regular members; the first is %r", place, len(others), others[0])


def _file_of(member: tarfile.TarInfo, files: dict[str, Member], *, start: int, place: str) -> Member | None:
    """Return the regular file that a tar member is or links to. Return None for a member of another type.

    Args:
        files: earlier regular files of the tar, by name.
    """
    if member.isreg() and not member.issparse():
        return Member(member.name, member.offset_data + start, member.size)
    if not member.islnk():
        return None
    target = files.get(member.linkname)
    if target is None:
        found = f"{member.name!r} as a link to {member.linkname!r}"
        raise ValueError(f"{place} has {found}, which does not precede it. Write the tar again.")
    return Member(member.name, target.offset, target.size)


def _next_archive(file: BinaryIO, end: int, place: str) -> int | None:
    """Return the offset of the archive after the one that ends at `end`, or None if no other archive follows.

    The next archive starts at the first byte that is not zero.

    Raises:
        ValueError: the block of zeros that marks the end is missing.
    """
    file.seek(end)
    block = file.read(BLOCK_BYTES)
    if block != bytes(BLOCK_BYTES):
        raise ValueError(f"{place} is truncated: the blocks of zeros at its end are missing. Download it again.")
    while block:
        if rest := block.lstrip(b"\0"):
            return end + len(block) - len(rest)
        end += len(block)
        block = file.read(SEARCH_BYTES)
    return None


def source_of(
    kind: str, classes: list[str], labels: Sequence[int], names: list[str], files: list[Path], members: list
) -> Source:
    """Build a source of images that are members of tars.

    The tar that was read last stays open, because consecutive images are mostly in the same tar. Each read passes its
    own offset, so forked processes may share the open file.

    Args:
        members: one pair per image: the index of its tar in `files`, and the member.
    """
    rows = [(number, member.offset, member.size) for number, member in members]
    numbers, offsets, sizes = np.array(rows, np.int64).reshape(-1, 3).T
    opened: dict[int, int] = {}

    def read(index: int) -> bytes:
        number = int(numbers[index])
        size = int(sizes[index])
        if number not in opened:
            for descriptor in opened.values():
                os.close(descriptor)
            opened.clear()
            opened[number] = os.open(files[number], os.O_RDONLY | os.O_CLOEXEC)
        content = os.pread(opened[number], size, int(offsets[index]))
        if len(content) != size:
            raise OSError(f"{str(files[number])!r} ends inside the member; it was truncated while being read")
        return content

    return Source(kind, tuple(classes), np.array(labels, np.int64), names, sizes.copy(), read)

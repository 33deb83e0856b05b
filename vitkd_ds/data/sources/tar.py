"""List and read members of uncompressed tars, also nested ones, without unpacking."""

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
"""Tar's block size in bytes; an archive ends with blocks of zeros."""
SEARCH_BYTES = 2**20
"""Bytes per read while searching for another archive after the end of one."""


@dataclass(frozen=True, slots=True)
class Member:
    """Regular file inside a tar."""

    name: str
    """Name as stored in the tar."""
    offset: int
    """Offset of its first byte in the outermost file."""
    size: int


def first_name(path: Path) -> str:
    """Return the name of a tar's first regular file; "" if it has none, or is not an uncompressed tar."""
    try:
        return next(list_members(path)).name if path.is_file() else ""
    except (StopIteration, ValueError):
        return ""


def list_members(path: Path, *, inside: Member | None = None) -> Iterator[Member]:
    """Yield the regular files of a tar in file order, including those of further tars appended to it.

    A hard link yields its target. A warning counts other members that are not folders. Python's tarfile takes a damaged
    header in the middle for the end, so this also checks that the end is marked, and that only tars follow.

    Args:
        inside: member of `path` that is the tar to list; None lists `path` itself.

    Raises:
        ValueError: not a regular file, not a tar, or a compressed, truncated or damaged one; or a hard link without an
            earlier target.
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
    """Return the regular file that a tar member is or links to, or None.

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
    """Return the offset of the next archive, the first non-zero byte after the end of one, or None.

    Raises:
        ValueError: no block of zeros marks the end.
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

    The most recently read tar stays open, since neighbours are mostly in the same one. Reads use explicit offsets, so
    forked processes may share the descriptor.

    Args:
        members: pairs of the tar's index in `files` and the member, one per image.
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

"""Members of uncompressed tars, and of tars inside tars: where they lie, and their bytes. Nothing is unpacked."""

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
"""Tar's unit; an archive ends in blocks of zeros."""
SEARCH_BYTES = 2**20
"""Read at a time behind the end of an archive, where another one may follow."""


@dataclass(frozen=True, slots=True)
class Member:
    """A plain file inside a tar."""

    name: str
    """As the tar spells it."""
    offset: int
    """Position of its first byte, in the outermost file."""
    size: int


def first_name(path: Path) -> str:
    """Name of the first plain file of a tar; "" if it has none, or is no uncompressed tar."""
    try:
        return next(list_members(path)).name if path.is_file() else ""
    except (StopIteration, ValueError):
        return ""


def list_members(path: Path, *, inside: Member | None = None) -> Iterator[Member]:
    """The plain files of the tar `path`, or of the tar that is its member `inside`, in file order, and of all tars that
    were written one behind the other into it. A hard link is the file that it leads to; a warning counts what else is
    no folder.

    Raises:
        ValueError: it is no plain file, no tar, a compressed one, or one that is cut short or damaged, or a hard link
            leads to nothing before it. Python's tarfile takes a damaged header in the middle for the end, so it is
            checked that the end is marked as such, and that nothing but tars follows.
    """
    place = f"{str(path)!r}" + (f", member {inside.name!r}," if inside else "")
    if not path.is_file():  # a FIFO, say, would be waited for
        raise ValueError(f"{place} must be a plain file to be read as a tar, found none: give another")
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
                        tar.members.clear()  # it would keep a record of every member
                    first = _next_archive(file, tar.offset, place)
    except (tarfile.TarError, OSError) as error:
        remedy = "fetch it again, or decompress it"
        raise ValueError(f"{place} must be a whole, uncompressed tar, found {error}: {remedy}") from error
    if others:
        logger.warning("%s: %d members are no plain files and left out, the first is %r", place, len(others), others[0])


def _file_of(member: tarfile.TarInfo, files: dict[str, Member], *, start: int, place: str) -> Member | None:
    """The plain file that a member of a tar is, or is a hard link to; None if it is none. `files` holds those before
    it, by name."""
    if member.isreg() and not member.issparse():
        return Member(member.name, member.offset_data + start, member.size)
    if not member.islnk():
        return None
    target = files.get(member.linkname)
    if target is None:
        found = f"{member.name!r} as a link to {member.linkname!r}"
        raise ValueError(f"{place} must hold each file before the hard links to it, found {found}: write the tar again")
    return Member(member.name, target.offset, target.size)


def _next_archive(file: BinaryIO, end: int, place: str) -> int | None:
    """Position of the first byte that is not 0 behind the end of an archive, where another one begins; None if there is
    none. Raises ValueError if the end is not marked by a block of zeros."""
    file.seek(end)
    block = file.read(BLOCK_BYTES)
    if block != bytes(BLOCK_BYTES):
        raise ValueError(f"{place} must end in tar's blocks of zeros, found others: it is cut short, fetch it again")
    while block:
        if rest := block.lstrip(b"\0"):
            return end + len(block) - len(rest)
        end += len(block)
        block = file.read(SEARCH_BYTES)
    return None


def source_of(
    kind: str, classes: list[str], labels: Sequence[int], names: list[str], files: list[Path], members: list
) -> Source:
    """A source whose images are members of tars; `members` holds the position of its tar in `files`, and itself.

    The last file that was read stays open, since neighbours mostly lie in one. It is read at given positions, so
    processes that were forked from one another may share it.
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
            raise OSError(f"{str(files[number])!r} ends inside the member: it was cut while it was read")
        return content

    return Source(kind, tuple(classes), np.array(labels, np.int64), names, sizes.copy(), read)

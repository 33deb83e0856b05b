"""Members of uncompressed tars, and of tars inside tars: where they lie, and their bytes. Nothing is unpacked."""

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitkd_ds.data.sources.source import Source

BLOCK_BYTES = 512
"""Tar's unit; an archive ends in blocks of zeros."""


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
    """The plain files of the tar `path`, or of the tar that is its member `inside`, in file order; raises ValueError if
    it is no tar, a compressed one, or one that is cut short or damaged. Python's tarfile takes a damaged header in the
    middle for the end, so it is checked that the end is marked as such."""
    place = f"{str(path)!r}" + (f", member {inside.name!r}," if inside else "")
    start = inside.offset if inside else 0
    try:
        with tarfile.open(path, "r:") as outer:
            file = outer.fileobj
            if inside:
                stretch = tarfile.TarInfo(inside.name)
                stretch.offset_data, stretch.size = inside.offset, inside.size
                file = outer.extractfile(stretch)
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.isreg() and not member.issparse():
                        yield Member(member.name, member.offset_data + start, member.size)
                    tar.members.clear()  # it would keep a record of every member
                file.seek(tar.offset)
                end = file.read(BLOCK_BYTES)
    except (tarfile.TarError, OSError) as error:
        remedy = "fetch it again, or decompress it"
        raise ValueError(f"{place} must be a whole, uncompressed tar, found {error}: {remedy}") from error
    if end != bytes(BLOCK_BYTES):
        raise ValueError(f"{place} must end in tar's blocks of zeros, found others: it is cut short, fetch it again")


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
        number, size = int(numbers[index]), int(sizes[index])
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

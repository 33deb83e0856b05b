"""From a set of images to a .beton: checks, a file that appears only when it is complete, and a way to go on.

The images are re-encoded (JPEG 4:2:0 at `quality`, scaled down to `max_resolution` or `short_side`), stored as pixels,
or, with `passthrough`, stored as the JPEGs they are. Where they come from is in `vitkd_ds.data.sources`, what is stored
of each in `vitkd_ds.commands.pack.encode`, how in `vitkd_ds.commands.pack.writer`.
"""

import logging
import os
import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vitkd_ds.commands.pack.encode import MAX_SIDE, ORIGINAL, REASONS, Encoding
from vitkd_ds.commands.pack.journal import Journal, open_journal, write_at
from vitkd_ds.commands.pack.writer import PAGE_BYTES, Job, store_images
from vitkd_ds.data.beton.format import (
    ALLOCATION_DTYPE,
    FFCV_FORMAT,
    FIELD_DTYPE,
    FIELDS,
    HEADER_DTYPE,
    METADATA_DTYPE,
    METADATA_START,
    STORED_DTYPE,
    SUFFIX,
    Tables,
    read_tables,
)
from vitkd_ds.data.beton.side_file import BetonInfo, side_path, side_text
from vitkd_ds.data.beton.verify import check_images
from vitkd_ds.data.draws import keyed_rng
from vitkd_ds.data.sources import Options, Source, open_source

logger = logging.getLogger(__name__)

WRITE_MODES = ("jpg", "raw", "proportion")
MAX_RESOLUTION = 500
"""Pixels of the longest side where nothing else is asked for: FFCV's recipe for ImageNet."""
SHUFFLE_STREAM = 6
"""Key of the one random order in which images are stored."""


def pack(
    src: str | Path,
    dst: str | Path,
    *,
    labels: str = "",
    classes: str = "",
    split: str = "",
    write_mode: str = "jpg",
    max_resolution: int | None = None,
    short_side: int = 0,
    quality: int = 90,
    passthrough: bool = False,
    shuffle: bool = False,
    workers: int = 0,
    skip_bad: bool = False,
    restart: bool = False,
) -> BetonInfo:
    """Write the images of `src` to the .beton `dst` and its side file. Called again after a kill, it continues.

    Args:
        src: what `vitkd_ds.data.sources` knows: an ImageFolder tree, ImageNet's tars, shards, a Hugging Face folder.
        dst: a path ending in .beton that does not exist yet, in a folder that does.
        labels: file with the labels of ImageNet's validation tar.
        classes: file with a class name per line, for shards with numbers.
        split: of a Hugging Face folder with several.
        write_mode: jpg (small, decoded when read), raw (pixels: fast and large), or proportion (half of each).
        max_resolution: longest side in pixels, larger images are scaled down; 0 keeps every size. None is 500, and 0
            with `passthrough` or `short_side`.
        short_side: shorter side in pixels, larger images are scaled down; 0 does not. Not with `max_resolution`.
        quality: of the JPEGs that are encoded here, 1 to 100.
        passthrough: store RGB and grey JPEGs of up to 8 MiB that need no scaling as they are; the others are encoded,
            and counted in a warning.
        shuffle: store the images in a random order, the same each time, and not by class.
        workers: processes; 0 uses the CPUs this process may use.
        skip_bad: leave files out that do not decode, with a warning each, where otherwise the first one stops the job.
        restart: throw away what an interrupted job left, where otherwise it is continued.

    Returns:
        What was written.

    Raises:
        ValueError: an unfit argument, source or file, or another job writes `dst`.
        RuntimeError, OSError: a worker failed or was killed, or the disk is full or fails.
    """
    dst = Path(dst)
    if max_resolution is None:
        max_resolution = 0 if passthrough or short_side else MAX_RESOLUTION
    encoding = Encoding(write_mode, max_resolution, short_side, quality, passthrough)
    _check_arguments(dst, encoding, workers=workers)
    source = open_source(src, Options(labels, classes, split))
    num_workers = workers or len(os.sched_getaffinity(0))
    plan = {"source": source.kind, "num_images": len(source.labels), "fingerprint": source.fingerprint()}
    plan |= asdict(encoding) | {"shuffle": shuffle}
    with _stopped_by_sigterm(), _journal(dst, plan, restart=restart, num_threads=num_workers) as journal:
        return _pack(source, dst, encoding, journal, shuffle=shuffle, num_workers=num_workers, skip_bad=skip_bad)


@contextmanager
def _journal(dst: Path, plan: dict[str, Any], *, restart: bool, num_threads: int) -> Iterator[Journal]:
    """The journal of a job that is done, or else leaves to the next run what is on the disk, if anything is."""
    journal = open_journal(dst, plan, restart=restart, num_threads=num_threads)
    try:
        _check_absent(dst)
        yield journal
    except BaseException:
        if not journal.num_images:
            journal.discard()
            raise
        logger.warning(
            "%d images, %.2f GB, are kept in %r: the same command continues with them; --restart throws them away, and "
            "so does: rm %s",
            journal.num_images,
            journal.bytes_on_disk / 1e9,
            str(journal.path),
            shlex.join(map(str, (journal.path, journal.notes))),
        )
        journal.close()
        raise
    journal.discard()


def _pack(
    source: Source,
    dst: Path,
    encoding: Encoding,
    journal: Journal,
    *,
    shuffle: bool,
    num_workers: int,
    skip_bad: bool,
) -> BetonInfo:
    """Store, check and publish."""
    num_images = len(source.labels)
    order = keyed_rng(SHUFFLE_STREAM).permutation(num_images) if shuffle else np.arange(num_images)
    pending = np.setdiff1d(np.arange(num_images), journal.records["number"])
    job = Job(source, encoding, order, pending, skip_bad)
    data_start = METADATA_START + num_images * METADATA_DTYPE.itemsize
    bad = store_images(job, journal, first_byte=data_start, num_workers=num_workers)
    records = journal.records
    if not len(records):
        raise ValueError(
            f"at least one image must decode, found none in {num_images} files, the first is "
            f"{source.names[bad[0][0]]!r} ({bad[0][1]}): give images"
        )
    assert len(records) + len(bad) == num_images, f"{len(records)} stored, {len(bad)} bad, of {num_images}"
    sources = order[records["number"].astype(np.int64)]
    tables = _write_tables(journal, records, source.labels[sources])
    check_images(
        journal.path, _stored(records), name_of=lambda row: source.names[sources[row]], num_threads=num_workers
    )
    info = BetonInfo(
        path=dst,
        num_images=len(records),
        classes=source.classes,
        bytes=journal.path.stat().st_size,
        write_mode=encoding.write_mode,
        max_resolution=encoding.max_resolution,
        short_side=encoding.short_side,
        quality=encoding.quality,
        passthrough=int((records["origin"] == ORIGINAL).sum()),
        shuffled=shuffle,
        max_height=int(records["height"].max()),
        max_width=int(records["width"].max()),
    )
    text = side_text(info, tables_crc32=tables.crc32, lengths=records["size"], crc32s=records["crc32"])
    _publish(journal.path, dst, text)
    _tell(source, bad, sources, records["origin"])
    return info


def _tell(source: Source, bad: list[tuple[int, str]], sources: np.ndarray, origins: np.ndarray) -> None:
    """Warn of what is not in the file as was asked for: files left out, and originals that are none."""
    for index, reason in sorted(bad):
        logger.warning("left out %r, which does not decode: %s", source.names[index], reason)
    for origin, reason in REASONS.items():
        found = sources[origins == origin]
        if len(found):
            first = source.names[found.min()]
            logger.warning("%d images %s and are encoded instead, the first is %r", len(found), reason, first)


def _check_arguments(dst: Path, encoding: Encoding, *, workers: int) -> None:
    write_mode, max_resolution, short_side = encoding.write_mode, encoding.max_resolution, encoding.short_side
    if write_mode not in WRITE_MODES:
        raise ValueError(f"write_mode must be one of {', '.join(WRITE_MODES)}, found {write_mode!r}: choose one")
    for name, value in (("max_resolution", max_resolution), ("short_side", short_side)):
        if not 0 <= value <= MAX_SIDE:
            raise ValueError(f"{name} must be in [0, {MAX_SIDE}], found {value!r}: 0 keeps every size")
    if max_resolution and short_side:
        raise ValueError(
            f"give max_resolution or short_side, found both, {max_resolution} and {short_side}: choose one"
        )
    if encoding.passthrough and write_mode != "jpg":
        raise ValueError(f"passthrough stores JPEGs, found it with write_mode {write_mode!r}: leave one away")
    if not 1 <= encoding.quality <= 100:
        raise ValueError(f"quality must be in [1, 100], found {encoding.quality!r}: 90 is usual")
    if workers < 0:
        raise ValueError(f"workers must be 0 (automatic) or more, found {workers!r}: change it")
    if dst.suffix != SUFFIX:
        raise ValueError(f"dst must end in {SUFFIX}, found {str(dst)!r}: rename it")
    if not dst.parent.is_dir():
        raise ValueError(f"the folder of dst must exist, found no folder {str(dst.parent)!r}: make it first")
    _check_absent(dst)


def _check_absent(dst: Path) -> None:
    if dst.exists():
        raise ValueError(f"dst must not exist yet, found {str(dst)!r}: remove it, or choose another name")


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM, with which Slurm and others end jobs, raises KeyboardInterrupt as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # Python sets handlers in the main thread only
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt("SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stored(records: np.ndarray) -> np.ndarray:
    """The records as the decoder takes them: STORED_DTYPE."""
    images = np.zeros(len(records), STORED_DTYPE)
    for key in ("offset", "size", "crc32", "height", "width", "mode"):
        images[key] = records[key]
    images["has_crc"] = 1
    return images


def _write_tables(journal: Journal, records: np.ndarray, labels: np.ndarray) -> Tables:
    """Make the file with the images a whole .beton, and read its tables back."""
    metadata = np.zeros(len(records), METADATA_DTYPE)
    allocations = np.zeros(len(records), ALLOCATION_DTYPE)
    for key in ("mode", "width", "height", "offset"):
        metadata[key] = records[key]
    metadata["label"] = labels
    allocations["sample"], allocations["offset"] = np.arange(len(records)), records["offset"]
    allocations["size"] = records["size"]
    end = int((records["offset"] + records["size"]).max())
    end += -end % ALLOCATION_DTYPE["offset"].itemsize  # aligned
    header, descriptors = np.zeros(1, HEADER_DTYPE), np.zeros(len(FIELDS), FIELD_DTYPE)
    largest = max(int(records["size"].max()), PAGE_BYTES)
    header[0] = (FFCV_FORMAT, len(FIELDS), 1 << (largest - 1).bit_length(), len(records), end)
    for descriptor, (name, type_id) in zip(descriptors, FIELDS):
        descriptor["type_id"] = type_id
        descriptor["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
    os.ftruncate(journal.data, end)
    write_at(journal.data, header.tobytes() + descriptors.tobytes() + metadata.tobytes(), 0)
    write_at(journal.data, allocations.tobytes(), end)
    os.fsync(journal.data)
    tables = read_tables(journal.path)
    if tables.metadata.tobytes() != metadata.tobytes() or tables.allocations.tobytes() != allocations.tobytes():
        raise RuntimeError(
            f"{str(journal.path)!r} must hold the tables that were written, found others: check the disk"
        )
    return tables


def _publish(partial: Path, dst: Path, text: str) -> None:
    """Give both files their names: the side file first, so the .beton is complete the moment it appears."""
    partial_side = side_path(partial)
    try:
        with open(partial_side, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if dst.exists():
            raise ValueError(f"dst must not exist yet, but {str(dst)!r} appeared meanwhile: is another job writing it?")
        os.replace(partial_side, side_path(dst))
    finally:
        partial_side.unlink(missing_ok=True)
    try:
        os.replace(partial, dst)
    except BaseException:
        side_path(dst).unlink(missing_ok=True)
        raise
    folder = os.open(dst.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

"""Pack images into a .beton, atomically and resumably.

`vitkd_ds.data.sources` says where they come from, `vitkd_ds.commands.pack.encode` what is stored of each (JPEG 4:2:0,
pixels, or the JPEG it is, with restart markers), `vitkd_ds.commands.pack.writer` how.
"""

import logging
import os
import signal
from dataclasses import asdict
from pathlib import Path

import numpy as np

from vitkd_ds.checkpoint.files import sync_folder, write_text
from vitkd_ds.commands.pack.encode import ORIGINAL, REASONS, Encoding
from vitkd_ds.commands.pack.journal import Journal, open_journal, write_at
from vitkd_ds.commands.pack.writer import Packing, handled_by, store_images
from vitkd_ds.data.beton.format import METADATA_DTYPE, METADATA_START, STORED_DTYPE, SUFFIX, beton_tables, read_tables
from vitkd_ds.data.beton.side_file import SIDE_KEYS, BetonInfo, read_side, side_path, side_text
from vitkd_ds.data.beton.verify import check_images
from vitkd_ds.data.draws import keyed_rng
from vitkd_ds.data.sources import Source, open_source

logger = logging.getLogger(__name__)

MAX_RESOLUTION = 500
"""Pixels of the longest side where nothing else is asked for: FFCV's recipe for ImageNet."""
SHUFFLE_STREAM = 6
"""Key of the one random order in which images are stored."""


def pack(
    src: str | Path, dst: str | Path, *, labels: str = "", classes: str = "", split: str = "", write_mode: str = "jpg",
    max_resolution: int | None = None, short_side: int = 0, quality: int = 90, passthrough: bool = False,
    restart_markers: bool = False, shuffle: bool = False, workers: int = 0, skip_bad: bool = False,
    restart: bool = False,
) -> BetonInfo:  # fmt: skip
    """Write the images of `src` to the .beton `dst` and its side file. Called again after a kill, it continues.

    Args:
        src: class folders, ImageNet's or WebDataset's tars, or a Hugging Face data set; see `vitkd_ds.data.sources`.
        dst: a path ending in .beton that does not exist yet, in a folder that does.
        labels: file with the labels of ImageNet's validation tar; "none" packs the images of a folder, at any depth,
            without labels.
        classes: file with a class name per line in label order, or a .beton with these classes, for class folders and
            WebDataset's tars; it may name classes without images.
        split: name of the split to read, where a Hugging Face folder has several.
        write_mode: jpg (small, decoded when read), raw (pixels: fast and large), or proportion (half of each).
        max_resolution: longest side in pixels, larger images are scaled down; 0 keeps every size. None is 500, and 0
            with `passthrough` or `short_side`.
        short_side: shorter side in pixels, larger images are scaled down; 0 does not. Not with `max_resolution`.
        quality: quality of the JPEGs that are encoded here, 1 to 100.
        passthrough: store RGB and grey JPEGs of up to 8 MiB that need no scaling as they are. The others are encoded;
            a warning gives their number.
        restart_markers: with `passthrough`, write these JPEGs once more with restart markers, as one baseline scan with
            the same pixels: they are decoded faster. EXIF and colour profile are left out.
        shuffle: store the images in a random order, the same each time, and not by class.
        workers: number of processes; 0 uses the CPUs this process may use.
        skip_bad: leave out files that do not decode, with a warning each; otherwise the first one ends the run.
        restart: throw away what an interrupted run left; otherwise it is continued.

    Raises:
        ValueError: an unfit argument, source or file, or another run packs into `dst`.
        RuntimeError, OSError: a worker failed or was killed, or the disk is full or fails.
    """
    dst = Path(dst)
    if max_resolution is None:
        max_resolution = 0 if passthrough or short_side else MAX_RESOLUTION
    encoding = Encoding(write_mode, max_resolution, short_side, quality, passthrough, restart_markers)
    _check_dst(dst, workers=workers)
    source = open_source(src, labels=labels, classes=classes, split=split)
    num_workers = workers or len(os.sched_getaffinity(0))
    settings = {"source": source.kind, "num_images": len(source.labels), "fingerprint": source.fingerprint()}
    settings |= asdict(encoding) | {"shuffle": shuffle}
    unfinished = open_journal(dst, settings, restart=restart, num_threads=num_workers)
    # Slurm and others end processes with SIGTERM, which acts as Ctrl-C here: what is stored is kept.
    with handled_by(signal.default_int_handler, signal.SIGTERM), unfinished as journal:
        _check_dst(dst, workers=workers)  # a run that held the lock until now may have finished it
        return _pack(
            source, dst, encoding, journal, shuffle=shuffle, num_workers=num_workers, skip_bad=skip_bad,
            fingerprint=source.fingerprint(without=f"{Path(src)}/"),
        )  # fmt: skip


def _pack(
    source: Source, dst: Path, encoding: Encoding, journal: Journal, *, shuffle: bool, num_workers: int,
    skip_bad: bool, fingerprint: str,
) -> BetonInfo:  # fmt: skip
    num_images = len(source.labels)
    order = keyed_rng(SHUFFLE_STREAM).permutation(num_images) if shuffle else np.arange(num_images)
    pending = np.setdiff1d(np.arange(num_images), journal.records["number"])
    # The tables stand before the images, so their place is kept for as many rows as there can be.
    first_byte = METADATA_START + num_images * METADATA_DTYPE.itemsize
    packing = Packing(source, encoding, order, pending, skip_bad)
    bad = store_images(packing, journal, first_byte=first_byte, num_workers=num_workers)
    records = journal.records
    if not len(records):
        raise ValueError(
            f"at least one image must decode, found none in {num_images} files, the first is "
            f"{source.names[bad[0][0]]!r} ({bad[0][1]}): give images"
        )
    assert len(records) + len(bad) == num_images, f"{len(records)} stored, {len(bad)} bad, of {num_images}"
    sources = order[records["number"].astype(np.int64)]
    tables_crc32 = _write_tables(journal, records, source.labels[sources])
    # FFCV trains on damaged files without a message, so every image is read back before the file gets its name.
    images = np.zeros(len(records), STORED_DTYPE)
    for key in ("offset", "size", "crc32", "height", "width", "mode"):
        images[key] = records[key]
    images["has_crc"] = 1
    check_images(journal.path, images, name_of=lambda row: source.names[sources[row]], num_threads=num_workers)
    info = BetonInfo(
        path=dst, num_images=len(records), classes=source.classes, bytes=journal.path.stat().st_size, shuffled=shuffle,
        **{key: value for key, value in asdict(encoding).items() if key in SIDE_KEYS}
        | {"passthrough": int((records["origin"] == ORIGINAL).sum())},
        max_height=int(records["height"].max()), max_width=int(records["width"].max()),
    )  # fmt: skip
    tables = {"tables_crc32": tables_crc32, "lengths": records["size"], "crc32s": records["crc32"]}
    _publish(journal.path, dst, side_text(info, source=fingerprint, **tables))
    for index, reason in sorted(bad):
        logger.warning("left out %r, which does not decode: %s", source.names[index], reason)
    for origin, reason in REASONS.items():
        found = sources[records["origin"] == origin]
        if len(found):
            first = source.names[found.min()]
            logger.warning("%d images %s and are encoded instead, the first is %r", len(found), reason, first)
    return info


def _check_dst(dst: Path, *, workers: int) -> None:
    if workers < 0:
        raise ValueError(f"workers must be 0 (automatic) or more, found {workers!r}: change it")
    if dst.suffix != SUFFIX:
        raise ValueError(f"dst must end in {SUFFIX}, found {str(dst)!r}: rename it")
    if not dst.parent.is_dir():
        raise ValueError(f"the folder of dst must exist, found no folder {str(dst.parent)!r}: make it first")
    if os.path.lexists(dst):  # a link that leads nowhere would be replaced
        what = "" if dst.exists() else "a link to nothing at "
        raise ValueError(f"dst must not exist yet, found {what}{str(dst)!r}: remove it, or choose another name")
    _check_side(dst)


def _check_side(dst: Path) -> None:
    """Raise ValueError if what has the side file's name is none: one of ours was left by an interrupted run between
    naming the two files, or by somebody who removed the .beton alone."""
    side = side_path(dst)
    if not os.path.lexists(side):
        return
    try:
        read_side(dst)
    except ValueError as error:
        must = f"what has the name of dst's side file must be one, found {str(side)!r}"
        raise ValueError(f"{must} ({error}): move it, or choose another name") from error


def _write_tables(journal: Journal, records: np.ndarray, labels: np.ndarray) -> int:
    """Make the file with the images a whole .beton, and return the CRC32 of its tables, read back."""
    head, tail, end = beton_tables(records, labels)
    os.ftruncate(journal.data, end)
    write_at(journal.data, head, 0)
    write_at(journal.data, tail, end)
    os.fsync(journal.data)
    tables = read_tables(journal.path)
    if tables.metadata.tobytes() != head[METADATA_START:] or tables.allocations.tobytes() != tail:
        raise RuntimeError(f"{str(journal.path)!r} must hold the tables written to it, found others: check the disk")
    return tables.crc32


def _publish(partial: Path, dst: Path, text: str) -> None:
    """Give both files their names: the side file first, so the .beton is complete the moment it appears."""
    if os.path.lexists(dst):
        raise ValueError(f"dst must not exist yet, but {str(dst)!r} appeared meanwhile: who else writes it?")
    _check_side(dst)
    write_text(side_path(dst), text)
    try:
        os.replace(partial, dst)
    except BaseException:
        side_path(dst).unlink(missing_ok=True)
        raise
    sync_folder(dst.parent)

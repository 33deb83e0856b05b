"""The images of each split: whole, of the right classes, the same on all nodes, and read fast enough where they lie.

A sample is read in two ways. The bytes alone, with their CRC32, past the page cache: this is the disk. And through the
loader that trains: disk, page cache and decoder.
"""

import os
import re
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitkd_ds.commands.doctor.patient import Patient, needed
from vitkd_ds.commands.doctor.rows import Row, error, first_other, is_healthy, judged, listed, ok, size_text, warning
from vitkd_ds.data.beton.format import check_beton, read_beton, read_tables
from vitkd_ds.data.beton.verify import are_intact
from vitkd_ds.data.loader import Loader
from vitkd_ds.engine import processes, ranks
from vitkd_ds.train.parts import open_split, split_of

MICRO_BATCH = 64
"""Most images decoded at a time; a smaller micro-batch than the run's ends sooner."""
SAMPLE = 256
"""Images per rank."""
MOST_S = 10.0
"""Most seconds for the loader's sample; a slow disk then gives fewer images."""
PAGE = 4096
NETWORK = {
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "9p", "afs", "panfs", "wekafs", "pvfs2",
    "glusterfs", "virtiofs",
}  # fmt: skip
"""File systems that nodes share; FUSE's (fuse.sshfs, fuse.juicefs, ...) count as such too."""


def check_images(patient: Patient, split: str) -> list[Row]:
    """Open a split as training does, and read samples of it on all ranks at once. Collective.

    The classes of val must be those of train, where that could be opened.
    """
    needed(patient.split, "the settings")
    name, run = f"data.{split}", patient.run
    run = replace(run, compile=False, micro_batch_size_per_gpu=min(MICRO_BATCH, run.micro_batch_size_per_gpu))
    micro, train = split_of(run).micro_batch_size, patient.loaders.get("train")
    classes = train.classes if train else None
    loader = ranks.together(lambda: open_split(run, split, micro, patient.device, classes=classes))
    patient.loaders[split] = loader
    path, rows = Path(loader.path), []
    identities = ranks.from_all(read_tables(path).crc32 if path.is_file() else None)
    if (other := first_other(identities)) is not None:  # as a copy on a node's disk may be an old one
        where = f"on {patient.nodes[other]} than on {patient.nodes[0]}"
        found = f"{str(path)!r} must be the same file on all nodes, found other tables {where}"
        rows.append(error(name, found, "copy the file and its .json to the node again"))
    rows.append(place_row(name, path))
    stored = [bytes_row(name, path, patient)] if path.is_file() else []
    decoded = [decoding_row(name, loader, patient)] if is_healthy(stored) else []  # wrong bytes may not decode at all
    return [*rows, *stored, *decoded]


def place_row(name: str, path: Path) -> Row:
    """What lies there, and on which file system."""
    kind = file_system(path)
    found = f"{path} on {kind}"
    if path.is_file():
        info = check_beton(path)
        found = f"{info.num_images:,} images in {len(info.classes)} classes, {size_text(info.bytes)}, {found}"
    problem = "which the nodes share over the network"
    advice = "set STAGE_DIR for slurm/*.sh, or copy the file and its .json to each node's own disk"
    return judged(name != "data.train" or not is_network(kind), name, found, problem=problem, advice=advice)


def bytes_row(name: str, path: Path, patient: Patient) -> Row:
    """The bytes of a random sample per rank, from the disk. Collective; the same row on all ranks."""
    seed = patient.run.seed + ranks.rank()
    results = ranks.from_all(ranks.together(lambda: read_bytes(path, seed=seed)))
    counts, speeds, mib_per_s, bad = zip(*results)
    different = list(dict.fromkeys(image for images in bad for image in images))
    if different:
        nodes = sorted({node for node, images in zip(patient.nodes, bad) if images})
        found = (
            f"each image of {str(path)!r} must have the bytes it was packed with, found {len(different)} of "
            f"{sum(counts)} read on {listed(nodes)} that have not: {listed(different)}"
        )
        return error(f"{name} bytes", found, "copy the file again, or pack it again")
    slowest = speeds.index(min(speeds))
    found = (
        f"{counts[slowest]} random images per rank are intact; past the page cache the slowest rank reads "
        f"{speeds[slowest]:,.0f} images/s, {mib_per_s[slowest]:,.0f} MiB/s"
    )
    return ok(f"{name} bytes", found)


def read_bytes(path: Path, *, seed: int) -> tuple[int, float, float, list[str]]:
    """Read the bytes of a random sample of a .beton from the disk, and compare their CRC32.

    Returns:
        How many images, images/s, MiB/s, and the images with other bytes than they were packed with.
    """
    info, images, labels = read_beton(path)
    chosen = np.random.default_rng(seed).permutation(len(images))[:SAMPLE]
    num_threads = processes.num_cpus()
    forget(path, images[chosen])
    start = time.perf_counter()
    is_good = are_intact(path, images[chosen], num_threads=num_threads)
    seconds = time.perf_counter() - start
    bad = [f"image {i} (class {info.classes[labels[i]]!r})" for i in np.sort(chosen[~is_good])]
    return len(chosen), len(chosen) / seconds, images["size"][chosen].sum() / 2**20 / seconds, bad


def forget(path: Path, images: np.ndarray) -> None:
    """Drop the pages on which these images lie from the page cache, and no others: another job may live off them."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for offset, size in zip(images["offset"].tolist(), images["size"].tolist()):
            first = offset // PAGE * PAGE
            os.posix_fadvise(descriptor, first, -(-(offset + size) // PAGE) * PAGE - first, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def decoding_row(name: str, loader: Loader, patient: Patient) -> Row:
    """Images as training sees them, from the loader itself. Collective; the same row on all ranks."""
    results = ranks.from_all(ranks.together(lambda: read_images(loader)))
    counts, speeds, skipped = zip(*results)
    if sum(skipped):
        found = f"{sum(skipped)} of {sum(counts)} images cannot be decoded, and data.on_bad is skip"
        return warning(f"{name} decoding", found, "copy the file again, or pack it again")
    where = patient.nodes[speeds.index(min(speeds))]
    found = f"{counts[0]} images per rank; the slowest rank reads and decodes {min(speeds):,.0f} images/s ({where})"
    wanted_per_s = max(ranks.from_all(patient.images_per_s or 0))
    is_enough = name != "data.train" or min(speeds) >= wanted_per_s
    problem = f"while a GPU trains {wanted_per_s:,.0f}"
    advice = "more --cpus-per-task, images packed with a lower --max_resolution, or a faster disk (see its bytes)"
    return judged(is_enough, f"{name} decoding", found, problem=problem, advice=advice)


def read_images(loader: Loader) -> tuple[int, float, int]:
    """Read, decode and augment the first images of an epoch: how many, how many per second, and how many were bad."""
    count, start = 0, time.perf_counter()
    with closing(loader.epoch(0)) as micro_batches:
        for images_BCHW, _ in micro_batches:
            count += len(images_BCHW)
            if count >= SAMPLE or time.perf_counter() - start > MOST_S:
                break
    return count, count / (time.perf_counter() - start), loader.num_skipped


def file_system(path: Path, mountinfo: str | None = None) -> str:
    """The kind of file system that a path lies on, such as ext4 or nfs4; "unknown" outside Linux.

    Args:
        mountinfo: the text of /proc/self/mountinfo, None to read it.
    """
    if mountinfo is None:
        try:
            mountinfo = Path("/proc/self/mountinfo").read_text()
        except OSError:
            return "unknown"
    real, best, kind = os.path.realpath(path), "", "unknown"
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        mount = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), before.split()[4])  # a space is \040
        if len(mount) >= len(best) and f"{real}/".startswith(f"{mount.rstrip('/')}/"):
            best, kind = mount, after.split()[0]
    return kind


def is_network(kind: str) -> bool:
    """Whether a file system of this kind is shared between nodes."""
    return kind in NETWORK or kind.startswith("fuse.")

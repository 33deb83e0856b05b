"""The images of each split: whole, of the right classes, the same on all nodes, and read fast enough where they lie.

A sample is read in two ways. The bytes alone, with their CRC32, past the page cache: this is the disk. And through the
loader that trains: disk, page cache and decoder.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil  # DeepSpeed's own requirement

from vitkd_ds.commands.doctor.rows import Patient, Row, error, judged, listed, needed, ok, size_text, unequal, warning
from vitkd_ds.config.run import Run
from vitkd_ds.data.beton.format import check_beton, read_beton
from vitkd_ds.data.beton.verify import are_intact
from vitkd_ds.data.epochs import Loader
from vitkd_ds.engine import processes, ranks
from vitkd_ds.train.parts import open_knn, open_split, split_of
from vitkd_ds.train.schedule import check_warmup, make_schedule

MICRO_BATCH = 64
"""Most images decoded at a time; a smaller micro-batch than the run's ends sooner."""
SAMPLE, MOST_S = 256, 10.0
"""Images per rank, and most seconds for the loader's sample; a slow disk then gives fewer images."""
PAGE = 4096
REPAIR = "copy the file again, or pack it again"
NETWORK = re.compile(
    r"nfs4?|lustre|gpfs|beegfs|ceph|cifs|smb3|9p|afs|panfs|wekafs|pvfs2|glusterfs|virtiofs|fuse\..*", re.DOTALL
)
"""File systems that nodes share; FUSE's (fuse.sshfs, fuse.juicefs, ...) count as such."""


def check_images(patient: Patient, split: str) -> Iterator[Row]:
    """Open a split as training does, and read samples of it on all ranks at once. The classes of val must be among
    those of train, where that could be opened. Collective."""
    needed(patient.split, "the settings")
    name, run, train = f"data.{split}", patient.run, patient.loaders.get("train")
    run = replace(run, compile="off", micro_batch_size_per_gpu=min(MICRO_BATCH, run.micro_batch_size_per_gpu))
    micro, classes = split_of(run).micro_batch_size, train.classes if train else None
    loader = ranks.together(lambda: open_split(run, split, micro, patient.device, classes=classes))
    patient.loaders[split], path = loader, Path(loader.path)
    if split == "train":
        yield from schedule_rows(patient.run, loader.steps_per_epoch)
    # A copy on a node's disk may be an old one.
    if found := unequal(ranks.from_all(loader.fingerprint), patient.nodes):
        found = f"{str(path)!r} must be the same images on all nodes, found fingerprint {found}"
        yield error(name, found, "copy the file and its .json to the node again")
    kind = file_system(path)
    found, problem = f"{path} on {kind}", "which the nodes share over the network"
    if path.is_file():
        info = check_beton(path)
        found = f"{info.num_images:,} images in {len(info.classes)} classes, {size_text(info.bytes)}, {found}"
    advice = "set STAGE_DIR for slurm/*.sh, or copy the file and its .json to each node's own disk"
    yield judged(name != "data.train" or not NETWORK.fullmatch(kind), name, found, problem, advice)
    if path.is_file():
        row = bytes_row(name, path, patient)
        yield row
        if row.level == "error":  # wrong bytes may not decode at all
            return
    yield decoding_row(name, loader, patient)


def check_knn(patient: Patient) -> Iterator[Row]:
    """Open the labelled images that k-NN is asked in a run without labels, if there are any. Collective."""
    run, micro = patient.run, min(MICRO_BATCH, patient.run.micro_batch_size_per_gpu)
    loaders = ranks.together(lambda: open_knn(run, micro, patient.device)) or ()
    for name, loader in zip(("data.knn_train", "data.knn_val"), loaders):
        if found := unequal(ranks.from_all(loader.fingerprint), patient.nodes):
            found = f"{loader.path!r} must be the same images on all nodes, found fingerprint {found}"
            yield error(name, found, "copy the file and its .json to the node again")
        else:
            yield ok(name, f"{len(loader.val_numbers()):,} images in {len(loader.classes)} classes, {loader.path}")


def schedule_rows(run: Run, steps_per_epoch: int) -> Iterator[Row]:
    """What is wrong with the schedule of the run, whose steps are known when the images are."""
    try:
        check_warmup(run, make_schedule(run, steps_per_epoch=steps_per_epoch, accumulation_steps=1))
    except ValueError as caught:
        yield error("schedule", str(caught))


def bytes_row(name: str, path: Path, patient: Patient) -> Row:
    """The bytes of a random sample per rank, from the disk. Collective; the same row on all ranks."""
    seed = patient.run.seed + ranks.rank()
    counts, speeds, mib_per_s, bad = zip(*ranks.from_all(ranks.together(lambda: read_bytes(path, seed=seed))))
    if different := list(dict.fromkeys(image for images in bad for image in images)):
        nodes = sorted({node for node, images in zip(patient.nodes, bad) if images})
        found = f"each image of {str(path)!r} must have the bytes it was packed with, found {len(different)} of "
        found += f"{sum(counts)} read on {listed(nodes)} that have not: {listed(different)}"
        return error(f"{name} bytes", found, REPAIR)
    count, per_s, mib_per_s = min(zip(counts, speeds, mib_per_s), key=lambda result: result[1])
    found = f"{count} random images per rank are intact; past the page cache the slowest rank reads "
    return ok(f"{name} bytes", f"{found}{per_s:,.0f} images/s, {mib_per_s:,.0f} MiB/s")


def read_bytes(path: Path, *, seed: int) -> tuple[int, float, float, list[str]]:
    """Read a random sample of a .beton from the disk: number of images, images/s, MiB/s, and those with other bytes."""
    info, images, labels = read_beton(path)
    chosen = np.random.default_rng(seed).permutation(len(images))[:SAMPLE]
    sample = images[chosen]
    # Drop the pages of the sample from the page cache, and no others: another job may live off them.
    with path.open("rb") as file:
        for offset, size in zip(sample["offset"].tolist(), sample["size"].tolist()):
            first = offset // PAGE * PAGE
            end = -(-(offset + size) // PAGE) * PAGE
            os.posix_fadvise(file.fileno(), first, end - first, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    is_good = are_intact(path, sample, num_threads=processes.num_cpus())
    seconds = time.perf_counter() - start
    name = {label: f" (class {name!r})" for label, name in enumerate(info.classes)}
    bad = [f"image {i}{name.get(labels[i], '')}" for i in np.sort(chosen[~is_good])]
    return len(chosen), len(chosen) / seconds, sample["size"].sum() / 2**20 / seconds, bad


def decoding_row(name: str, loader: Loader, patient: Patient) -> Row:
    """Images as training sees them, from the loader itself. Collective; the same row on all ranks."""

    def read() -> tuple[int, float, int]:
        count, start = 0, time.perf_counter()
        with closing(loader.epoch(0)) as micro_batches:
            for images_BCHW, _ in micro_batches:
                count += len(images_BCHW)
                if count >= SAMPLE or time.perf_counter() - start > MOST_S:
                    break
        return count, count / (time.perf_counter() - start), loader.num_skipped

    counts, speeds, skipped = zip(*ranks.from_all(ranks.together(read)))
    if sum(skipped):
        found = f"{sum(skipped)} of {sum(counts)} images cannot be decoded, and data.on_bad is skip"
        return warning(f"{name} decoding", found, REPAIR)
    where, wanted_per_s = patient.nodes[speeds.index(min(speeds))], max(ranks.from_all(patient.images_per_s))
    found = f"{counts[0]} images per rank; the slowest rank reads and decodes {min(speeds):,.0f} images/s ({where})"
    problem = f"while a GPU trains {wanted_per_s:,.0f}"
    advice = "more --cpus-per-task, images packed with a lower --max_resolution, or a faster disk (see its bytes)"
    is_enough = name != "data.train" or min(speeds) >= wanted_per_s
    return judged(is_enough, f"{name} decoding", found, problem, advice)


def file_system(path: Path) -> str:
    """The kind of file system that a path lies on, such as ext4 or nfs4, by the longest mount point above it."""
    mounts = {disk.mountpoint.rstrip("/"): disk.fstype for disk in psutil.disk_partitions(all=True)}
    above = [mount for mount in mounts if f"{os.path.realpath(path)}/".startswith(f"{mount}/")]
    return mounts[max(above, key=len)] if above else "unknown"

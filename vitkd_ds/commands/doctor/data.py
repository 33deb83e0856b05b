"""Check that each split's images are readable, the same on all nodes, and decoded fast enough."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

from vitkd_ds.commands.doctor.rows import Patient, Row, error, judged, needed, ok, unequal, warning
from vitkd_ds.config.run import Run
from vitkd_ds.data.epochs import Loader
from vitkd_ds.engine import ranks
from vitkd_ds.train.loaders import open_knn, open_split
from vitkd_ds.train.parts import split_of
from vitkd_ds.train.schedule import check_warmup, make_schedule

MICRO_BATCH = 64
"""Maximum number of images to decode at a time; less than in a run, so that the check ends sooner."""
SAMPLE = 256
MOST_S = 10.0
"""Images to read per rank, and the number of seconds after which reading stops even if fewer images were read."""


def check_images(patient: Patient, split: str) -> Iterator[Row]:
    """Open a split as training does, and read a sample of it on all ranks at once. Collective.

    If the training split could be opened, its classes must include the classes of the validation split.
    """
    needed(patient.split, "the settings")
    name = f"data.{split}"
    train = patient.loaders.get("train")
    micro = min(MICRO_BATCH, patient.run.micro_batch_size_per_gpu)
    run = replace(patient.run, compile="off", micro_batch_size_per_gpu=micro)
    micro = split_of(run).micro_batch_size
    classes = train.classes if train else None
    loader = ranks.together(lambda: open_split(run, split, micro, patient.device, classes=classes))
    patient.loaders[split] = loader
    if split == "train":
        yield from schedule_rows(patient.run, loader.steps_per_epoch)
    yield same_row(name, loader, patient)
    yield decoding_row(name, loader, patient)


def check_knn(patient: Patient) -> Iterator[Row]:
    """Open the labelled images for k-NN, if the run has them, and compare them between nodes. Collective."""
    run = patient.run
    micro = min(MICRO_BATCH, patient.run.micro_batch_size_per_gpu)
    loaders = ranks.together(lambda: open_knn(run, micro, patient.device)) or ()
    for name, loader in zip(("data.knn_train", "data.knn_val"), loaders):
        yield same_row(name, loader, patient)


def same_row(name: str, loader: Loader, patient: Patient) -> Row:
    """Check that all nodes have the same images, since a copy on a local disk may be outdated. Collective."""
    if found := unequal(ranks.from_all(loader.fingerprint), patient.nodes):
        found = f"{loader.path!r} differs between nodes: fingerprint {found}"
        return error(name, found, "copy the file and its .json to the node again")
    num_images = loader.state_dict()["num_images"] if name == "data.train" else len(loader.val_numbers())
    return ok(name, f"{num_images:,} images in {len(loader.classes)} classes, {loader.path}")


def schedule_rows(run: Run, steps_per_epoch: int) -> Iterator[Row]:
    """Yield an error if the warm-up takes the whole run. The run's number of steps depends on the number of images."""
    try:
        check_warmup(run, make_schedule(run, steps_per_epoch=steps_per_epoch, accumulation_steps=1))
    except ValueError as caught:
        yield error("schedule", str(caught))


def decoding_row(name: str, loader: Loader, patient: Patient) -> Row:
    """Measure how fast images are read, checked and decoded, as in training. Collective.

    All ranks return the same row.
    """

    def read() -> tuple[int, float, int]:
        count = 0
        start = time.perf_counter()
        with closing(loader.epoch(0)) as micro_batches:
            for images_BCHW, _ in micro_batches:
                count += len(images_BCHW)
                if count >= SAMPLE or time.perf_counter() - start > MOST_S:
                    break
        return count, count / (time.perf_counter() - start), loader.num_skipped

    counts, speeds, skipped = zip(*ranks.from_all(ranks.together(read)))
    if sum(skipped):
        found = f"{sum(skipped)} of {sum(counts)} images cannot be decoded and are skipped (data.on_bad=skip)"
        return warning(f"{name} decoding", found, "copy the file again or pack the images again")
    wanted_per_s = max(ranks.from_all(patient.images_per_s))
    node = patient.nodes[speeds.index(min(speeds))]
    found = f"{counts[0]} images per rank; the slowest rank reads and decodes {min(speeds):,.0f} images/s ({node})"
    advice = "raise --cpus-per-task, pack with a lower --max_resolution, or copy the file to each node's local disk"
    is_enough = name != "data.train" or min(speeds) >= wanted_per_s
    return judged(is_enough, f"{name} decoding", found, f"but a GPU trains on {wanted_per_s:,.0f} images/s", advice)

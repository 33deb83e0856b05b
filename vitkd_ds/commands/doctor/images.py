"""The images of each split: whole, of the right classes, the same on all nodes, and read fast enough where they lie."""

from dataclasses import replace
from pathlib import Path

from vitkd_ds.commands.doctor.mounts import file_system, is_network
from vitkd_ds.commands.doctor.patient import Patient, needed
from vitkd_ds.commands.doctor.reading import read_bytes, read_images
from vitkd_ds.commands.doctor.rows import Row, error, listed, ok, size_text, warning
from vitkd_ds.data.beton.format import check_beton, read_tables
from vitkd_ds.data.loader import Loader, build_loader
from vitkd_ds.data.order import micro_batch_size
from vitkd_ds.engine import processes, ranks

MICRO_BATCH = 64
"""Most images decoded at a time; a smaller one than the run's ends sooner."""


def check_train_images(patient: Patient) -> list[Row]:
    """See `check_images`."""
    return check_images(patient, "train")


def check_val_images(patient: Patient) -> list[Row]:
    """See `check_images`; the classes must be those of the training images."""
    return check_images(patient, "val")


def check_images(patient: Patient, split: str) -> list[Row]:
    """Open a split as training does, and read samples of it on all ranks at once. Collective."""
    needed(patient.micro_batch_size, "the settings")
    name = f"data.{split}"
    loader = ranks.together(lambda: open_split(patient, split))
    patient.loaders[split] = loader
    path = Path(loader.path)
    rows = [*difference_rows(name, path, patient.nodes), *place_rows(name, path, is_train=split == "train")]
    is_whole = True
    if path.is_file():
        stored = stored_rows(name, path, patient)
        is_whole, rows = all(row.level != "error" for row in stored), rows + stored
    return rows + (decoded_rows(name, loader, patient) if is_whole else [])


def open_split(patient: Patient, split: str) -> Loader:
    """The run's loader, though with smaller micro-batches.

    Raises:
        ValueError: what would end the run too.
    """
    run, world_size = patient.run, ranks.world_size()
    limit, whole = min(MICRO_BATCH, run.micro_batch_size_per_gpu), run.global_batch_size
    return build_loader(
        replace(run.data, num_workers=run.data.num_workers or processes.num_cpus()),
        split=split,
        augment=run.augment if split == "train" else None,
        rank=ranks.rank(),
        world_size=world_size,
        micro_batch_size=micro_batch_size(world_size=world_size, limit=limit, global_batch_size=whole),
        global_batch_size=whole,
        seed=run.seed,
        classes=patient.loaders["train"].classes if split == "val" and "train" in patient.loaders else None,
        device=patient.device,
    )


def difference_rows(name: str, path: Path, nodes: list[str]) -> list[Row]:
    """An error if the ranks read different files, as a copy on a node's disk may be an old one. Collective."""
    identities = ranks.from_all(read_tables(path).crc32 if path.is_file() else None)
    other = next((rank for rank, identity in enumerate(identities) if identity != identities[0]), None)
    if other is None:
        return []
    found = f"{str(path)!r} must be the same file on all nodes, found other tables on {nodes[other]} than on {nodes[0]}"
    return [error(name, found, "copy the file and its .json to the node again")]


def place_rows(name: str, path: Path, *, is_train: bool) -> list[Row]:
    """What lies there, and on which file system."""
    kind = file_system(path)
    what = f"{path} on {kind}"
    if path.is_file():
        info = check_beton(path)
        what = f"{info.num_images:,} images in {len(info.classes)} classes, {size_text(info.bytes)}, {what}"
    if is_train and is_network(kind):
        advice = "set STAGE_DIR for slurm/*.sh, or copy the file and its .json to each node's own disk"
        return [warning(name, f"{what}, which the nodes share over the network", advice)]
    return [ok(name, what)]


def stored_rows(name: str, path: Path, patient: Patient) -> list[Row]:
    """The bytes of a random sample per rank, from the disk. Collective; the same rows on all ranks."""
    seed = patient.run.seed + ranks.rank()
    results = ranks.from_all(ranks.together(lambda: read_bytes(path, seed=seed)))
    bad = {image: None for result in results for image in result.bad}
    if bad:
        nodes = sorted({node for node, result in zip(patient.nodes, results) if result.bad})
        checked = sum(result.num_images for result in results)
        found = (
            f"each image of {str(path)!r} must have the bytes it was packed with, found {len(bad)} of {checked} read "
            f"on {listed(nodes)} that have not: {listed(list(bad))}"
        )
        return [error(f"{name} bytes", found, "copy the file again, or pack it again")]
    slowest = min(results, key=lambda result: result.images_per_s)
    found = (
        f"{slowest.num_images} random images per rank are intact; past the page cache the slowest rank reads "
        f"{slowest.images_per_s:,.0f} images/s, {slowest.mib_per_s:,.0f} MiB/s"
    )
    return [ok(f"{name} bytes", found)]


def decoded_rows(name: str, loader: Loader, patient: Patient) -> list[Row]:
    """Images as training sees them, from the loader itself. Collective; the same rows on all ranks."""
    results = ranks.from_all(ranks.together(lambda: read_images(loader)))
    images, speeds, skipped = zip(*results)
    if sum(skipped):
        found = f"{sum(skipped)} of {sum(images)} images cannot be decoded, and data.on_bad is skip"
        return [warning(f"{name} decoding", found, "copy the file again, or pack it again")]
    where = patient.nodes[speeds.index(min(speeds))]
    found = f"{images[0]} images per rank; the slowest rank reads and decodes {min(speeds):,.0f} images/s ({where})"
    wanted_per_s = max(ranks.from_all(patient.images_per_s or 0))
    if name == "data.train" and min(speeds) < wanted_per_s:
        advice = "more --cpus-per-task, images packed with a lower --max_resolution, or a faster disk (see its bytes)"
        return [warning(f"{name} decoding", f"{found}, while a GPU trains {wanted_per_s:,.0f}", advice)]
    return [ok(f"{name} decoding", found)]

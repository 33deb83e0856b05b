"""What a file of ImageNet's length costs before its first image: our loader and stock FFCV, each in its own process.

Run by `python benchmarks/loader.py --imagenet_size`. The .beton holds black 8 x 8 images, stored as pixels, and one of
500 x 500, the size that FFCV's buffers are made for; so file and images cost nothing, and what is left is bookkeeping.
"""

import gc
import json
import os
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

SIDE, LARGEST_SIDE, NUM_CLASSES = 8, 500, 1000
MICRO_BATCH_SIZE, NUM_MICRO_BATCHES = 256, 20
MIB = 2**20


def write_beton(path: Path, num_images: int) -> None:
    """Write the .beton with its side file: the tables in numpy, the pixels as a hole in the file."""
    from vitkd_ds.data.beton import format, side_file

    sides, pixels = np.full(num_images, SIDE), {SIDE: bytes(3 * SIDE**2), LARGEST_SIDE: bytes(3 * LARGEST_SIDE**2)}
    sides[0] = LARGEST_SIDE
    sizes = 3 * sides**2
    metadata, allocations = np.zeros(num_images, format.METADATA_DTYPE), np.zeros(num_images, format.ALLOCATION_DTYPE)
    offsets = format.METADATA_START + metadata.nbytes + np.cumsum(sizes) - sizes
    metadata["mode"], metadata["height"], metadata["width"] = format.RAW_MODE, sides, sides
    metadata["offset"], metadata["label"] = offsets, np.arange(num_images) * NUM_CLASSES // num_images
    allocations["sample"], allocations["offset"], allocations["size"] = np.arange(num_images), offsets, sizes
    header, descriptors = np.zeros(1, format.HEADER_DTYPE), np.zeros(len(format.FIELDS), format.FIELD_DTYPE)
    end = int(offsets[-1] + sizes[-1])
    header[0] = (format.FFCV_FORMAT, len(format.FIELDS), 8 * MIB, num_images, end)
    for descriptor, (name, type_id) in zip(descriptors, format.FIELDS):
        descriptor["type_id"], descriptor["name"][: len(name)] = type_id, np.frombuffer(name.encode(), np.uint8)
    with open(path, "wb") as file:
        file.write(header.tobytes() + descriptors.tobytes() + metadata.tobytes())
        file.seek(end)
        file.write(allocations.tobytes())
    info = side_file.BetonInfo(
        path, num_images, tuple(f"class{i:04}" for i in range(NUM_CLASSES)), path.stat().st_size, "raw",
        max_resolution=LARGEST_SIDE, short_side=0, quality=90, passthrough=0, shuffled=False,
        max_height=LARGEST_SIDE, max_width=LARGEST_SIDE,
    )  # fmt: skip
    crc32s = np.where(sides == SIDE, zlib.crc32(pixels[SIDE]), zlib.crc32(pixels[LARGEST_SIDE]))
    tables_crc32 = format.read_tables(path).crc32
    text = side_file.side_text(info, tables_crc32=tables_crc32, lengths=sizes, crc32s=crc32s)
    side_file.side_path(path).write_text(text)


def rss_mib() -> float:
    """Memory of this process that is in RAM now."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def open_ours(path: Path) -> Any:
    """Our loader's function from epoch to micro-batches, and what is left to be timed as a call."""
    import vitkd_ds.data.beton.stream  # noqa: F401  (its imports are not the constructor's)
    from vitkd_ds.config.run import DataConfig
    from vitkd_ds.data.loader import build_loader

    data = DataConfig(train=str(path), val=str(path), image_size=224, num_classes=NUM_CLASSES, num_workers=1)
    return lambda: build_loader(data, split="train", micro_batch_size=MICRO_BATCH_SIZE).epoch


def open_stock(path: Path) -> Any:
    """The same of FFCV as released."""
    import ffcv  # noqa: F401
    from loader_rows import Setting, open_ffcv

    return lambda: open_ffcv(Setting(path.parent, 1, MICRO_BATCH_SIZE), name=path.stem)


def measure(which: str, path: Path) -> dict[str, float]:
    """Open the file, take a few micro-batches, start another epoch."""
    construct = {"ours": open_ours, "stock FFCV": open_stock}[which](path)
    gc.collect()
    before, start, cpu_start = rss_mib(), time.perf_counter(), time.process_time()
    passes = construct()
    figures = {
        "constructor_s": time.perf_counter() - start,
        "constructor_cpu_s": time.process_time() - cpu_start,
        "constructor_mib": rss_mib() - before,
    }
    micro_batches = passes(0)
    for _ in zip(range(NUM_MICRO_BATCHES), micro_batches):
        pass
    figures["running_mib"] = rss_mib()
    figures["running_growth_mib"] = figures["running_mib"] - before
    del micro_batches
    start, cpu_start = time.perf_counter(), time.process_time()
    next(passes(1))
    return figures | {
        "epoch_start_s": time.perf_counter() - start,
        "epoch_start_cpu_s": time.process_time() - cpu_start,
    }


def print_scale(workdir: Path, *, num_images: int) -> None:
    """Write the file unless it is there, measure both, print a table; the last column is after 20 micro-batches."""
    from loader import run_json

    path = workdir / f"synthetic_{num_images}.beton"
    if not path.exists():
        write_beton(path, num_images)
    print(f"\n{num_images:,} images, {path.stat().st_size / MIB:.0f} MiB, micro-batch {MICRO_BATCH_SIZE}\n")
    print("| loader | constructor, s (CPU) | its RSS, MiB | start of an epoch, s (CPU) | RSS, MiB |")
    print("|---|---|---|---|---|")
    for which in ("ours", "stock FFCV"):
        figures = run_json([sys.executable, __file__, which, path])
        cells = [which]
        for key in ("constructor", "epoch_start"):
            cells.append(f"{figures[f'{key}_s']:.2f} ({figures[f'{key}_cpu_s']:.2f})")
        cells.insert(2, f"+{figures['constructor_mib']:,.0f}")
        cells.append(f"{figures['running_mib']:,.0f} (+{figures['running_growth_mib']:,.0f} since the imports)")
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))), flush=True)
    os._exit(0)

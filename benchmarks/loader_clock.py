"""Time one row of benchmarks/loader.py, in a process of its own; loader.py starts it and reads the line of JSON.

    python benchmarks/loader_clock.py ROW WORKDIR THREADS MICRO_BATCH_SIZE epoch|cold

A process per row, because FFCV and our backend each change numba, torch's threads and FFCV for the whole process.
`epoch` opens the loader, takes a few micro-batches, and times one whole epoch after them; `cold` stops at the first
micro-batch, after the kernel was told to forget the file.
"""

import gc
import json
import os
import resource
import sys
import time
from pathlib import Path

import torch
from loader_rows import CROP_LIMIT, ROWS, WARM_UP, Setting, crop_limit

GIB = 2**30


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_rss_gib(num_workers: int) -> float:
    """Peak of this process, and of its worker processes if it had some; pages they share count each time."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    largest_child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (int(line.split()[1]) + num_workers * largest_child) * 1024 / GIB


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with open(path, "rb") as file:
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(name: str, setting: Setting, what: str) -> dict[str, float | None]:
    """Open the row's loader and time it; None where a figure has no meaning."""
    torch.set_num_threads(setting.threads)
    if name == CROP_LIMIT:
        return crop_limit(setting) | {"first_batch_s": None, "peak_rss_gib": None}
    if what == "cold":
        forget(setting.workdir / f"{ROWS[name].input}.beton")
    start = time.perf_counter()
    passes = ROWS[name].open(setting)
    micro_batches = passes(0)
    next(micro_batches)
    first_batch_s = time.perf_counter() - start
    if what == "cold":
        return {"first_batch_s": first_batch_s}
    for _ in zip(range(WARM_UP - 1), micro_batches):
        pass
    del micro_batches
    gc.collect()
    cpu_s, start = cpu_seconds(), time.perf_counter()
    num_images = sum(len(labels_B) for _, labels_B in passes(1))
    wall_s = time.perf_counter() - start
    cpu_s = cpu_seconds() - cpu_s
    return {
        "images_per_cpu_s": num_images / cpu_s,
        "wall_images_per_s": num_images / wall_s,
        "first_batch_s": first_batch_s,
        "peak_rss_gib": peak_rss_gib(setting.threads),
    }


def main() -> None:
    """Measure what the command line says."""
    name, workdir, threads, micro_batch_size, what = sys.argv[1:]
    setting = Setting(Path(workdir), int(threads), int(micro_batch_size))
    print(json.dumps(measure(name, setting, what)), flush=True)
    os._exit(0)  # FFCV's threads and numba's finalizers make noise at exit


if __name__ == "__main__":
    main()

"""Measure one thing for benchmarks/loader.py, which starts this file and reads the line of JSON that it prints.

    python benchmarks/loader_measure.py epoch|cold|closeness|scale NAME FOLDER THREADS MICRO_BATCH_SIZE

A process each, because FFCV and our backend change numba, torch's threads and FFCV for the whole process.
"""

import gc
import importlib
import json
import os
import resource
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from loader_rows import CROP_LIMIT, ROWS, SIZE, WARM_UP, Setting, crop_limit, open_ffcv, open_ours


def _status_mib(key: str) -> float:
    """A figure of this process's memory: VmRSS is what is in RAM now, VmHWM its peak."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def _cpu_s() -> float:
    """User and system time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def row(name: str, setting: Setting, *, is_cold: bool = False) -> dict[str, float | None]:
    """Open a row's loader, take a few micro-batches, time one whole epoch; None where a figure has no meaning.

    If `is_cold`, the kernel is first told to forget the file, and the first micro-batch is all.
    """
    if name == CROP_LIMIT:
        return crop_limit(setting) | {"first_batch_s": None, "peak_rss_gib": None}
    opener, source, options = ROWS[name]
    if is_cold:
        with open(setting.workdir / f"{source}.beton", "rb") as file:
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    passes = opener(setting, source, **options)
    micro_batches = passes(0)
    next(micro_batches)
    first_batch_s = time.perf_counter() - start
    if is_cold:
        return {"first_batch_s": first_batch_s}
    for _ in zip(range(WARM_UP - 1), micro_batches):
        pass
    del micro_batches
    gc.collect()
    cpu_start, start = _cpu_s(), time.perf_counter()
    num_images = sum(len(labels_B) for _, labels_B in passes(1))
    wall_s, cpu_s = time.perf_counter() - start, _cpu_s() - cpu_start
    # The pages that worker processes share count each time.
    workers_mib = setting.threads * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    figures = {"images_per_cpu_s": num_images / cpu_s, "wall_images_per_s": num_images / wall_s}
    return figures | {"first_batch_s": first_batch_s, "peak_rss_gib": (_status_mib("VmHWM") + workers_mib) / 1024}


def closeness(name: str, setting: Setting) -> dict[str, float | None]:
    """Mean PSNR of evaluation crops against Pillow's of the first 200 original photos, in dB.

    Crops that are equal to the last bit are counted apart; the mean is None if all are.
    """
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

    crop = Compose([Resize(256, InterpolationMode.BICUBIC), CenterCrop(SIZE), PILToTensor()])
    originals = ImageFolder(setting.workdir / "originals", crop)
    stems = [Path(path).stem for path, _ in originals.samples]  # in the order of the .beton
    chosen = {number for number, stem in enumerate(stems) if stem < "0200" and stem.endswith("_0")}
    opener, source = (open_ffcv, "jpg500") if name == "stock" else (open_ours, name)
    images = (image_CHW for images_BCHW, _ in opener(setting, source, split="val")(0) for image_CHW in images_BCHW)
    crops = [image_CHW.double() for number, image_CHW in enumerate(images) if number in chosen]
    references = [originals[number][0] for number in sorted(chosen)]
    errors = np.array([(crop - reference).square().mean() for crop, reference in zip(crops, references, strict=True)])
    differing = errors[errors > 0]
    mean_db = float((10 * np.log10(255**2 / differing)).mean()) if len(differing) else None
    return {"mean_db": mean_db, "num_equal": int((errors == 0).sum())}


def scale(name: str, setting: Setting) -> dict[str, float]:
    """Open a long file with our loader or stock FFCV, take 20 micro-batches, start another epoch."""
    opener, modules = {
        "ours": (open_ours, ("vitkd_ds.data.beton.stream", "vitkd_ds.data.loader", "vitkd_ds.data.mixing")),
        "stock FFCV": (open_ffcv, ("ffcv",)),
    }[name]
    for module in modules:  # imports are not the constructor's
        importlib.import_module(module)
    gc.collect()
    before, start, cpu_start = _status_mib("VmRSS"), time.perf_counter(), time.process_time()
    passes = opener(setting, "black")
    figures = {"constructor_s": time.perf_counter() - start, "constructor_cpu_s": time.process_time() - cpu_start}
    figures["constructor_mib"] = _status_mib("VmRSS") - before
    micro_batches = passes(0)
    for _ in zip(range(20), micro_batches):
        pass
    running = _status_mib("VmRSS")
    figures |= {"running_mib": running, "growth_mib": running - before}
    del micro_batches
    start, cpu_start = time.perf_counter(), time.process_time()
    next(passes(1))
    return figures | {"epoch_s": time.perf_counter() - start, "epoch_cpu_s": time.process_time() - cpu_start}


if __name__ == "__main__":
    what, name, folder, threads, micro_batch_size = sys.argv[1:]
    torch.set_num_threads(int(threads))
    setting = Setting(Path(folder), int(threads), int(micro_batch_size))
    measures = {"epoch": row, "cold": partial(row, is_cold=True), "closeness": closeness, "scale": scale}
    print(json.dumps(measures[what](name, setting)), flush=True)
    os._exit(0)  # FFCV's threads and numba's finalizers make noise at exit

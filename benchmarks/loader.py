"""Compare the speed of our loader with FFCV, torchvision, Pillow, DALI and the limit of libjpeg-turbo.

    python benchmarks/loader.py --photos FILE [--json FILE] [--rounds 5] [--copies 10] [--workdir DIR] [--rows a,b]
        [--threads 1] [--table] [--imagenet_size] [--debug]

FILE is an .npz file. Its array `blob` contains JPEG files end to end: photo i is ``blob[offsets[i]:offsets[i + 1]]``,
and its class is ``classes[labels[i]]``. Each photo is written --copies times.

Each row is a loader of `loader_rows.py` with --threads decoder threads or workers. It runs in its own process, which
warms up and then times one epoch. In each round, all rows run once. The main figure is images per CPU-second (user and
system time of the process and its workers), because it depends least on the machine's other load. The time to the first
batch includes the loader's imports, but not that of torch. At a cold start, the caches of Python and numba are empty,
and the .beton is not in the page cache. Peak RSS includes pages of mapped files.

--table also prints the cost and quality of each storage format. --imagenet_size also prints the cost of opening a file
with 1,281,167 tiny images. --workdir names a folder in which the inputs are kept. --json names a file for the figures
of each round. --debug runs everything with small inputs; its figures mean nothing.
"""

import argparse
import gc
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any, Iterable

import numpy as np
import torch
from loader_inputs import PACKED, pack_photos, prepare, write_black_beton
from loader_rows import CROP_LIMIT, ROWS, SIZE, WARM_UP, Setting, crop_limit, open_ffcv, open_ours

OPPONENTS = {"/ FFCV": "ffcv-jpg500", "/ Pillow": "pillow-originals", "/ limit": CROP_LIMIT}
COLD_ROWS = ("ours-jpg500", "ffcv-jpg500")
NUM_TRAIN_IMAGES = 1_281_167
GPU_IMAGES_PER_S = {"Tiny": 7_000, "Small": 3_800, "Base": 1_500}
"""Assumed training speed of the paper's pairs on an H100, compiled and without a loader, in images/s. A plain loop
reached 6,898 to 7,926 images/s for Tiny, 3,833 for Small, and 1,486 to 1,528 for Base."""


def _status_mib(key: str) -> float:
    """Return this process's current memory (key VmRSS) or peak memory (key VmHWM) in MiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def _clock() -> np.ndarray:
    """Return wall-clock seconds, and the CPU seconds (user and system) of this process and its exited children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return np.array([time.perf_counter(), sum(usage.ru_utime + usage.ru_stime for usage in usages)])


def row(name: str, setting: Setting, *, is_cold: bool = False) -> dict[str, float | None]:
    """Open a row's loader, warm up, and time one whole epoch. Figures that a row does not have are None.

    With `is_cold`, first drop the file from the page cache, and time only the first micro-batch.
    """
    if name == CROP_LIMIT:
        return crop_limit(setting) | {"first_batch_s": None, "peak_rss_gib": None}
    opener, source, options = ROWS[name]
    if is_cold:
        with open(setting.workdir / f"{source}.beton", "rb") as file:
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = _clock()
    passes = opener(setting, source, **options)
    micro_batches = passes(0)
    next(micro_batches)
    figures = {"first_batch_s": (_clock() - start)[0]}
    if is_cold:
        return figures
    for _ in zip(range(WARM_UP - 1), micro_batches):
        pass
    del micro_batches
    gc.collect()
    start = _clock()
    num_images = sum(len(labels_B) for _, labels_B in passes(1))
    figures |= zip(("wall_images_per_s", "images_per_cpu_s"), num_images / (_clock() - start))
    # Memory pages that the workers share are counted once for each worker.
    workers_mib = setting.threads * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return figures | {"peak_rss_gib": (_status_mib("VmHWM") + workers_mib) / 1024}


def closeness(name: str, setting: Setting) -> dict[str, str]:
    """Return how similar evaluation crops are to Pillow's crops of the original photos, as text: the mean PSNR in dB.

    The crops have 224 px and are from the first 200 photos, whose shorter side is resized to 256. Bit-identical crops
    are not part of the mean; the text has their number.
    """
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

    crop = Compose([Resize(256, InterpolationMode.BICUBIC), CenterCrop(SIZE), PILToTensor()])
    originals = ImageFolder(setting.workdir / "originals", crop)  # in the order of the .beton
    first = {f"{number:04}_0" for number in range(200)}
    chosen = {i for i, (path, _) in enumerate(originals.samples) if Path(path).stem in first}
    opener, source = (open_ffcv, "jpg500") if name == "stock" else (open_ours, name)
    images = (image_CHW for images_BCHW, _ in opener(setting, source, split="val")(0) for image_CHW in images_BCHW)
    numbered = zip(range(len(originals)), images, strict=True)
    errors = [(image.double() - originals[i][0]).square().mean().item() for i, image in numbered if i in chosen]
    decibels = [10 * np.log10(255**2 / error) for error in errors if error]
    equal = f", {errors.count(0)} equal" if 0 in errors else ""
    return {"text": f"{fmean(decibels):.1f} dB{equal}" if decibels else "equal"}


def scale(name: str, setting: Setting) -> dict[str, str]:
    """Measure our loader (name "ours") or stock FFCV on a file with as many images as ImageNet: open the file, load 20
    micro-batches, start another epoch."""
    ours = ("vitkd_ds.data.beton.stream", "vitkd_ds.data.loader", "vitkd_ds.train.mixing", "vitkd_ds.recipes")
    opener, modules = (open_ours, ours) if name == "ours" else (open_ffcv, ("ffcv",))
    for module in modules:  # so that the time of the constructor does not include imports
        importlib.import_module(module)
    gc.collect()
    before_mib, start = _status_mib("VmRSS"), _clock()
    passes = opener(setting, "black")
    opened, opened_mib = _clock() - start, _status_mib("VmRSS")
    micro_batches = passes(0)
    for _ in zip(range(20), micro_batches):
        pass
    running_mib = _status_mib("VmRSS")
    del micro_batches
    start = _clock()
    next(passes(1))
    return {
        "loader": name,
        "constructor, s (CPU)": "{:.2f} ({:.2f})".format(*opened),
        "its RSS, MiB": f"+{opened_mib - before_mib:,.0f}",
        "start of an epoch, s (CPU)": "{:.2f} ({:.2f})".format(*(_clock() - start)),
        "RSS, MiB": f"{running_mib:,.0f} (+{running_mib - before_mib:,.0f} since the imports)",
    }


def in_process(what: str, name: str, *setting: Any, **environ: str) -> dict[str, Any]:
    """Run one measurement in a new process, because FFCV and our loader change settings of numba and torch."""
    command = [sys.executable, __file__, "measure", what, name, *map(str, setting)]
    done = subprocess.run(command, env=os.environ | environ, text=True, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(names: list[str], workdir: Path, args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Measure all rows in each round; rewrite the JSON file after each measurement."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    setting = workdir, args.threads, 4 if args.debug else 64
    for number in range(1, args.rounds + 1):
        for name in list(found):
            try:
                figures = in_process("epoch", name, *setting) | {"load_1min": os.getloadavg()[0]}
            except subprocess.CalledProcessError as error:  # a missing package must not stop the other rows
                print(f"skipping {name}: {error}", flush=True)
                del found[name]
                continue
            if name in COLD_ROWS:
                with tempfile.TemporaryDirectory() as empty:
                    environ = {"PYTHONPYCACHEPREFIX": f"{empty}/python", "NUMBA_CACHE_DIR": f"{empty}/numba"}
                    figures["first_batch_cold_s"] = in_process("cold", name, *setting, **environ)["first_batch_s"]
            found[name].append({"name": name, "round": number, "threads": args.threads} | figures)
            print(f"round {number} {name}: {figures['images_per_cpu_s']:.0f} images per CPU-second", flush=True)
            if args.json:
                args.json.write_text(json.dumps([row for rows in found.values() for row in rows], indent=1) + "\n")
    return found


def print_table(rows: Iterable[dict[str, str]]) -> None:
    """Print a Markdown table; print each row as soon as it is measured."""
    for number, row in enumerate(rows):
        if number == 0:
            print(f"\n| {' | '.join(row)} |\n{'|---' * len(row)}|")
        print(f"| {' | '.join(row.values())} |", flush=True)


def print_rows(found: dict[str, list[dict[str, Any]]], speeds: dict[str, float]) -> None:
    """Print the table of all rows, with the ratios of their speeds to those of the rows in OPPONENTS."""

    def text(name: str, figure: str, digits: int) -> str:
        values = [row[figure] for row in found[name] if row[figure] is not None]
        ends = (f"{end(values):,.{digits}f}" for end in (median, min, max)) if values else ()
        return "{} ({}–{})".format(*ends) if values else "–"

    def cells(name: str) -> dict[str, str]:
        ratios = (f"{speeds[name] / speeds[row]:.2f}" if row in speeds else "–" for row in OPPONENTS.values())
        return {
            "row": name,
            "images per CPU-second": text(name, "images_per_cpu_s", 0),
            **dict(zip(OPPONENTS, ratios)),
            "wall images/s": text(name, "wall_images_per_s", 0),
            "first batch, s": text(name, "first_batch_s", 2),
            "peak RSS, GiB": text(name, "peak_rss_gib", 2),
        }

    print_table(map(cells, found))
    for name in found.keys() & COLD_ROWS:
        print(f"first batch of {name} after a cold start: {text(name, 'first_batch_cold_s', 2)} s")


def print_storage(workdir: Path, speeds: dict[str, float]) -> None:
    """Pack the photos in each storage format and print a table; `speeds` has the images per CPU-second of each row."""
    from vitkd_ds.data.beton.format import check_beton

    def cells(name: str, row: str, meaning: str) -> dict[str, str]:
        info, speed = check_beton(pack_photos(workdir, name)), speeds.get(row)
        num_bytes = info.bytes / info.num_images
        cores = (f"{8 * needed / speed:.0f}" if speed else "–" for needed in GPU_IMAGES_PER_S.values())
        return {
            "stored as": meaning,
            "bytes/image": f"{num_bytes:,.0f}",
            "ImageNet-1k train, GB": f"{num_bytes * NUM_TRAIN_IMAGES / 1e9:.0f}",
            "images/s per core": f"{speed:,.0f}" if speed else "–",
            "evaluation crop against Pillow's": in_process("closeness", name, workdir, 1, 50)["text"],
            **dict(zip((f"cores for 8 GPUs, {size}" for size in GPU_IMAGES_PER_S), cores)),
        }

    print_table(cells(name, row, meaning) for name, (row, meaning, _) in PACKED.items())
    print(f"stock FFCV on the first: {in_process('closeness', 'stock', workdir, 1, 50)['text']}")
    assumed = ", ".join(f"{size} {needed:,} images/s per GPU" for size, needed in GPU_IMAGES_PER_S.items())
    print(f"cores are for decoding only, from assumed speeds of the training step: {assumed}")


def main() -> None:
    """Prepare the inputs, measure all rows and print tables; in a process of `in_process`, make one measurement."""
    if sys.argv[1:2] == ["measure"]:
        what, name, folder = sys.argv[2:5]
        setting = Setting(Path(folder), *map(int, sys.argv[5:]))
        torch.set_num_threads(setting.threads)
        measures = {"epoch": row, "cold": lambda *at: row(*at, is_cold=True), "closeness": closeness, "scale": scale}
        print(json.dumps(measures[what](name, setting)), flush=True)
        os._exit(0)  # at a normal exit, FFCV's threads and numba's finalizers would print errors
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("photos", "json", "workdir"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--rows", default=",".join(ROWS))
    for name, default in (("rounds", 5), ("copies", 10), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("table", "imagenet_size", "debug"):
        parser.add_argument(f"--{name}", action="store_true")
    args = parser.parse_args()
    if args.debug:
        args.rounds, args.copies = 1, 1
    elif args.photos is None:
        parser.error("--photos is missing. Pass an .npz file, or --debug for a few generated photos.")
    if unknown := set(args.rows.split(",")) - ROWS.keys():
        parser.error(f"--rows has unknown names: {', '.join(sorted(unknown))}. Valid names: {', '.join(ROWS)}")
    names = [name for name in ROWS if name in args.rows.split(",")]
    with tempfile.TemporaryDirectory() as empty:
        top, needed = args.workdir or Path(empty), {ROWS[name][1] for name in names}
        workdir = prepare(args.photos, top.resolve(), copies=args.copies, needed=needed)
        if args.threads == 1:
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        found = measure(names, workdir, args)
        speeds = {name: median(row["images_per_cpu_s"] for row in rows) for name, rows in found.items()}
        print_rows(found, speeds)
        if args.table:
            print_storage(workdir, speeds)
        if args.imagenet_size:
            path = write_black_beton(workdir, num_images := 10_000 if args.debug else NUM_TRAIN_IMAGES)
            print(f"\n{num_images:,} images, {path.stat().st_size / 2**20:.0f} MiB, micro-batch 256")
            print_table(in_process("scale", name, path.parent, 1, 256) for name in ("ours", "stock FFCV"))


if __name__ == "__main__":
    main()

"""How fast do images reach the training loop? Our loader beside FFCV, torchvision, Pillow, DALI and the JPEG limit.

    python benchmarks/loader.py --photos FILE [--json FILE] [--rounds 5] [--copies 10] [--workdir DIR] [--rows a,b]
        [--threads 1] [--table] [--imagenet_size] [--debug]

FILE is an .npz: JPEG files end to end in `blob`, photo i at ``blob[offsets[i]:offsets[i + 1]]``, its class name
``classes[labels[i]]``; each is written --copies times. Each row of the table is a loader of `loader_rows.py` in a
process of its own that warms up and is then timed over one epoch, with --threads decoder threads or workers; rounds
interleave the rows. Figures are medians over the rounds, with minimum and maximum:

* images per CPU-second: images / (user + system time of the process and its workers), the one that is judged, as it
  depends least on what else the machine does;
* wall images/s: with one thread all of the row, decoder and main thread, shares one core;
* first batch: seconds from before the loader's imports to its first micro-batch, torch already imported. Cold: a new
  process, an empty PYTHONPYCACHEPREFIX (so that all Python of FFCV, numba and ours is compiled anew), an empty
  NUMBA_CACHE_DIR, the .beton dropped from the page cache; shared libraries stay in it;
* peak RSS of the process and its workers; pages of a mapped file count.

--table adds what each way of storing costs and keeps: closeness is the PSNR of the evaluation crop (shorter side to
256, central 224 pixels) of up to 200 photos against Pillow's of the original JPEG, in dB. --imagenet_size adds what
opening 1,281,167 tiny images costs. --workdir keeps the prepared inputs, --json gets the figures of each round. --debug
runs everything small, on generated photos: its figures mean nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from loader_inputs import PACKED, pack_photos, prepare, write_black_beton
from loader_rows import CROP_LIMIT, HERE, ROWS

OPPONENTS = {"/ FFCV": "ffcv-jpg500", "/ Pillow": "pillow-originals", "/ limit": CROP_LIMIT}
COLD_ROWS = ("ours-jpg500", "ffcv-jpg500")
NUM_TRAIN_IMAGES = 1_281_167
NODE_IMAGES_PER_S = {"Tiny": 8 * 7_000, "Small": 8 * 3_800, "Base": 8 * 1_500}
"""Assumed: 8 GPUs at the speed of one H100 that distils the paper's pair with everything compiled and images already on
the device (a plain loop: 6,898 to 7,926, 3,833, and 1,486 to 1,528 images/s)."""


def start(what: str, name: str, folder: Path, threads: int, micro_batch_size: int, **environ: str) -> dict[str, Any]:
    """Run loader_measure.py; the JSON of its last line. Raises RuntimeError with its output if it fails."""
    command = [sys.executable, HERE / "loader_measure.py", what, name, folder, threads, micro_batch_size]
    done = subprocess.run(list(map(str, command)), env=os.environ | environ, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(names: list[str], workdir: Path, args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Measure all rounds of all rows; the JSON file holds the figures of each, and is written after each."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    setting = workdir, args.threads, 4 if args.debug else 64
    for number in range(1, args.rounds + 1):
        for name in list(found):
            try:
                figures = start("epoch", name, *setting) | {"load_1min": os.getloadavg()[0]}
            except RuntimeError as error:  # a package is missing, say; hours of other rows must not be lost
                print(f"left out {name}: {error}", flush=True)
                del found[name]
                continue
            if name in COLD_ROWS:
                with tempfile.TemporaryDirectory() as empty:
                    environ = {"PYTHONPYCACHEPREFIX": f"{empty}/python", "NUMBA_CACHE_DIR": f"{empty}/numba"}
                    figures["first_batch_cold_s"] = start("cold", name, *setting, **environ)["first_batch_s"]
            found[name].append({"name": name, "round": number, "threads": args.threads} | figures)
            print(f"round {number} {name}: {figures['images_per_cpu_s']:.0f} images per CPU-second", flush=True)
            if args.json:
                args.json.write_text(json.dumps([row for rows in found.values() for row in rows], indent=1) + "\n")
    return found


def print_table(rows: Iterable[dict[str, str]]) -> None:
    """Print a Markdown table, each row as it comes."""
    for number, row in enumerate(rows):
        if number == 0:
            print(f"\n| {' | '.join(row)} |\n{'|---' * len(row)}|")
        print(f"| {' | '.join(row.values())} |", flush=True)


def print_rows(found: dict[str, list[dict[str, Any]]], speeds: dict[str, float]) -> None:
    """Print the table of all rows, with the ratios of their speeds to those of the opponents."""

    def text(name: str, figure: str, digits: int) -> str:
        values = [row[figure] for row in found[name] if row[figure] is not None]
        ends = (f"{function(values):,.{digits}f}" for function in (statistics.median, min, max)) if values else ()
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
    """Pack the photos in each way and print the table; speeds are those of the rows that ran."""
    from vitkd_ds.data.beton.format import check_beton

    infos = {name: check_beton(pack_photos(workdir, name)) for name in PACKED}

    def closeness(name: str) -> str:
        figures = start("closeness", name, workdir, 1, 50)
        equal = f", {figures['num_equal']} equal" if figures["num_equal"] else ""
        return "equal" if figures["mean_db"] is None else f"{figures['mean_db']:.1f} dB{equal}"

    def cells(name: str) -> dict[str, str]:
        row, meaning, _ = PACKED[name]
        num_bytes, speed = infos[name].bytes / infos[name].num_images, speeds.get(row)
        cores = (f"{needed / speed:.0f}" if speed else "–" for needed in NODE_IMAGES_PER_S.values())
        return {
            "stored as": meaning,
            "bytes/image": f"{num_bytes:,.0f}",
            "ImageNet-1k train, GB": f"{num_bytes * NUM_TRAIN_IMAGES / 1e9:.0f}",
            "images/s per core": f"{speed:,.0f}" if speed else "–",
            "evaluation crop against Pillow's": closeness(name),
            **{f"cores for 8 GPUs, {size}": text for size, text in zip(NODE_IMAGES_PER_S, cores)},
        }

    print_table(map(cells, PACKED))
    print(f"stock FFCV on the first: {closeness('stock')}")
    assumed = ", ".join(f"{size} {needed // 8:,} images/s per GPU" for size, needed in NODE_IMAGES_PER_S.items())
    print(f"cores are for decoding alone, from assumed speeds of the training step: {assumed}")


def print_scale(folder: Path, *, num_images: int) -> None:
    """Print what a file of so many images costs before its first one; the last column is after 20 micro-batches."""
    path = folder / "black.beton"
    if not path.exists():
        write_black_beton(path, num_images)
    print(f"\n{num_images:,} images, {path.stat().st_size / 2**20:.0f} MiB, micro-batch 256")

    def cells(name: str) -> dict[str, str]:
        found = start("scale", name, folder, 1, 256)
        return {
            "loader": name,
            "constructor, s (CPU)": f"{found['constructor_s']:.2f} ({found['constructor_cpu_s']:.2f})",
            "its RSS, MiB": f"+{found['constructor_mib']:,.0f}",
            "start of an epoch, s (CPU)": f"{found['epoch_s']:.2f} ({found['epoch_cpu_s']:.2f})",
            "RSS, MiB": f"{found['running_mib']:,.0f} (+{found['growth_mib']:,.0f} since the imports)",
        }

    print_table(map(cells, ("ours", "stock FFCV")))


def run(args: argparse.Namespace, workdir: Path) -> None:
    """Prepare, measure, print, write."""
    chosen = args.rows.split(",") if args.rows else list(ROWS)
    unknown = [name for name in chosen if name not in ROWS]
    if unknown:
        raise ValueError(f"--rows must be of {', '.join(ROWS)}, found {', '.join(unknown)}: correct it")
    names = [name for name in ROWS if name in chosen]
    prepare(args.photos, workdir, copies=args.copies, needed={ROWS[name][1] for name in names})
    if args.threads == 1:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    found = measure(names, workdir, args)
    speeds = {name: statistics.median(row["images_per_cpu_s"] for row in rows) for name, rows in found.items()}
    print_rows(found, speeds)
    if args.table:
        print_storage(workdir, speeds)
    if args.imagenet_size:
        num_images = 10_000 if args.debug else NUM_TRAIN_IMAGES
        print_scale(workdir / f"scale_{num_images}", num_images=num_images)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = {"photos": (Path, None), "json": (Path, None), "workdir": (Path, None), "rows": (str, "")}
    options |= {"rounds": (int, 5), "copies": (int, 10), "threads": (int, 1)}
    for name, (kind, default) in options.items():
        parser.add_argument(f"--{name}", type=kind, default=default)
    for name in ("table", "imagenet_size", "debug"):
        parser.add_argument(f"--{name}", action="store_true")
    args = parser.parse_args()
    if args.debug:
        args.rounds, args.copies = 1, 1
    elif args.photos is None:
        parser.error("--photos must be given, found none: give an .npz, or --debug for a few generated photos")
    with tempfile.TemporaryDirectory() as folder:
        run(args, args.workdir.resolve() if args.workdir else Path(folder))

"""How fast do images reach the training loop? Our loader beside FFCV, torchvision, Pillow, DALI and the JPEG limit.

    python benchmarks/loader.py --photos FILE [--json FILE] [--rounds 5] [--copies 10] [--workdir DIR] [--rows a,b]
        [--threads 1] [--table] [--imagenet_size] [--debug]

FILE is an .npz: JPEG files end to end in `blob`, photo i at ``blob[offsets[i]:offsets[i + 1]]``, its class name
``classes[labels[i]]``. Each row of the table is a loader of `loader_rows.py` in a process of its own that warms up and
is then timed over one epoch; rounds interleave the rows. Figures are medians over the rounds, with minimum and maximum:

* images per CPU-second: images / (user + system time of the process and its workers), the one that is judged, as it
  depends least on what else the machine does;
* wall images/s: with --threads 1 all of the row, decoder and main thread, shares one core;
* first batch: seconds from before the loader's imports to its first micro-batch, torch already imported. Cold: a new
  process, an empty PYTHONPYCACHEPREFIX (so that all Python of FFCV, numba and ours is compiled anew), an empty
  NUMBA_CACHE_DIR, the .beton dropped from the page cache; shared libraries stay in it;
* peak RSS of the process and its workers; pages of a mapped file count.

--table adds how close each way of storing comes to the original and what a node needs (`loader_fidelity.py`),
--imagenet_size what opening 1,281,167 images costs (`loader_scale.py`). --debug runs everything small, on generated
photos if none are given: its figures mean nothing.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the checkout this script lies in, installed or not

from loader_inputs import prepare, write_generated_photos  # noqa: E402
from loader_rows import CROP_LIMIT, ROWS  # noqa: E402

FFCV, PILLOW, OURS = "ffcv-jpg500", "pillow-originals", "ours-jpg500"
COLD_ROWS = (OURS, FFCV)
TARGETS = (
    ("images_per_cpu_s", FFCV, 1.7),
    ("images_per_cpu_s", PILLOW, 4.0),
    ("images_per_cpu_s", CROP_LIMIT, 0.55),
)
"""Our row's figure must be at least so many times that of another row."""
FIRST_BATCH_S = {"first_batch_s": 3.0, "first_batch_cold_s": 5.0}
FIGURES = ("images_per_cpu_s", "wall_images_per_s", "first_batch_s", "peak_rss_gib", "first_batch_cold_s")


@dataclass(frozen=True)
class Plan:
    """What a measurement runs with."""

    workdir: Path
    rounds: int
    threads: int
    micro_batch_size: int

    def start(self, name: str, what: str, environ: dict[str, str] | None = None) -> dict[str, float | None]:
        """Measure a row in its own process."""
        command = [
            sys.executable,
            HERE / "loader_clock.py",
            name,
            self.workdir,
            self.threads,
            self.micro_batch_size,
            what,
        ]
        return run_json(command, environ=environ)


def run_json(command: list, environ: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a command; the JSON of its last line. Raises RuntimeError with the command's output if it fails."""
    path = f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    env = os.environ | {"PYTHONPATH": path} | (environ or {})
    done = subprocess.run(list(map(str, command)), env=env, text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def is_installed(package: str) -> bool:
    """Whether a package, or a package inside another one, can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def chosen_rows(names: str) -> list[str]:
    """The rows to run: all or the named ones, without those whose package is missing, which are said."""
    unknown = [name for name in names.split(",") if name and name not in ROWS]
    if unknown:
        raise ValueError(f"--rows must be of {', '.join(ROWS)}, found {', '.join(unknown)}: correct it")
    rows = [name for name in ROWS if not names or name in names.split(",")]
    for name in [name for name in rows if ROWS[name].needs and not is_installed(ROWS[name].needs)]:
        print(f"skipped {name}: {ROWS[name].needs} is not installed")
        rows.remove(name)
    return rows


def measure_cold(plan: Plan, name: str) -> float:
    """Seconds to the first micro-batch in a cold start, as the module's docstring defines it."""
    with tempfile.TemporaryDirectory() as empty:
        environ = {"PYTHONPYCACHEPREFIX": f"{empty}/python", "NUMBA_CACHE_DIR": f"{empty}/numba"}
        return plan.start(name, "cold", environ)["first_batch_s"]


def measure(plan: Plan, rows: list[str], json_path: Path | None) -> list[dict[str, Any]]:
    """All rounds of all rows, one after the other; the file is written after each round.

    Returns:
        A dict per row with median, minimum and maximum of each figure over the rounds.
    """
    found = {name: {figure: [] for figure in (*FIGURES, "load_1min")} for name in rows}
    for number in range(1, plan.rounds + 1):
        for name in list(found):
            try:
                result = plan.start(name, "epoch") | {"load_1min": os.getloadavg()[0]}
            except RuntimeError as error:  # hours of other rows must not be lost
                print(f"left out {name}: {error}", flush=True)
                del found[name]
                continue
            if name in COLD_ROWS:
                result["first_batch_cold_s"] = measure_cold(plan, name)
            for key, value in result.items():
                if value is not None:
                    found[name][key].append(value)
            print(f"round {number} {name}: {result['images_per_cpu_s']:.0f} images per CPU-second", flush=True)
        sizes = {"rounds": number, "threads": plan.threads}
        results = [_summary(name, figures) | sizes for name, figures in found.items()]
        if json_path:
            json_path.write_text(json.dumps(results, indent=1) + "\n")
    return results


def _summary(name: str, figures: dict[str, list[float]]) -> dict[str, Any]:
    summary: dict[str, Any] = {"name": name}
    for key, values in figures.items():
        summary[key] = statistics.median(values) if values else None
        summary[f"{key}_min"], summary[f"{key}_max"] = (min(values), max(values)) if values else (None, None)
    return summary


def _text(row: dict[str, Any], figure: str, digits: int) -> str:
    if row[figure] is None:
        return "–"
    low, middle, high = (f"{row[f'{figure}{end}']:,.{digits}f}" for end in ("_min", "", "_max"))
    return f"{middle} ({low}–{high})"


def print_table(results: list[dict[str, Any]]) -> None:
    """The Markdown table of all rows."""
    speeds = {row["name"]: row["images_per_cpu_s"] for row in results}
    header = ["row", "images per CPU-second", "/ FFCV", "/ Pillow", "/ limit", "wall images/s", "first batch, s"]
    print(f"\n| {' | '.join([*header, 'peak RSS, GiB'])} |\n{'|---' * (len(header) + 1)}|")
    for row in results:
        ratios = [
            f"{row['images_per_cpu_s'] / speeds[other]:.2f}" if other in speeds else "–"
            for other in (FFCV, PILLOW, CROP_LIMIT)
        ]
        cells = [row["name"], _text(row, "images_per_cpu_s", 0), *ratios, _text(row, "wall_images_per_s", 0)]
        cells += [_text(row, "first_batch_s", 2), _text(row, "peak_rss_gib", 2)]
        print(f"| {' | '.join(cells)} |")
    for row in results:
        if row["first_batch_cold_s"] is not None:
            print(f"first batch of {row['name']} after a cold start: {_text(row, 'first_batch_cold_s', 2)} s")


def print_targets(results: list[dict[str, Any]]) -> None:
    """Which targets of our row are met, of those whose rows ran."""
    rows = {row["name"]: row for row in results}
    if OURS not in rows:
        return
    print()
    for figure, other, factor in TARGETS:
        if other in rows:
            ratio = rows[OURS][figure] / rows[other][figure]
            print(f"{'met' if ratio >= factor else 'MISSED'}: {OURS} >= {factor} x {other}: {ratio:.2f}")
    for figure, limit in FIRST_BATCH_S.items():
        value = rows[OURS][figure]
        print(f"{'met' if value <= limit else 'MISSED'}: {figure} <= {limit}: {value:.2f}")


def build_crop_limit(workdir: Path) -> None:
    """Compile crop_limit.cpp."""
    subprocess.run(["g++", "-O3", HERE / "crop_limit.cpp", "-o", workdir / "crop_limit", "-ljpeg"], check=True)


def parse_arguments() -> argparse.Namespace:
    """The command line, with --debug's sizes filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="the .npz with photographs")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--copies", type=int, default=10, help="how often each photo is written")
    parser.add_argument("--workdir", type=Path, help="keeps the prepared inputs; default: a temporary folder")
    parser.add_argument("--rows", default="", help="names with commas between; default: all")
    parser.add_argument("--threads", type=int, default=1, help="decoder threads or workers; 1 pins to one core")
    parser.add_argument("--table", action="store_true", help="also fidelity, size and cores per way of storing")
    parser.add_argument("--imagenet_size", action="store_true", help="also the costs of 1,281,167 images")
    parser.add_argument("--debug", action="store_true")
    args = parser.parse_args()
    if args.debug:
        args.rounds, args.copies = 1, 1
    elif args.photos is None:
        parser.error("--photos must be given, found none: give an .npz, or --debug for a few generated photos")
    return args


def run(args: argparse.Namespace, workdir: Path) -> None:
    """Prepare, measure, print, write."""
    rows = chosen_rows(args.rows)
    if args.photos is None:
        workdir.mkdir(parents=True, exist_ok=True)
        args.photos = workdir / "generated.npz"
        write_generated_photos(args.photos, num_photos=24)
    prepare(args.photos, workdir, copies=args.copies, needed={ROWS[name].input for name in rows})
    if CROP_LIMIT in rows:
        build_crop_limit(workdir)
    if args.threads == 1:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    plan = Plan(workdir, args.rounds, args.threads, micro_batch_size=4 if args.debug else 64)
    results = measure(plan, rows, args.json)
    print_table(results)
    if not args.debug:
        print_targets(results)
    if args.table:
        from loader_fidelity import print_storage_table

        print_storage_table(args.photos, workdir, results, num_photos=4 if args.debug else 200)
    if args.imagenet_size:
        from loader_scale import print_scale

        print_scale(workdir, num_images=10_000 if args.debug else 1_281_167)


def main() -> None:
    """Run in the folder given, or in a temporary one."""
    args = parse_arguments()
    if args.workdir:
        run(args, args.workdir.resolve())
        return
    with tempfile.TemporaryDirectory() as folder:
        run(args, Path(folder))


if __name__ == "__main__":
    main()

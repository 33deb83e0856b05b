"""Time one training step: of an eager loop, a compiled loop, and this project's engines with three placements.

    python benchmarks/step.py [--pairs tiny small base] [--micro_batches 64 128 256] [--json FILE] [--debug]

The whole step is timed: both models, the losses ViTKD, NKD and cross-entropy, gradient clipping and AdamW. There is no
drop path and no moving average of the weights. Each combination of a pair of models and a micro-batch size runs in its
own process. In one process, the second size would be compiled for dynamic shapes, and the engines of the first size
would stay in memory. The variants of a combination share a process and take turns (--repeats rounds of --steps steps),
so that a GPU that becomes slower affects all of them. The table has images/s and `ratio`, the speed relative to the
compiled loop in the same round; both are medians over the rounds.

The times of the parts (teacher, forward, backward, update) are in ms. They are measured in additional steps, which
synchronise with the device after each part. `host` is the time in which Python works on a step. It is measured in two
pieces, from teacher to backward and for the update, and each starts when the device is idle. Nothing waits for the
device before the end of the update. There the engines wait at most as long as the update takes. Kernel launches that
wait for room in the device's queue are included, so `host` is an upper bound.

Peak memory is the GPU memory of one variant, without that of the others. It includes memory of deleted tensors that
queued kernels may still use, and it is not measured on a CPU. --debug runs the
same code at toy size, which is traced but not compiled; its numbers mean nothing. Under a launcher, pass one pair and
one micro-batch size. With several ranks, only the engines run, images/s is the total over all ranks, and `host`
includes waits for other ranks.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.rows import write_rows  # noqa: E402
from benchmarks.step_rounds import Timed, measure  # noqa: E402
from benchmarks.step_variants import (  # noqa: E402
    CHOICES,
    VARIANTS,
    Pair,
    build_pair,
    generate_no_code,
)
from vitkd_ds.commands.plan.hardware import Hardware, hardware_of  # noqa: E402
from vitkd_ds.engine import processes, ranks  # noqa: E402

HEADER = (
    "pair   mb  variant    images/s      [min, max]       ratio    GiB  TFLOP/s    MFU  "
    "ms: teacher / forward / backward / update / host"
)


def rows_of(pair: Pair, micro_batch: int, everyone: list[Timed], hardware: Hardware | None) -> list[dict[str, Any]]:
    compiled = next((timed.images_per_s for timed in everyone if timed.name == "compiled"), [])
    rows = []
    for timed in everyone:
        speed = statistics.median(timed.images_per_s)
        tflops = speed / ranks.world_size() * pair.image_flops / 1e12
        ratios = [own / plain for own, plain in zip(timed.images_per_s, compiled)]
        row = {"pair": pair.name, "variant": timed.name, "micro_batch": micro_batch, "images_per_s": speed}
        row |= {"ratio": statistics.median(ratios) if ratios else None, "peak_gib": timed.peak_gib, "tflops": tflops}
        rows.append(row | {"mfu": tflops / hardware.peak_tflops if hardware else None})
    return rows


def line(row: dict[str, Any], timed: Timed) -> str:
    """Format a row as text, with the range of speeds over the rounds and the times of the parts."""
    low, high = min(timed.images_per_s), max(timed.images_per_s)
    cells = [f"{row['pair']:5} {row['micro_batch']:4} {row['variant']:9} {row['images_per_s']:9,.0f}"]
    cells.append(f"[{low:,.0f}, {high:,.0f}]".rjust(18))
    for key, width, digits in (("ratio", 6, ".3f"), ("peak_gib", 6, ".2f"), ("tflops", 8, ".3g"), ("mfu", 6, ".3f")):
        cells.append("-".rjust(width) if row[key] is None else f"{row[key]:{width}{digits}}")
    return " ".join(cells) + "  " + " / ".join(f"{ms:.1f}" for ms in timed.parts_ms.values())


def measure_cell(args: argparse.Namespace) -> dict[str, Any]:
    """In this process, measure the only pair and micro-batch size of `args`. Write the rows to --json while they are
    measured; return heading, formatted rows, and whether a variant failed. Collective."""
    device = processes.start_processes()
    if args.debug:
        torch.set_num_threads(1)  # toy models are slower with more threads
        generate_no_code()
    card = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    (name,), (micro_batch,) = args.pairs, args.micro_batches
    pair = build_pair(name, ds_config=args.ds_config, debug=args.debug)
    # A worker adds to the rows of the workers before it.
    earlier = json.loads(args.json.read_text()) if args.json and args.worker else []

    def save(everyone: list[Timed]) -> None:
        if args.json and ranks.rank() == 0:
            write_rows(args.json, earlier + rows_of(pair, micro_batch, everyone, hardware_of(card)))

    everyone, failed = measure(pair, micro_batch, args, device, save)
    save(everyone)
    rows = rows_of(pair, micro_batch, everyone, hardware_of(card))
    heading = f"{card}, {ranks.world_size()} ranks, torch {torch.__version__}, {args.repeats} x {args.steps} steps"
    lines = [line(row, timed) for row, timed in zip(rows, everyone)]
    lines += [f"{pair.name:5} {micro_batch:4} {text}" for text in failed]
    is_main = ranks.rank() == 0
    return {"heading": f"{heading}\n{HEADER}", "lines": lines, "has_failed": bool(failed), "is_main": is_main}


def measure_elsewhere(pair: str, micro_batch: int) -> dict[str, Any]:
    """Call `measure_cell` in a new process, with the other arguments of this command; return its result."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "cell.json")
        cell = ["--pairs", pair, "--micro_batches", str(micro_batch), "--worker", str(file)]
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], *cell])
        if done.returncode:
            text = f"{pair:5} {micro_batch:4} FAILED: exit code {done.returncode}"
            return {"heading": "", "lines": [text], "has_failed": True, "is_main": True}
        return json.loads(file.read_text())


def is_launched() -> bool:
    """Return whether a launcher started this process."""
    environ = dict(os.environ)
    processes.set_rank_variables(environ)
    return "RANK" in os.environ or int(environ["WORLD_SIZE"]) > 1


def parse() -> argparse.Namespace:
    """Read the command line; --debug changes the defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=["tiny", "small", "base"], choices=["tiny", "small", "base"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=[*VARIANTS, *CHOICES])
    parser.add_argument("--micro_batches", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="number of steps per round")
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--ds_config", default="ds_configs/zero2.json", help="DeepSpeed file for the student")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    if parser.parse_args().debug:
        parser.set_defaults(micro_batches=[4], repeats=2, steps=1, warmup=1)
    args = parser.parse_args()
    if is_launched() and len(args.pairs) * len(args.micro_batches) > 1:
        parser.error(
            f"under a launcher pass one pair and one micro-batch, got --pairs {' '.join(args.pairs)} and "
            f"--micro_batches {' '.join(map(str, args.micro_batches))}. Start the launcher once for each."
        )
    return args


def main() -> None:
    args = parse()
    if args.worker:
        args.worker.write_text(json.dumps(measure_cell(args)))
        processes.leave()
    here = is_launched()
    if args.json and not here:
        write_rows(args.json, [])
    heading = ""
    has_failed = False
    for pair, micro_batch in itertools.product(args.pairs, args.micro_batches):
        cell = measure_cell(args) if here else measure_elsewhere(pair, micro_batch)
        if cell["is_main"]:
            print(*([cell["heading"]] if not heading and cell["heading"] else []), *cell["lines"], sep="\n", flush=True)
            heading = heading or cell["heading"]
        has_failed |= cell["has_failed"]
    if here and not has_failed:
        processes.leave()
    sys.exit(has_failed)


if __name__ == "__main__":
    main()

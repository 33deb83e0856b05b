"""Host time (Python and kernel launches) of a training step, measured on one CPU core without a GPU.

    python benchmarks/host.py [--variants eager compiled replica shard] [--rounds 30] [--steps 10] [--json FILE]

With DeiT-Tiny and small micro-batches, a GPU waits for Python and for kernel launches. Their cost depends on the number
of blocks and parameters, not on the width. Therefore the models here have the real depth (12 blocks, 163 parameters
each), but almost no arithmetic: widths 24 and 48, 64-px images, micro-batch 4. The variants of `benchmarks/step.py`
take turns in one process. The time of each part is the median over all steps, in ms. `total_ms` is the median time of a
whole step. For `ratio`, the time of a round is divided by that of the plain compiled loop in the same round; the column
has the median over the rounds.
"""

import argparse
import json
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", DS_ACCELERATOR="cpu")  # read when torch is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch  # noqa: E402

from benchmarks.step_rounds import PARTS, parts_of_step, step  # noqa: E402
from benchmarks.step_variants import (  # noqa: E402
    RECIPES,
    MicroBatch,
    Pair,
    Variant,
    build_variant,
    generate_no_code,
    make_micro_batch,
)
from vitkd_ds.engine import processes  # noqa: E402
from vitkd_ds.recipes import build_run  # noqa: E402
from vitkd_ds.train.parts import build_models  # noqa: E402

VARIANTS = ("eager", "compiled", "replica", "shard")
MICRO_BATCH = 4
WIDTHS = {"embed_dim": 24, "num_heads": 2}, {"embed_dim": 48, "num_heads": 2}
"""Model arguments of student and teacher; their depth is that of the recipe."""


def build_pair(*, debug: bool) -> Pair:
    """Build the models of the Tiny recipe with toy width and their real depth (two blocks with `debug`)."""
    run = build_run(RECIPES["tiny"])
    student_args, teacher_args = (width | ({"depth": 2} if debug else {}) for width in WIDTHS)
    student = replace(run.student, model_args=student_args, drop_path_rate=0.0)
    teacher = replace(run.teachers["teacher"], checkpoint="random", model_args=teacher_args)
    data, optim = replace(run.data, image_size=64), replace(run.optim, ema_decay=0.0)
    run = replace(run, student=student, teachers={"teacher": teacher}, data=data, optim=optim)
    return Pair("tiny", run, build_models(run))


def time_round(variant: Variant, batch: MicroBatch, steps: int) -> list[dict[str, float]]:
    """Run some steps of a variant; for each step, return the milliseconds of each part."""
    return [{part: 1e3 * s for part, s in parts_of_step(variant, batch).items()} for _ in range(steps)]


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time all variants, which take turns; return a row for each."""
    device = processes.start_processes()
    torch.set_num_threads(1)
    pair = build_pair(debug=args.debug)
    batch = make_micro_batch(pair, MICRO_BATCH, device)
    variants = {name: build_variant(name, pair, device, MICRO_BATCH) for name in args.variants}
    for variant in variants.values():
        torch.manual_seed(2)  # for ViTKD's random mask
        for _ in range(args.warmup):
            step(variant, batch)
    rounds = [
        {name: time_round(variant, batch, args.steps) for name, variant in variants.items()} for _ in range(args.rounds)
    ]
    return [row_of(name, rounds) for name in variants]


def row_of(name: str, rounds: list[dict[str, list[dict[str, float]]]]) -> dict[str, Any]:
    """Return the medians over all steps, and the ratio to the compiled loop (None if this loop was not timed)."""
    steps = [times for each in rounds for times in each[name]]
    row: dict[str, Any] = {"variant": name}
    row |= {f"{part}_ms": statistics.median(times[part] for times in steps) for part in PARTS}
    row["total_ms"] = statistics.median(sum(times.values()) for times in steps)
    medians = [{who: statistics.median(sum(times.values()) for times in each[who]) for who in each} for each in rounds]
    ratios = [each[name] / each["compiled"] for each in medians if "compiled" in each]
    return row | {"ratio": statistics.median(ratios) if ratios else None}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=10, help="number of steps per round")
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--debug", action="store_true", help="two blocks and no compilation; the numbers mean nothing")
    return parser.parse_args()


def main() -> None:
    args = parse()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if args.debug:
        generate_no_code()
    rows = measure(args)
    print(f"one CPU core, torch {torch.__version__}, {args.rounds} rounds of {args.steps} steps; ms")
    print("variant    " + "".join(f"{part:>9}" for part in (*PARTS, "total", "ratio")))
    for row in rows:
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        print(
            f"{row['variant']:10} " + "".join(f"{row[f'{part}_ms']:9.2f}" for part in (*PARTS, "total")) + f"{ratio:>9}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    processes.leave()


if __name__ == "__main__":
    main()

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
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.step_variants import (  # noqa: E402
    CHOICES,
    VARIANTS,
    MicroBatch,
    Pair,
    Variant,
    build_pair,
    build_variant,
    generate_no_code,
    make_micro_batch,
)
from vitkd_ds.commands.plan.hardware import Hardware, hardware_of  # noqa: E402
from vitkd_ds.engine import processes, ranks  # noqa: E402
from vitkd_ds.engine.processes import peak_memory_gib, synchronised_time  # noqa: E402

PARTS = ("teacher", "forward", "backward", "update")
HEADER = (
    "pair   mb  variant    images/s      [min, max]       ratio    GiB  TFLOP/s    MFU  "
    "ms: teacher / forward / backward / update / host"
)
ROUNDING = 0.02
"""Allowed relative difference between the first losses of two variants, due to bf16 weights or bf16 autocast."""


@dataclass
class Timed:
    """A variant and its measurements."""

    name: str
    variant: Variant
    resting_bytes: int
    """Bytes of the variant's tensors on the GPU between two steps."""
    first_total: float
    images_per_s: list[float] = field(default_factory=list)
    peak_gib: float | None = None
    parts_ms: dict[str, float] = field(default_factory=dict)


def step(variant: Variant, batch: MicroBatch, mark: Callable[[], object] = lambda: None) -> torch.Tensor:
    """Run one step; call `mark` after each of its PARTS; return the total loss."""
    features = variant.teach(batch)
    mark()
    total = variant.forward(batch, features)
    mark()
    variant.backward(total)
    mark()
    variant.update()
    mark()
    return total


def parts_of_step(variant: Variant, batch: MicroBatch) -> dict[str, float]:
    """Run one step, which synchronises with the device after each part; return the seconds of each part."""
    times = [synchronised_time()]
    step(variant, batch, lambda: times.append(synchronised_time()))
    return {part: end - start for part, start, end in zip(PARTS, times, times[1:])}


def prepare(name: str, pair: Pair, batch: MicroBatch, args: argparse.Namespace, device: torch.device) -> Timed:
    """Build a variant and run some steps, so that compilation and memory allocation are not timed later."""
    before = allocated(device)
    variant = build_variant(name, pair, device, len(batch.images_BCHW))
    torch.manual_seed(2)  # for ViTKD's random mask
    first_total = step(variant, batch).item()
    for _ in range(args.warmup):
        step(variant, batch)
    synchronised_time()
    return Timed(name, variant, allocated(device) - before, first_total)


def allocated(device: torch.device) -> int:
    """Return the number of bytes of all tensors on the GPU, or 0 on a CPU."""
    return torch.cuda.memory_allocated() if device.type == "cuda" else 0


def time_round(timed: Timed, batch: MicroBatch, steps: int, device: torch.device) -> None:
    """Time one round of a variant; record its speed, and its peak memory without the tensors of other variants."""
    if device.type == "cuda":
        others = allocated(device) - timed.resting_bytes
        # At an allocation, torch takes back the memory of deleted tensors that the device has finished using. Otherwise
        # the peak would begin with memory of the previous variant.
        torch.empty(1, device=device)
        torch.cuda.reset_peak_memory_stats()
    start = synchronised_time()
    for _ in range(steps):
        step(timed.variant, batch)
    seconds = synchronised_time() - start
    timed.images_per_s.append(steps * len(batch.images_BCHW) * ranks.world_size() / seconds)
    if device.type == "cuda":
        timed.peak_gib = max(timed.peak_gib or 0, peak_memory_gib() - others / 2**30)


def time_parts(timed: Timed, batch: MicroBatch, steps: int) -> None:
    """Record the milliseconds of each part and of the host, as medians over the steps."""
    spent = [parts_of_step(timed.variant, batch) | {"host": host_s(timed.variant, batch)} for _ in range(steps)]
    timed.parts_ms = {part: 1e3 * statistics.median(seconds[part] for seconds in spent) for part in spent[0]}


def host_s(variant: Variant, batch: MicroBatch) -> float:
    """Run one step; return the seconds of the host, as defined at the top of this file."""
    start = synchronised_time()
    variant.backward(variant.forward(batch, variant.teach(batch)))
    launched, update = time.perf_counter(), synchronised_time()
    variant.update()
    return launched - start + time.perf_counter() - update


def measure(pair: Pair, micro_batch: int, args: argparse.Namespace, device: torch.device) -> list[Timed]:
    """Time all variants of one pair and micro-batch size, which take turns."""
    batch = make_micro_batch(pair, micro_batch, device)
    names = [name for name in args.variants if ranks.world_size() == 1 or name not in ("eager", "compiled")]
    everyone = [prepare(name, pair, batch, args, device) for name in names]
    reference = everyone[0].first_total
    for timed in everyone:
        if abs(timed.first_total - reference) > ROUNDING * abs(reference):
            raise ValueError(
                f"the variants compute different losses: {timed.first_total:.4f} ({timed.name}) and "
                f"{reference:.4f} ({everyone[0].name}), so their times cannot be compared"
            )
    for _ in range(args.repeats):
        for timed in everyone:
            time_round(timed, batch, args.steps, device)
    for timed in everyone:
        time_parts(timed, batch, args.steps)
    return everyone


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
    """In this process, measure the only pair and micro-batch size of `args`; return heading, rows and formatted rows.
    Collective."""
    device = processes.start_processes()
    if args.debug:
        torch.set_num_threads(1)  # toy models are slower with more threads
        generate_no_code()
    card = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    (name,), (micro_batch,) = args.pairs, args.micro_batches
    pair = build_pair(name, ds_config=args.ds_config, debug=args.debug)
    everyone = measure(pair, micro_batch, args, device)
    rows = rows_of(pair, micro_batch, everyone, hardware_of(card))
    heading = f"{card}, {ranks.world_size()} ranks, torch {torch.__version__}, {args.repeats} x {args.steps} steps"
    lines = [line(row, timed) for row, timed in zip(rows, everyone)]
    return {"heading": f"{heading}\n{HEADER}", "rows": rows, "lines": lines, "is_main": ranks.rank() == 0}


def measure_elsewhere(pair: str, micro_batch: int) -> dict[str, Any]:
    """Call `measure_cell` in a new process, with the other arguments of this command; return its result."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "cell.json")
        cell = ["--pairs", pair, "--micro_batches", str(micro_batch), "--worker", str(file)]
        subprocess.run([sys.executable, __file__, *sys.argv[1:], *cell], check=True)
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
    rows: list[dict[str, Any]] = []
    for pair, micro_batch in itertools.product(args.pairs, args.micro_batches):
        cell = measure_cell(args) if here else measure_elsewhere(pair, micro_batch)
        if cell["is_main"]:
            print(*([] if rows else [cell["heading"]]), *cell["lines"], sep="\n", flush=True)
            rows += cell["rows"]
            if args.json:  # now, so that a later failure loses nothing
                args.json.write_text(json.dumps(rows, indent=1))
    if here:
        processes.leave()


if __name__ == "__main__":
    main()

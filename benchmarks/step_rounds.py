"""Build and time the variants of one pair of models and one micro-batch size, for `benchmarks/step.py`."""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from benchmarks.step_variants import MicroBatch, Pair, Variant, build_variant, make_micro_batch
from vitkd_ds.commands.plan.hardware import HARDWARE
from vitkd_ds.commands.plan.inputs import inputs_of
from vitkd_ds.commands.plan.predict import CONTEXT_BYTES, Layout, memory_bytes
from vitkd_ds.engine import ranks
from vitkd_ds.engine.processes import peak_memory_gib, synchronised_time

PARTS = ("teacher", "forward", "backward", "update")
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


def measure(
    pair: Pair, micro_batch: int, args: argparse.Namespace, device: torch.device, save: Callable[[list[Timed]], None]
) -> tuple[list[Timed], list[str]]:
    """Time all variants of one pair and micro-batch size, which take turns. Return them, and a message per failure.

    A variant that fails is left out. `save` gets the variants as soon as one more is built and timed, and after each
    round of all of them.
    """
    batch = make_micro_batch(pair, micro_batch, device)
    everyone: list[Timed] = []
    failed: list[str] = []
    for name in args.variants:
        if ranks.world_size() > 1 and name in ("eager", "compiled"):
            continue
        if reason := too_large(pair, micro_batch, device):
            print(f"{pair.name:5} {micro_batch:4} {name:9} skipped: {reason}", flush=True)
            continue
        with reporting(name, failed):
            timed = prepare(name, pair, batch, args, device)
            check_total(timed, [*everyone, timed][0])
            time_round(timed, batch, args.steps, device)
            everyone.append(timed)
            save(everyone)
    for timed in everyone:
        timed.images_per_s.clear()  # these rounds were not in turn, but compiling the next variants may take minutes
    for _ in range(args.repeats):
        for timed in list(everyone):
            with reporting(timed.name, failed, everyone):
                time_round(timed, batch, args.steps, device)
        save(everyone)
    for timed in list(everyone):
        with reporting(timed.name, failed, everyone):
            time_parts(timed, batch, args.steps)
    return everyone, failed


@contextmanager
def reporting(name: str, failed: list[str], everyone: list[Timed] | None = None) -> Iterator[None]:
    """Add an error to `failed`, and remove its variant from `everyone`. With several ranks, raise it instead."""
    try:
        yield
    except Exception as error:
        if ranks.world_size() > 1:  # the other ranks would wait for this one
            raise
        failed.append(f"{name} FAILED: {type(error).__name__}: {error}")
        for timed in [timed for timed in everyone or () if timed.name == name]:
            everyone.remove(timed)


def check_total(timed: Timed, reference: Timed) -> None:
    """Raise ValueError if two variants compute different first losses."""
    if abs(timed.first_total - reference.first_total) > ROUNDING * abs(reference.first_total):
        raise ValueError(
            f"the variants compute different losses: {timed.first_total:.4f} ({timed.name}) and "
            f"{reference.first_total:.4f} ({reference.name}), so their times cannot be compared"
        )


def too_large(pair: Pair, micro_batch: int, device: torch.device) -> str:
    """Return why the GPU has too little free memory for one more variant, or "" if it may have enough.

    The estimate is that of `vitkd-ds plan` for a replica, without the CUDA context, which already exists.
    """
    if device.type != "cuda":
        return ""
    layout = Layout(1, ranks.world_size(), micro_batch, 1, "replica")
    parts = memory_bytes(inputs_of(pair.run, HARDWARE["h100"]), layout)  # the kind of GPU changes only the times
    needed = sum(parts.values()) - CONTEXT_BYTES
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    gib = f"{needed / 2**30:.1f} GiB are needed, and {free / 2**30:.1f} GiB are free"
    return gib if needed > free else ""

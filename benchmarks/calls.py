"""Count the ATen calls in a training step; needs no GPU.

    python benchmarks/calls.py [--debug] [DS_CONFIG ...]

Trains DeiT-Tiny with the teacher DeiT III-Small on a CPU, without compilation. Counts the ATen calls that compute (not
views) in one backward pass, in one optimizer step, and in the teacher's forward for each placement. The calls of the
backward pass are also counted without DeepSpeed: these are the calls of the models and losses. A call is not a kernel:
a GPU may launch several kernels per call, and a compiler fuses many calls into one.

There is one rank, with micro-batches of 2 images; the counts do not depend on the size of the micro-batch. The last
loss and gradient norm are printed, so that two DeepSpeed files can be compared bit for bit. Each DS_CONFIG is a
DeepSpeed file for the student. --debug uses toy models.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.step_variants import Engines, MicroBatch, Pair, build_pair, make_micro_batch  # noqa: E402
from vitkd_ds.engine import processes  # noqa: E402

VIEWS = (
    "alias as_strided detach expand narrow permute reshape select slice split squeeze t transpose unbind unsafe_view "
    "unsqueeze view _unsafe_view _reshape_alias split_with_sizes _local_scalar_dense is_same_size"
).split()
STEPS = 4


class Count(TorchDispatchMode):
    """Context manager that counts ATen calls, except those that return views."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ not in VIEWS:
            self.calls += 1
        return function(*args, **(kwargs or {}))


def own_backward_calls(pair: Pair, batch: MicroBatch, engines: Engines) -> int:
    """Return the number of calls in a backward pass of student and losses without DeepSpeed, in the engine's dtype."""
    dtype = engines.engine.dtype
    distiller = pair.distiller().to(batch.images_BCHW.device, dtype)
    images_BCHW = engines.normalization.apply(batch.images_BCHW, dtype)
    total = distiller(images_BCHW, batch.targets_BK, {"teacher": engines.teach(batch)}, batch.weights)["total"]
    with Count() as backward:
        total.backward()
    return backward.calls


def main() -> None:
    debug = "--debug" in sys.argv
    files = [word for word in sys.argv[1:] if word != "--debug"] or ["ds_configs/zero2.json"]
    device = processes.start_processes()
    torch.set_num_threads(1)
    for file in files:
        pair = build_pair("tiny", ds_config=file, debug=debug)
        batch = make_micro_batch(pair, 2, device)
        engines = Engines(pair, device, 2, "replica", compile="off")
        for number in range(STEPS):
            torch.manual_seed(number)
            total = engines.forward(batch, engines.teach(batch))
            with Count() as backward:
                engines.backward(total)
            with Count() as update:
                engines.update()
        own = own_backward_calls(pair, batch, engines)
        counts = f"backward {backward.calls} (its own arithmetic {own}), update {update.calls}"
        print(f"{file}: {counts}; last total {total.item()!r}, norm {engines.outcome.grad_norm!r}", flush=True)
    for placement in ("replica", "shard", "offload"):
        engines = Engines(pair, device, 2, placement, compile="off")
        for _ in range(2):
            with Count() as forward:
                engines.teach(batch)
        print(f"teacher, {placement}: {forward.calls}", flush=True)
    processes.leave()


if __name__ == "__main__":
    main()

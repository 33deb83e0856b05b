"""Check correctness on a GPU: loader, losses, CUDA graphs, resuming, skipping bad updates, offloaded teacher.

    python benchmarks/gpu_checks.py [--json FILE] [--backend torchvision]

Each check uses one rank and prints a line. Most of them compare results on the GPU with those on the CPU, or with those
of a second run. The exit code is 1 if a check fails. Without a GPU, the checks run on the CPU, which tests only the
code of the checks. --backend torchvision is for machines without FFCV.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.rows import write_rows  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
STEPS, STOP = 12, 7
RUN = (
    "--recipe=demo", "--debug", f"--max_steps={STEPS}", "--log_every_steps=1", "--checkpoint.every_steps=1",
    "--checkpoint.keep_last=100", "--global_batch_size=32", "--micro_batch_size_per_gpu=16", "--compile=false",
    "--trackers=",
)  # fmt: skip
CLOSE = 0.01
"""Allowed relative difference between losses on two devices, caused by rounding to bf16 over a few updates."""
BACKEND = ["ffcv"]
"""data.backend of all checks; `main` replaces it."""
ON_CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
NO_SKIPS = {"TORCHINDUCTOR_CUDAGRAPH_OR_ERROR": "1"}
"""Variable that makes inductor raise an error where it would run a graph without recording it as a CUDA graph."""


def train(folder: Path, *flags: str, **variables: str) -> list[dict[str, Any]]:
    """Train in a new process, as a user would; return the lines of metrics.jsonl as dicts.

    `variables` are added to the environment.
    """
    environ = os.environ | variables
    command = [sys.executable, str(ROOT / "train.py"), *RUN, f"--data.backend={BACKEND[0]}", f"--workdir={folder}"]
    command += flags
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode} from {' '.join(command)}: {done.stderr[-2000:]}")
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def totals(lines: list[dict[str, Any]]) -> list[float]:
    """Return the total loss of each step."""
    return [line["total"] for line in lines if "total" in line]


def check_step(folder: Path) -> str:
    """Check that the losses of a training run on this device are close to those on the CPU."""
    # Without ViTKD's generation term, whose random mask differs between devices.
    flags = ("--losses.vitkd.beta=0",)
    here, there = totals(train(folder / "here", *flags)), totals(train(folder / "cpu", *flags, **ON_CPU))
    worst = max(abs(a - b) / abs(b) for a, b in zip(here, there, strict=True))
    assert len(here) == STEPS and worst < CLOSE, f"losses differ by up to {worst:.2%}: {here} and {there}"
    return f"{STEPS} updates: losses within {worst:.2%} of the CPU's"


def check_graphs(folder: Path) -> str:
    """Check that losses with CUDA graphs are close to those without, with a replicated teacher, also after resuming.

    Resuming skips the teacher check, so the teacher's first call is then in the first update.
    """
    flags = ("--teacher.placement=replica",)
    plain = totals(train(folder / "default", *flags, "--compile=default"))
    flags += ("--compile=reduce-overhead",)
    recorded = totals(train(folder / "graphs", *flags, **NO_SKIPS))
    resume = f"--resume={folder / 'graphs'}/checkpoints/step{STOP:08d}"
    resumed = totals(train(folder / "resumed", *flags, resume, **NO_SKIPS))
    assert len(plain) == STEPS and len(resumed) == STEPS - STOP, f"{len(plain)} and {len(resumed)} updates"
    pairs = [*zip(recorded, plain, strict=True), *zip(resumed, plain[STOP:], strict=True)]
    worst = max(abs(a - b) / abs(b) for a, b in pairs)
    assert worst < CLOSE, f"losses differ by up to {worst:.2%}: {recorded}, {resumed} (resumed) and {plain}"
    return f"{STEPS} updates, and {STEPS - STOP} after resuming: losses of CUDA graphs within {worst:.2%} of others'"


def check_resume(folder: Path) -> str:
    """Check that a run that resumes halfway ends with the weights of an uninterrupted run if it is deterministic."""
    found = []
    for name, flags in (("as it ships", ()), ("--deterministic", ("--deterministic",))):
        whole, split = folder / f"whole{len(flags)}", folder / f"split{len(flags)}"
        train(whole, *flags)
        # Resume a checkpoint of the whole run, because a shorter first run would have other learning rates.
        train(split, f"--resume={whole}/checkpoints/step{STOP:08d}", *flags)
        hashes = {hashlib.sha256((each / "student.safetensors").read_bytes()).hexdigest() for each in (whole, split)}
        found.append(f"{name}: {'the same bits' if len(hashes) == 1 else 'OTHER BITS'}")
    assert "OTHER" not in found[1], "; ".join(found)
    return "; ".join(found)


def check_veto(folder: Path) -> str:
    """Check that an update with a NaN loss and all later updates are skipped. A GPU uses fused AdamW here."""
    import torch

    from tests.engine import tiny
    from vitkd_ds.engine.processes import start_processes

    device = start_processes()
    engine, _ = tiny.make_engine(tiny.RUN)
    generator = torch.Generator(device).manual_seed(0)
    images = torch.randn(16, 3, 16, 16, generator=generator, device=device).to(engine.dtype)
    targets = torch.full((16, 10), 0.1, device=device)
    weights = {name: torch.tensor(float(name == "ce"), device=device) for name in tiny.RUN.losses.active()}
    teacher = tiny.make_models()[1].to(device)
    features = tiny.tap_features(teacher, images.float())
    seen, outcomes = [engine.student_weights()["head.weight"]], []
    for step in range(3):
        engine.set_lr(1e-3)
        bad = targets * (float("nan") if step == 1 else 1.0)
        total = engine(images, bad, {"teacher": features}, weights)["total"]
        engine.backward(total)
        outcomes.append(engine.step(veto=(~torch.isfinite(total)).float()))
        seen.append(engine.student_weights()["head.weight"])
    assert [outcome.is_applied for outcome in outcomes] == [True, False, False]
    assert not torch.equal(seen[0], seen[1]), "the first update must move the weights"
    assert torch.equal(seen[1], seen[2]) and torch.equal(seen[2], seen[3]) and torch.isfinite(seen[3]).all()
    return f"on {device}: the update and all later ones are skipped"


def check_loader(folder: Path) -> str:
    """Check that the loader gives a busy device and the CPU the same micro-batches, pixel by pixel."""
    import torch

    from vitkd_ds.data.loader import build_loader
    from vitkd_ds.recipes import build_run

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = build_run("demo")
    data = replace(run.data, backend=BACKEND[0])
    sizes = {"micro_batch_size": 32, "global_batch_size": 32, "rank": 0, "world_size": 1, "seed": 0}
    here, there = (build_loader(data, split="train", device=where, **sizes) for where in (device, "cpu"))
    kept, work = [], torch.ones(1024, 1024, device=device)
    with closing(here.epoch(0)) as micro_batches:
        for (images, labels), _ in zip(micro_batches, range(64)):
            for _ in range(20):  # keeps the device behind the host, so that a copy in the wrong order is noticed
                work = (work @ work).clamp(-1, 1)
            kept.append((images.clone(), labels.clone()))
    with closing(there.epoch(0)) as micro_batches:
        for (images, labels), (expected, expected_labels) in zip(kept, micro_batches):
            assert torch.equal(images.cpu(), expected) and torch.equal(labels.cpu(), expected_labels)
    return f"{sum(len(labels) for _, labels in kept)} images on {device} equal the CPU's"


def check_offload(folder: Path) -> str:
    """Check that an offloaded teacher has a replica's logits, and needs memory for at most two blocks more."""
    import torch

    from vitkd_ds.engine import teacher as engine_teacher
    from vitkd_ds.engine.processes import start_processes

    device = start_processes()
    replica, base, _, _ = offloaded(device, "replica")
    features, peak, block_bytes, rest_bytes = offloaded(device, "offload")
    assert torch.equal(replica, features), "features differ"
    more = peak - base
    assert more <= 2 * block_bytes + rest_bytes + 2**21, f"{more} bytes more than a replica; a block has {block_bytes}"
    paced = engine_teacher.runs_ahead
    engine_teacher.runs_ahead = lambda: False  # DeepSpeed's own behaviour, without our pacing
    try:
        _, alone, _, _ = offloaded(device, "offload")
    finally:
        engine_teacher.runs_ahead = paced
    blocks, unpaced = (value / block_bytes for value in (more, alone - base))
    return f"on {device}: {blocks:.2f} blocks of memory more than a replica's forward; without pacing {unpaced:.2f}"


def offloaded(device: Any, placement: str) -> tuple[Any, int, int, int]:
    """Run a teacher with 12 blocks. Return its logits, the additional peak memory of a forward in bytes, the bytes of
    one block, and the bytes of the weights outside the blocks."""
    import timm
    import torch

    from tests.engine import tiny
    from vitkd_ds.engine.teacher import Teacher

    is_gpu = device.type == "cuda"
    # On a GPU, the model is so large that computing a block takes longer than copying it.
    pixels, num_images, width = (224, 256, 1024) if is_gpu else (64, 2, 64)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_images, 3, pixels, pixels), generator=generator, dtype=torch.uint8).to(device)
    torch.manual_seed(0)
    size = {"img_size": pixels, "embed_dim": width, "depth": 12, "num_heads": 16, "num_classes": 10}
    model = timm.create_model("deit3_large_patch16_224", **size)
    block_bytes, all_bytes = (2 * sum(p.numel() for p in part.parameters()) for part in (model.blocks[0], model))
    config = tiny.TeacherConfig("deit3_large_patch16_224", checkpoint="random", placement=placement)
    run = replace(tiny.RUN, data=replace(tiny.RUN.data, image_size=pixels), teachers={"teacher": config}, compile="off")
    teacher = Teacher(model, run, device=device, micro_batch_size=num_images)
    for _ in range(3):  # the first forward needs more memory, because DeepSpeed records the order of modules
        features, peak = with_peak(lambda: teacher(images), is_gpu=is_gpu)
    return features.logits_BK, peak, block_bytes, all_bytes - 12 * block_bytes


def with_peak(function: Callable[[], Any], *, is_gpu: bool) -> tuple[Any, int]:
    """Call a function. Return its result and the additional peak GPU memory in bytes (0 without a GPU).

    Active bytes include memory of deleted tensors that the device may still use; allocated bytes do not.
    """
    import torch

    if not is_gpu:
        return function(), 0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # also takes back memory of deleted tensors, which would still count as active
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["active_bytes.all.current"]
    result = function()
    torch.cuda.synchronize()
    return result, torch.cuda.memory_stats()["active_bytes.all.peak"] - before


CHECKS: dict[str, Callable[[Path], str]] = {
    "veto": check_veto,
    "loader": check_loader,
    "offload": check_offload,
    "step": check_step,
    "resume": check_resume,
    "graphs": check_graphs,
}
"""All checks, the cheapest first, because a time limit may stop the last ones."""


def results() -> Iterator[tuple[str, bool, str]]:
    """Run all checks; for each, yield its name, whether it passed, and its message."""
    for name, check in CHECKS.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                yield name, True, check(Path(folder))
            except Exception as error:  # the other checks still run
                yield name, False, f"{type(error).__name__}: {error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--backend", default=BACKEND[0], choices=["ffcv", "torchvision"])
    args = parser.parse_args()
    BACKEND[0] = args.backend
    rows = []
    for name, passed, found in results():
        print(f"{name:8}{'ok' if passed else 'FAILED':8}{found}", flush=True)
        rows.append({"check": name, "passed": passed, "found": found})
        if args.json:
            write_rows(args.json, rows)
    sys.stdout.flush()
    os._exit(not all(row["passed"] for row in rows))  # FFCV's threads may abort a normal exit


if __name__ == "__main__":
    main()

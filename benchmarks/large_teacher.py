"""Measure time and memory of a large sharded teacher on CPU ranks, during start-up and in a training step.

    python benchmarks/large_teacher.py [--model vit_7b_patch16_dinov3] [--ranks 2] [--placement shard] [--folder DIR]

Writes random bf16 weights for the teacher, block by block (13.4 GB for 6,716 M parameters). Distils a DeiT-Small with
the loss terms `feature` and `relation` for two updates, with one image per rank. Deletes the weights at the end. Each
rank prints the seconds until its engines are ready, the seconds of each update, and its peak memory. The memory of a
process that has imported everything and joined the process group is subtracted. Peak memory is VmHWM of /proc. It
includes pages of the file that is being read, and the student with its losses and optimizer.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from itertools import repeat
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
INDEX = "model.safetensors.index.json"
LIMIT_S = 3600


def write_weights(model_name: str, folder: Path) -> int:
    """Write random bf16 weights (a file per block, one for the rest, an index); return the number of parameters."""
    with torch.device("meta"):
        model = timm.create_model(model_name, num_classes=0)
    groups: dict[str, list[str]] = {}
    for name in model.state_dict():
        groups.setdefault(".".join(name.split(".")[:2]) if name.startswith("blocks.") else "rest", []).append(name)
    for group, names in groups.items():
        shapes = {name: model.state_dict()[name].shape for name in names}
        tensors = {name: torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02) for name, shape in shapes.items()}
        save_file(tensors, folder / f"{group}.safetensors")
    listed = {name: f"{group}.safetensors" for group, names in groups.items() for name in names}
    (folder / INDEX).write_text(json.dumps({"weight_map": listed}))
    return sum(p.numel() for p in model.parameters())


def memory_gib(key: str) -> float:
    """Return this process's peak memory (key VmHWM) or current memory (key VmRSS) in GiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 2**20


def work(args: argparse.Namespace) -> None:
    """On one rank, start both engines as in training, make two updates on random images, and print the results."""
    from vitkd_ds.cli import parse_run
    from vitkd_ds.engine import ranks
    from vitkd_ds.engine.processes import leave, start_processes
    from vitkd_ds.engine.student import student_ds_config
    from vitkd_ds.train.parts import build_models, start_engines
    from vitkd_ds.train.schedule import make_schedule
    from vitkd_ds.train.step import settle, train_step

    device = start_processes()
    torch.set_num_threads(1)
    ranks.barrier()
    bare, start = memory_gib("VmRSS"), time.perf_counter()
    flags = {
        "recipe": "deit_small_from_deit3_base", "data.train": "demo", "data.val": "demo", "debug": "true",
        "teacher.model": args.model, "teacher.checkpoint": str(args.folder / INDEX), "losses.ce.weight": "0",
        "teacher.placement": args.placement, "losses.nkd.weight": "0", "losses.vitkd.weight": "0",
        "losses.feature.weight": "1", "losses.feature.target": "layer_norm", "losses.relation.weight": "1",
        "losses.relation.queue": "16",
        "global_batch_size": str(args.ranks), "micro_batch_size_per_gpu": "1",
    }  # fmt: skip
    run = parse_run((), flags)
    config = student_ds_config(run, micro_batch_size=1, accumulation_steps=1)
    schedule = make_schedule(run, steps_per_epoch=10, accumulation_steps=1)
    parts = start_engines(run, config, build_models(run), schedule, device)
    ranks.barrier()
    ready_s, loaded = time.perf_counter() - start, memory_gib("VmHWM")
    images = torch.randint(256, (1, 3, 224, 224), dtype=torch.uint8)
    updates = []
    for step in range(2):
        start = time.perf_counter()
        update = train_step(parts, repeat((images, torch.zeros(1, dtype=torch.int64))), step)
        settle(update, run)
        updates.append(time.perf_counter() - start)
    kept = sum(getattr(p, "ds_tensor", p).numel() for p in parts.teachers["teacher"].module.parameters()) * 2 / 2**30
    seen = {
        "rank": ranks.rank(), "bare_gib": bare, "shard_gib": kept, "loaded_gib": loaded - bare,
        "peak_gib": memory_gib("VmHWM") - bare, "ready_s": ready_s, "updates_s": updates,
        "losses": {name: value.item() for name, value in update.terms.items()},
    }  # fmt: skip
    print(json.dumps(seen), flush=True)
    leave()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_7b_patch16_dinov3")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--placement", default="shard")
    parser.add_argument("--folder", type=Path, default=Path("runs/large_teacher"))
    args = parser.parse_args()
    if "RANK" in os.environ:
        return work(args)
    args.folder.mkdir(parents=True, exist_ok=True)
    try:
        num_parameters = write_weights(args.model, args.folder)
        print(
            f"{args.model}: {num_parameters / 1e6:,.0f} M parameters, {2 * num_parameters / 2**30:.2f} GiB", flush=True
        )
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        common = {"WORLD_SIZE": str(args.ranks), "LOCAL_WORLD_SIZE": str(args.ranks), "MASTER_ADDR": "127.0.0.1"}
        common |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        started = [
            subprocess.Popen(
                [sys.executable, *sys.argv], env=os.environ | common | {"RANK": str(r), "LOCAL_RANK": str(r)}
            )
            for r in range(args.ranks)
        ]
        codes = [process.wait(LIMIT_S) for process in started]
        sys.exit(max(map(abs, codes)))
    finally:
        shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()

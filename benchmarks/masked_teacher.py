"""Measure the cost of a teacher that sees half of the patches (MaskedKD): seconds on one CPU core, and GFLOPs.

    taskset -c 0 python benchmarks/masked_teacher.py [--images 16] [--rounds 5]

Each round times two steps of each pair of models, in bf16: one in which the teacher sees all 196 patches, and one in
which it sees 98, selected by the student's attention. A step is the student's forward and backward and the teacher's
forward. The output has the minimum over the rounds, without the first.
"""

import argparse
import sys
import time
from pathlib import Path

import timm
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from vitkd_ds.models.build import without_fused_attention  # noqa: E402
from vitkd_ds.models.cost import cost_of  # noqa: E402
from vitkd_ds.models.selection import KeptTokens, logits_and_attention  # noqa: E402

PAIRS = {"deit_tiny_patch16_224": "deit3_small_patch16_224", "deit_small_patch16_224": "deit3_base_patch16_224"}
KEPT = 98


def seconds(student: torch.nn.Module, teacher: torch.nn.Module, images: torch.Tensor, kept: int) -> tuple[float, float]:
    """Run one step with `kept` patches (0 for all); return the teacher's seconds, and those of both models together."""
    start = time.perf_counter()
    if kept:
        features, attention = logits_and_attention(student, images)
        logits, numbers = features.logits_BK, attention.topk(kept).indices
    else:
        logits, numbers = student(images), None
    before = time.perf_counter()
    teacher.patch_drop.kept_BL = numbers
    with torch.no_grad():
        teacher(images)
    after = time.perf_counter()
    logits.sum().backward()
    return after - before, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = torch.randn(args.images, 3, 224, 224).bfloat16()
    for names in PAIRS.items():
        student, teacher = (timm.create_model(name).bfloat16() for name in names)
        for model in (student, teacher.eval()):
            without_fused_attention(model)
        teacher.patch_drop = KeptTokens(teacher.num_prefix_tokens)
        found = [[seconds(student, teacher, images, kept) for kept in (0, KEPT)] for _ in range(args.rounds)][1:]
        for part, name in enumerate(("teacher", "together")):
            whole, kept = (min(times[i][part] for times in found) for i in (0, 1))
            print(f"{' <- '.join(names)}  {name}: {whole:.2f} -> {kept:.2f} s ({kept / whole:.2f})")
        with torch.device("meta"):
            costs = [cost_of(timm.create_model(names[1]), 224, keep_tokens=kept)["gflops"] for kept in (0, KEPT)]
        print(f"{names[1]}: {costs[0]:.1f} -> {costs[1]:.1f} GFLOPs per image")


if __name__ == "__main__":
    main()

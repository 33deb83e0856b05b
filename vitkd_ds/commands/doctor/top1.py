"""The teacher against its published figure, on a few hundred validation images.

A wrong file, class order, crop or normalisation shows here in seconds, and in a student only after days.
"""

import json
import math
import time
from contextlib import closing
from dataclasses import replace

import torch

from vitkd_ds.commands.doctor.patient import Patient, Skipped, needed
from vitkd_ds.commands.doctor.rows import Row, error, ok, warning
from vitkd_ds.config.run import Run
from vitkd_ds.engine import ranks
from vitkd_ds.models.build import teacher_file
from vitkd_ds.train.parts import check_teacher_classes, open_split

NUM_IMAGES = 512
MOST_S = 20.0
"""Most seconds; a large teacher on a CPU sees fewer images."""
MICRO_BATCH = {"cuda": 64, "cpu": 16}
FAR_PERCENT = 5.0
"""An error if the whole interval is farther than this below the figure; a warning if it is below at all."""
Z = 1.96
"""Of a 95 % interval."""

PUBLISHED = {
    ("deit3_small_patch16_224.fb_in22k_ft_in1k", 1.0): 83.08,
    ("deit3_base_patch16_224.fb_in22k_ft_in1k", 1.0): 85.73,
    ("deit3_large_patch16_224.fb_in22k_ft_in1k", 1.0): 86.99,
    ("deit3_small_patch16_224.fb_in22k_ft_in1k", 0.875): 82.76,
    ("deit3_base_patch16_224.fb_in22k_ft_in1k", 0.875): 85.48,
}
"""Top-1 in percent on ImageNet's 50,000 validation images, by timm's name and data.val_crop_fraction. At 1.0: timm's
results-imagenet.csv; at 0.875: Small of WTTM (ICLR 2024, table 13), Base of cls_KD's issue 5; Large is not known."""
DEMO_TEACHER = 89.10
"""Top-1 of the packaged teacher on the packaged 2,000 images (EXPERIMENTS.md)."""


def check_top1(patient: Patient) -> list[Row]:
    """Measure the teacher through its engine. Collective."""
    run = patient.run
    if run.teacher is None:
        raise Skipped("the recipe has no teacher")
    if not patient.is_teacher_trained:
        raise Skipped("needs the teacher's weights, which are not at hand")
    needed(patient.parts, "the engines")
    classes = needed(patient.loaders.get("val"), "data.val").classes
    ranks.together(lambda: check_teacher_classes(run, classes))
    num_images, num_right = count_right(patient)
    return [top1_row(num_images, num_right, published_top1(run), num_classes=run.data.num_classes)]


def count_right(patient: Patient) -> tuple[int, int]:
    """Images that the teacher saw and those it was right about, over all ranks. Collective."""
    run, device, teacher = patient.run, patient.device, patient.parts.teacher
    data = replace(run.data, max_val_images=min(NUM_IMAGES, run.data.max_val_images or NUM_IMAGES))
    micro = min(MICRO_BATCH[device.type], patient.split.micro_batch_size)
    loader = open_split(replace(run, data=data), "val", micro, device)
    counts = torch.zeros(2, dtype=torch.float64, device=device)
    start = time.monotonic()
    with closing(loader.epoch(0)) as micro_batches:
        for _ in range(loader.num_batches):
            images_BCHW, labels_B = ranks.together(lambda: next(micro_batches))
            best_B = teacher(images_BCHW).logits_BK.argmax(1)
            counts += torch.stack([(labels_B >= 0).sum(), (best_B == labels_B).sum()])
            if not ranks.all_true(time.monotonic() - start < MOST_S, device):
                break
    num_images, num_right = ranks.sum_over_ranks(counts).tolist()
    return int(num_images), int(num_right)


def published_top1(run: Run) -> tuple[float, str] | None:
    """The teacher's figure in percent and where it is from; None if none is known.

    That of a .json beside the file, as our exports have, else the one of the model's name; at another crop where this
    one has none.
    """
    teacher, data = run.teacher, run.data
    if teacher.checkpoint == "demo" and data.val == "demo":
        return DEMO_TEACHER, "EXPERIMENTS.md"
    beside = teacher_file(teacher).with_suffix(".json")
    if teacher.checkpoint != "hub" and beside.is_file() and "top1" in (described := json.loads(beside.read_text())):
        return described["top1"], str(beside)
    for fraction in (data.val_crop_fraction, 1.0) if data.image_size == 224 and data.num_classes == 1000 else ():
        if (teacher.model, fraction) in PUBLISHED:
            return PUBLISHED[teacher.model, fraction], f"published at crop {fraction:g}"
    return None


def interval(num_images: int, num_right: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion, in percent."""
    part, z2 = num_right / num_images, Z * Z
    centre = (part + z2 / (2 * num_images)) / (1 + z2 / num_images)
    half = Z * math.sqrt(part * (1 - part) / num_images + z2 / (4 * num_images**2)) / (1 + z2 / num_images)
    return 100 * (centre - half), 100 * (centre + half)


def top1_row(num_images: int, num_right: int, published: tuple[float, str] | None, *, num_classes: int) -> Row:
    """Compare what was counted with the published figure, or else with chance."""
    low, high = interval(num_images, num_right)
    found = f"top-1 {100 * num_right / num_images:.1f} % on {num_images} images, 95 % interval [{low:.1f}, {high:.1f}]"
    advice = "check that data.val has the classes in the teacher's order, its crop, and that the weights are its own"
    if published is None:
        if low < 100 / num_classes:
            return error("teacher top-1", f"{found}, which is no better than chance", advice)
        return ok("teacher top-1", f"{found}; no published figure is known of this file")
    figure, source = published
    found = f"{found}, expected {figure:.2f} ({source})"
    if high < figure - FAR_PERCENT:
        return error("teacher top-1", found, advice)
    return warning("teacher top-1", found, advice) if high < figure else ok("teacher top-1", found)

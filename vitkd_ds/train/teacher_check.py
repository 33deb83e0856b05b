"""Check before training that a teacher classifies images as well as expected.

The check reveals a wrong file, class order, crop or normalisation in seconds. Without it, such an error would show only
in the student's accuracy, after days. Every new run makes this check, and so does `vitkd-ds doctor`.
"""

import logging
import time
from contextlib import closing
from dataclasses import replace
from typing import Any, Callable, Literal

import torch
from torch import Tensor

from vitkd_ds.config.image_sizes import sizes_of
from vitkd_ds.config.run import Run, TeacherConfig
from vitkd_ds.config.run_folder import description_beside
from vitkd_ds.config.teachers import called, role_of
from vitkd_ds.engine import ranks
from vitkd_ds.models import build
from vitkd_ds.models.features import Features, tap_features
from vitkd_ds.train.loaders import open_split
from vitkd_ds.train.parts import Parts, split_of, teacher_needs
from vitkd_ds.train.statistics import wilson_interval

logger = logging.getLogger(__name__)

IMAGES = 512
"""Maximum number of validation images that a teacher classifies in the check."""
MOST_S = 20.0
"""Time limit in seconds. A large teacher on a CPU therefore classifies fewer images."""
ENOUGH = 100
"""Minimum number of images for an error. With fewer images, a teacher at chance level causes only a warning."""
NEAR_CHANCE = 0.1
"""A teacher counts as guessing only if its interval ends below chance + NEAR_CHANCE * (100 % - chance).

A limit at a multiple of chance would not work: with two classes, 1.5 times chance is 75 %.
"""
MICRO_BATCH = {"cuda": 64, "cpu": 16}
FAR_PERCENT = 5.0
"""Tolerance in percentage points for a teacher whose interval ends below the expected top-1.

Within the tolerance, the result is a warning. If the interval ends further below, the result is an error.
"""
PUBLISHED = {
    ("deit3_small_patch16_224.fb_in22k_ft_in1k", 1.0): 83.08,
    ("deit3_base_patch16_224.fb_in22k_ft_in1k", 1.0): 85.73,
    ("deit3_large_patch16_224.fb_in22k_ft_in1k", 1.0): 86.99,
    ("deit3_small_patch16_224.fb_in22k_ft_in1k", 0.875): 82.76,
    ("deit3_base_patch16_224.fb_in22k_ft_in1k", 0.875): 85.48,
}
"""Top-1 in percent on ImageNet's 50,000 validation images, by timm name and data.val_crop_fraction.

The figures at 1.0 are from timm's results-imagenet.csv. At 0.875, the figure for the small model is from WTTM (ICLR
2024, table 13), and that for the base model from issue 5 of cls_KD. No figure is known for the large model at 0.875.
"""
DEMO_TEACHER_TOP1 = 91.15
"""Top-1 in percent of the packaged teacher on the packaged 2,000 images (EXPERIMENTS.md)."""
ADVICE = "check that data.val uses the teacher's class order and crop, and that the weights belong to this model"

Level = Literal["ok", "warning", "error"]


def check_teacher(parts: Parts) -> None:
    """If a loss term compares a teacher's logits, check that teacher's top-1 on a few validation images. Collective.

    A warning is logged if the top-1 is below the expected top-1 or cannot be distinguished from chance. With
    data.image_sizes, the top-1 at each smaller size is logged, too.

    Raises:
        ValueError: a teacher is no better than chance, on ENOUGH images or more.
    """
    run = parts.run
    for name, teacher in run.teachers.items():
        if not run.losses_of(name).needs.logits or teacher.checkpoint == "random":
            continue
        counts = count_right(run, parts.teachers[name], parts.device, classes=parts.train_loader.classes)
        level, found = judge(run, teacher, *counts)
        if counts[0] >= ENOUGH and is_guess(run, *counts):
            raise ValueError(f"{called(name)} does not know the classes of the data: {found}; {ADVICE}")
        text = f"{found}: {ADVICE}" if level != "ok" else found
        said = logging.INFO if level == "ok" or ranks.rank() else logging.WARNING
        logger.log(said, "%s: %s", role_of(name), text)
        for size in sizes_of(run.data.image_sizes)[:-1]:
            smaller: Any = replace(run.data, image_size=size)
            counts = count_right(
                replace(run, data=smaller), parts.teachers[name], parts.device, classes=parts.train_loader.classes
            )
            logger.info("%s at %d px: %s", role_of(name), size, describe_top1(*counts))


def check_fp8(parts: Parts) -> None:
    """Log how much each teacher's outputs differ between fp8 and bf16, on one validation micro-batch. Collective."""
    for name, teacher in parts.run.teachers.items():
        if teacher.fp8 and teacher.checkpoint != "random":  # rebuilding would draw other random weights
            _check_fp8(parts, name)


def _check_fp8(parts: Parts, name: str) -> None:
    """Compare one teacher in fp8 with itself in bf16 and log the difference. Collective."""
    run = parts.run
    teacher = parts.teachers[name]
    plain = build.build_teacher(run.teachers[name], run.data, role=role_of(name), **teacher_needs(run, name))
    with closing(parts.val_loader.epoch(0)) as micro_batches, torch.no_grad():
        images_BCHW, _ = ranks.together(lambda: next(micro_batches))
        inputs_BCHW = teacher.normalization.apply(images_BCHW, teacher.dtype)
        plain = plain.to(parts.device, teacher.dtype)
        plain_BK = tap_features(plain, inputs_BCHW, None).logits_BK.float()
        found_BK = teacher(images_BCHW).logits_BK.float()
    change = 100 * ((found_BK - plain_BK).norm() / plain_BK.norm()).item()
    same = 100 * (found_BK.argmax(1) == plain_BK.argmax(1)).float().mean().item()
    answers = f", and {same:.1f} % of {len(images_BCHW)} answers stay the same" if name in parts.answering else ""
    logger.info(f"{role_of(name)} in fp8 instead of bf16: outputs change by {change:.2f} % (relative norm){answers}")


def count_right(
    run: Run, teacher: Callable[[Tensor], Features], device: torch.device, *, classes: tuple[str, ...]
) -> tuple[int, int]:
    """Return how many validation images the teacher classified, and how many of them correctly. Collective.

    The images are evenly spread over the validation file.
    """
    data: Any = replace(run.data, max_val_images=min(IMAGES, run.data.max_val_images or IMAGES))
    micro = min(MICRO_BATCH[device.type], split_of(run).micro_batch_size)  # the teacher's buffers have this size
    loader = ranks.together(lambda: open_split(replace(run, data=data), "val", micro, device, classes=classes))
    counts = torch.zeros(2, dtype=torch.float64, device=device)
    start = time.monotonic()
    with closing(loader.epoch(0)) as micro_batches:
        for _ in range(loader.num_batches):
            images_BCHW, labels_B = ranks.together(lambda: next(micro_batches))
            best_B = teacher(images_BCHW).logits_BK.argmax(1)
            counts += torch.stack([(labels_B >= 0).sum(), (best_B == labels_B).sum()])
            if not ranks.all_true(time.monotonic() - start < MOST_S, device):
                break
    num_images, num_right = map(int, ranks.sum_over_ranks(counts).tolist())
    return num_images, num_right


def is_guess(run: Run, num_images: int, num_right: int) -> bool:
    """Return whether the top-1 is at chance level: its 95 % interval starts below chance and ends near chance."""
    chance = 100 / run.data.num_classes
    (low, high) = wilson_interval(num_images, num_right)
    return low < chance and high < chance + NEAR_CHANCE * (100 - chance)


def describe_top1(num_images: int, num_right: int) -> str:
    """Return words for a top-1 and its 95 % interval."""
    low, high = wilson_interval(num_images, num_right)
    return f"top-1 {100 * num_right / num_images:.1f} % on {num_images} images, 95 % interval [{low:.1f}, {high:.1f}]"


def judge(run: Run, teacher: TeacherConfig, num_images: int, num_right: int) -> tuple[Level, str]:
    """Compare a teacher's top-1 with its published top-1, and with chance. Return the level and a description."""
    low, high = wilson_interval(num_images, num_right)
    found = describe_top1(num_images, num_right)
    published = published_top1(run, teacher)
    if is_guess(run, num_images, num_right):
        return "error", f"{found}, which is no better than chance"
    if published is None and low < 100 / run.data.num_classes:
        return "warning", f"{found}, which cannot be told from chance with {num_images} images"
    if published is None:
        order = "" if _states_classes(teacher) else ", and no .json file next to it lists its classes"
        return "ok", f"{found}; no published top-1 is known for this file{order}"
    figure, source = published
    level = "error" if high < figure - FAR_PERCENT else "warning" if high < figure else "ok"
    return level, f"{found}, expected {figure:.2f} ({source})"


def published_top1(run: Run, teacher: TeacherConfig) -> tuple[float, str] | None:
    """Return a teacher's published top-1 in percent and its source, or None if unknown.

    The figure is read from the .json file next to the teacher's weights if that file has one. Otherwise it is looked up
    in PUBLISHED, first for the run's crop fraction and then for a crop fraction of 1.
    """
    data = run.data
    if teacher.head:
        return None  # published figures are for the original head
    if teacher.checkpoint == "demo" and data.val == "demo" and not teacher.image_size:
        return DEMO_TEACHER_TOP1, "EXPERIMENTS.md"
    beside = build.teacher_file(teacher).with_suffix(".json")
    if teacher.checkpoint != "hub" and "top1" in (described := description_beside(build.teacher_file(teacher))):
        return described["top1"], str(beside)
    is_usual = (teacher.image_size or data.image_size) == 224 and data.num_classes == 1000
    for fraction in (data.val_crop_fraction, 1.0) if is_usual else ():
        if (teacher.model, fraction) in PUBLISHED:
            return PUBLISHED[teacher.model, fraction], f"published at crop {fraction:g}"
    return None


def _states_classes(teacher: TeacherConfig) -> bool:
    """Return whether the order of the teacher's classes is known.

    It is known for weights from the hub, and for weights with a .json file that lists the classes.
    """
    if teacher.head:
        return False
    return teacher.checkpoint == "hub" or "classes" in description_beside(build.teacher_file(teacher))
